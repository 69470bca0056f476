"""`sovit compile`: building a plan, on doubles that keep TensorRT's rules."""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cuda.bindings import runtime as real

import sovit.runtime.open
import tests.fake_tensorrt as doubles
from sovit.artifact import Artifact, open_artifact, parse_batch
from sovit.cli import main
from sovit.errors import (
    ConfigError,
    MissingDependency,
    ParityError,
    RuntimeFailure,
)
from sovit.machine import this_machine
from sovit.runtime.open import installed_runtimes, open_runtime
from sovit.runtime.tensorrt.command import compile_artifact
from sovit.runtime.tensorrt.compile import compile_plan
from sovit.runtime.tensorrt.monitor import Phases
from sovit.runtime.tensorrt.options import CompileOptions, add_compile_options, add_library_options
from sovit.runtime.tensorrt.plan import HardwareCompatibility
from sovit.runtime.tensorrt.runtime import open_tensorrt
from tests.fixtures_tensorrt import SMALL, VERSIONS, FakeGpu, assert_right, images, install


@pytest.fixture(params=VERSIONS)
def gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeGpu:
    return install(monkeypatch, tmp_path, request.param)


def test_without_tensorrt_the_sentence_says_what_to_get(exported: Artifact) -> None:
    if importlib.util.find_spec("tensorrt") is not None:
        pytest.skip("TensorRT is installed here")
    with pytest.raises(MissingDependency, match=r"TensorRT is not installed: pip install 'sovit\[gpu\]'"):
        compile_plan(exported)


def test_a_tensorrt_that_cannot_read_attention_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, exported: Artifact
) -> None:
    install(monkeypatch, tmp_path, "10.13.3.9")
    with pytest.raises(MissingDependency, match=r"10\.13\.3\.9 cannot read .* pip install 'tensorrt>=10\.14'"):
        compile_plan(exported)


def test_without_a_gpu_nothing_is_built(gpu: FakeGpu, exported: Artifact) -> None:
    gpu.device.errors = {"cudaGetDeviceCount": [real.cudaError_t.cudaErrorNoDevice] * 2}
    for call in (open_tensorrt, compile_plan):
        with pytest.raises(MissingDependency, match="no CUDA-capable device is detected"):
            call(exported)


def test_compile_builds_checks_and_keeps_a_plan(gpu: FakeGpu, exported: Artifact) -> None:
    compiled = compile_plan(exported, CompileOptions(batch=(1, 2, 6), workspace_gib=2, builder_level=5))
    assert compiled.path.is_relative_to(gpu.cache / "plans" / exported.sha256)
    assert compiled.path.stat().st_size == compiled.bytes
    assert compiled.plan.batch == (1, 2, 6)
    assert compiled.plan.parity.images == 16
    assert compiled.plan.tensorrt == gpu.trt.__version__
    assert gpu.behaviour.flags == [1 << doubles.NetworkDefinitionCreationFlag.STRONGLY_TYPED]
    (config,) = gpu.behaviour.configs
    assert config._cleared == [doubles.BuilderFlag.TF32]
    assert config._pools == {doubles.MemoryPoolType.WORKSPACE: 2 * 2**30}
    assert config.builder_optimization_level == 5
    assert config.hardware_compatibility_level == doubles.HardwareCompatibilityLevel.NONE
    (profile,) = config._profiles
    assert profile._shapes == {"image": ((1, 16, 16, 3), (2, 16, 16, 3), (6, 16, 16, 3))}
    (runtime,) = open_tensorrt(exported)
    runtime.close()
    gc.collect()
    assert not gpu.device.leftovers
    assert not len(gpu.behaviour.alive)


def test_the_manifest_gives_the_batch(gpu: FakeGpu, exported: Artifact) -> None:
    assert compile_plan(exported).plan.batch == exported.manifest.batch


@pytest.mark.parametrize("level", ["same_compute_capability", "ampere_plus"])
def test_hardware_compatibility_is_passed_on(gpu: FakeGpu, exported: Artifact, level: HardwareCompatibility) -> None:
    compile_plan(exported, CompileOptions(batch=(1, 1, 4), hardware_compatibility=level))
    assert gpu.behaviour.configs[0].hardware_compatibility_level.name == level.upper()
    gpu.device.name = b"NVIDIA H200"
    open_tensorrt(exported)[0].close()


def test_ampere_plus_needs_an_ampere(gpu: FakeGpu, exported: Artifact) -> None:
    gpu.device.compute_capability = (7, 5)
    with pytest.raises(ConfigError, match="leave ampere_plus out"):
        compile_plan(exported, CompileOptions(hardware_compatibility="ampere_plus"))


def test_what_tensorrt_says_is_in_the_sentence(gpu: FakeGpu, exported: Artifact) -> None:
    gpu.behaviour.build_error = "Could not find any implementation for node {x}."
    with pytest.raises(
        RuntimeFailure, match=r"cannot compile .*artifact: IBuilder.*implementation for node \{x\}\.\.?$"
    ):
        compile_plan(exported, SMALL)
    assert not list(gpu.cache.rglob("*.plan"))


def test_a_plan_that_computes_something_else_is_not_kept(gpu: FakeGpu, exported: Artifact) -> None:
    gpu.behaviour.factor = 1.01
    with pytest.raises(ParityError, match="tensorrt fp32 is off its fp32 reference"):
        compile_plan(exported, SMALL)
    assert not list((gpu.cache / "plans").rglob("*.*"))
    gc.collect()
    assert not gpu.device.leftovers
    assert not len(gpu.behaviour.alive)


def test_measured_timings_are_used_again(gpu: FakeGpu, exported: Artifact) -> None:
    for _ in range(2):
        compile_plan(exported, SMALL)
    assert gpu.behaviour.timings == [b"", b"timed "]
    (path,) = (gpu.cache / "timings").iterdir()
    assert path.name == f"nvidia-h100-80gb-hbm3-tensorrt-{gpu.trt.__version__}.cache"
    for broken in (b"garbage", b"another GPU's"):
        path.write_bytes(broken)
        compile_plan(exported, SMALL)
        assert gpu.behaviour.timings[-1] == b""
        assert path.read_bytes() == b"timed "


def test_progress_that_fails_ends_no_build(gpu: FakeGpu, exported: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(label: str, total: int) -> Any:
        raise ValueError("no terminal")

    monkeypatch.setattr("sovit.runtime.tensorrt.monitor.progress", broken)
    compile_plan(exported, SMALL)


def test_an_interrupt_cancels_the_build(gpu: FakeGpu, exported: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(self: Phases, name: str, step: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Phases, "step", interrupt)
    with pytest.raises(KeyboardInterrupt):
        compile_plan(exported, SMALL)
    assert not list(gpu.cache.rglob("*.plan"))


def test_nested_phases_are_parts_of_the_one_at_the_top() -> None:
    done: list[int] = []
    ended: list[bool] = []
    phases = Phases(lambda name: done.append, lambda: ended.append(True))
    phases.start("build", None, 2)
    phases.start("tactics", "build", 4)
    phases.start("elsewhere", None, 7)  # a second one at the top has no bar
    phases.step("elsewhere", 3)
    for step in range(4):
        phases.step("tactics", step)
    assert sum(done) == 500
    phases.step("build", 0)
    phases.start("code", "build", 1)
    phases.step("code", 0)
    assert sum(done) == 1000
    phases.finish("build")
    assert ended == [True]


@pytest.mark.parametrize(
    "wrong",
    [{"batch": (0, 1, 2)}, {"batch": (4, 2, 8)}, {"workspace_gib": 0}, {"workspace_gib": float("nan")},
     {"builder_level": 6}, {"hardware_compatibility": "all"}],
    ids=str,
)  # fmt: skip
def test_options_that_make_no_sense(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="it must be"):
        CompileOptions(**wrong)


def test_the_command(gpu: FakeGpu, exported: Artifact) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("artifact")
    add_compile_options(parser)
    add_library_options(parser)
    result = compile_artifact(parser.parse_args([str(exported.folder), "--batch", "1:2:4", "--builder-level", "1"]))
    assert "batches of 1:2:4" in result.text
    assert result.data["plan"]["builder_level"] == 1
    json.dumps(result.data)
    with pytest.raises(ConfigError, match=r"is not MIN:OPT:MAX"):
        parse_batch("1:2")


def test_export_to_tensorrt_is_export_and_compile(
    gpu: FakeGpu, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["export", str(checkpoint), "--to", "tensorrt", "--batch", "1:2:4", "--builder-level", "2"]
    assert main([*words, "--out", str(tmp_path / "a"), "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)["plan"]
    artifact = open_artifact(tmp_path / "a")
    assert (plan["artifact_sha256"], plan["batch"], plan["builder_level"]) == (artifact.sha256, [1, 2, 4], 2)
    (runtime,) = open_tensorrt(artifact)
    assert_right(artifact, runtime, images(artifact, 3))
    runtime.close()
    assert main(["export", str(checkpoint), "--builder-level", "2", "--out", str(tmp_path / "b")]) == 2
    assert "are for --to tensorrt" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


def test_auto_takes_the_plan_where_there_is_one(
    gpu: FakeGpu, exported: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert installed_runtimes(exported)[0] != "tensorrt"
    compile_plan(exported, SMALL)
    assert installed_runtimes(exported)[0] != "tensorrt", "no GPU, no plan"
    machine = replace(this_machine(), gpu="NVIDIA Test")
    monkeypatch.setattr(sovit.runtime.open, "this_machine", lambda: machine)
    assert installed_runtimes(exported) == ["tensorrt"]
    runtime = open_runtime(exported)
    assert runtime.name == "tensorrt"
    assert_right(exported, runtime, images(exported, 3))
    runtime.close()
