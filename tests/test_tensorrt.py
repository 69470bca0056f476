"""TensorRT: compiling and running, on doubles that keep its rules, and on a GPU where there is one (`-m gpu`)."""

from __future__ import annotations

import argparse
import gc
import importlib.util
import inspect
import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from cuda.bindings import runtime as real
from numpy.typing import NDArray

import sovit.runtime.open
import tests.fake_tensorrt as doubles
from sovit.artifact import Artifact, open_artifact, parse_batch
from sovit.cli import main
from sovit.errors import (
    ArtifactMismatch,
    ConfigError,
    MissingDependency,
    ParityError,
    PlanMismatch,
    RuntimeFailure,
    SoViTError,
)
from sovit.machine import this_machine
from sovit.runtime.base import Runtime
from sovit.runtime.open import installed_runtimes, open_runtime
from sovit.runtime.tensorrt.command import compile_artifact
from sovit.runtime.tensorrt.compile import _Phases, compile_plan
from sovit.runtime.tensorrt.cuda import current_gpu
from sovit.runtime.tensorrt.options import CompileOptions, add_compile_options
from sovit.runtime.tensorrt.plan import HardwareCompatibility
from sovit.runtime.tensorrt.runtime import batch_sizes, load_tensorrt, open_tensorrt
from tests.fixtures_tensorrt import VERSIONS, FakeGpu, install
from tests.golden.write_tensorrt_names import GOLDEN, arguments, missing, used_names

SMALL = CompileOptions(batch=(1, 4, 6))


@pytest.fixture(params=VERSIONS)
def gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeGpu:
    return install(monkeypatch, tmp_path, request.param)


def images(artifact: Artifact, count: int, seed: int = 0) -> NDArray[np.uint8]:
    shape = (count, *artifact.manifest.model.image_size, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def expected(artifact: Artifact, batch: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
    session = onnxruntime.InferenceSession(str(artifact.graph))
    names = [tensor.name for tensor in artifact.manifest.outputs]
    return dict(zip(names, session.run(names, {"image": batch}), strict=True))


def assert_right(artifact: Artifact, runtime: Runtime, batch: NDArray[np.uint8]) -> None:
    found = runtime.run(batch)
    for name, values in expected(artifact, batch).items():
        np.testing.assert_allclose(found[name], values, rtol=1e-4, atol=1e-5)


# Names


def library() -> Path:
    spec = importlib.util.find_spec("tensorrt_bindings")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("tensorrt-cu13-bindings is not installed: it is for Linux on x86-64")
    return Path(spec.submodule_search_locations[0]) / "tensorrt.so"


def test_every_name_we_use_is_in_both_majors() -> None:
    used = used_names()
    assert {"execute_async_v3", "decomposable", "TF32", "phase_start", "get_timing_cache", "UINT8"} <= used
    assert used == set(json.loads(GOLDEN.read_text())["identifiers"]), "run tests/golden/write_tensorrt_names.py"
    assert not missing(used, library())


@pytest.mark.parametrize("major", ["10", "11"])
def test_the_doubles_take_the_arguments_that_the_docstrings_name(major: str) -> None:
    known = json.loads(GOLDEN.read_text())["arguments"] if major == "10" else arguments(library())
    classes = {
        "IExecutionContext": doubles._Context,
        "ICudaEngine": doubles._Engine,
        "ParserError": doubles.IParserError,
    }
    module = doubles.fake_tensorrt(None, doubles.Behaviour(), "11")  # type: ignore[arg-type]
    compared = set()
    for name, names in known.items():
        kind, method = name.split(".")
        double = classes.get(kind) or getattr(module, kind, None) or getattr(doubles, kind, None)
        if names and double is not None and hasattr(double, method):  # some docstrings name none of them
            assert list(inspect.signature(getattr(double, method)).parameters)[1:] == names, name
            compared.add(name)
    assert {"IExecutionContext.execute_async_v3", "IBuilderConfig.create_timing_cache"} <= compared
    assert len(compared) > 15


# What is missing


def test_without_tensorrt_the_sentence_says_what_to_get(exported: Artifact) -> None:
    if importlib.util.find_spec("tensorrt") is not None:
        pytest.skip("TensorRT is installed here")
    for call in (open_tensorrt, compile_plan):
        with pytest.raises(MissingDependency, match=r"TensorRT is not installed: pip install 'sovit\[gpu\]'"):
            call(exported)


def test_the_bindings_alone_cannot_be_imported() -> None:
    library()
    if importlib.util.find_spec("tensorrt") is not None:
        pytest.skip("TensorRT is installed here")
    with pytest.raises(ImportError, match=r"libnv\w+\.so"):
        importlib.import_module("tensorrt_bindings")


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


# Compile


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
    with pytest.raises(RuntimeFailure, match=r"cannot compile .*artifact: IBuilder.*implementation for node \{x\}\.$"):
        compile_plan(exported, SMALL)
    gpu.behaviour.parse_errors = ["No importer registered for op: Swish.\nmore", "another"]
    with pytest.raises(RuntimeFailure, match=r"cannot read .*model\.onnx: No importer .*: Swish \(and 1 more\)\.$"):
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

    monkeypatch.setattr("sovit.runtime.tensorrt.compile.progress", broken)
    compile_plan(exported, SMALL)


def test_an_interrupt_cancels_the_build(gpu: FakeGpu, exported: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(self: _Phases, name: str, step: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(_Phases, "step", interrupt)
    with pytest.raises(KeyboardInterrupt):
        compile_plan(exported, SMALL)
    assert not list(gpu.cache.rglob("*.plan"))


def test_nested_phases_are_parts_of_the_one_at_the_top() -> None:
    done: list[int] = []
    ended: list[bool] = []
    phases = _Phases(lambda name: done.append, lambda: ended.append(True))
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


# Run


def test_batches_are_padded_to_few_sizes() -> None:
    assert batch_sizes(1, 1) == (1,)
    assert batch_sizes(1, 6) == (1, 2, 4, 6)
    assert batch_sizes(3, 64) == (3, 4, 8, 16, 32, 64)


def test_every_batch_gives_the_right_numbers(gpu: FakeGpu, exported: Artifact) -> None:
    compile_plan(exported, SMALL)
    gpu.behaviour.enqueued.clear()
    (runtime,) = open_tensorrt(exported)
    for seed, count in enumerate((1, 3, 6, 2, 3, 1, 5, 13, 6, 12)):  # padded, split, and replayed
        assert_right(exported, runtime, images(exported, count, seed))
    # Once to run and once to record for each size, whatever came later.
    assert gpu.behaviour.enqueued == [(size, recorded) for size in (1, 4, 6, 2) for recorded in (False, True)]
    assert runtime.run(images(exported, 0))["pre_logits"].shape == (0, 32)
    runtime.close()
    runtime.close()
    gc.collect()
    assert not gpu.device.leftovers
    assert not len(gpu.behaviour.alive)
    with pytest.raises(RuntimeFailure, match="closed"):
        runtime.run(images(exported, 1))


def test_a_batch_below_the_least_is_padded(gpu: FakeGpu, exported: Artifact) -> None:
    compile_plan(exported, CompileOptions(batch=(3, 3, 4)))
    (runtime,) = open_tensorrt(exported)
    for seed in range(3):
        assert_right(exported, runtime, images(exported, 2, seed))
    runtime.close()


def test_results_are_not_overwritten_by_the_next_run(gpu: FakeGpu, exported: Artifact) -> None:
    compile_plan(exported, SMALL)
    (runtime,) = open_tensorrt(exported)
    first = runtime.run(images(exported, 4, 1))["pre_logits"]
    kept = first.copy()
    runtime.run(images(exported, 4, 2))
    np.testing.assert_array_equal(first, kept)
    runtime.close()


def test_without_graphs_it_still_runs_and_says_so_once(
    gpu: FakeGpu, exported: Artifact, caplog: pytest.LogCaptureFixture
) -> None:
    compile_plan(exported, SMALL)
    gpu.behaviour.breaks_captures = True
    (runtime,) = open_tensorrt(exported)
    with caplog.at_level(logging.WARNING):
        for seed, count in enumerate((2, 2, 5, 9)):
            assert_right(exported, runtime, images(exported, count, seed))
    assert [record.message for record in caplog.records if "without CUDA graphs" in record.message] == [
        "TensorRT runs without CUDA graphs, which costs some latency: TensorRT failed: it cannot be captured."
    ]
    runtime.close()
    assert not gpu.device.leftovers


def test_lanes_share_the_engine(gpu: FakeGpu, exported: Artifact) -> None:
    compile_plan(exported, SMALL)
    gc.collect()
    lanes = open_tensorrt(exported, lanes=3)
    assert len(gpu.behaviour.alive) == 1
    assert len(gpu.device.streams) == 3
    for lane in (*lanes, *lanes):
        assert_right(exported, lane, images(exported, 3))
    lanes[0].close()
    assert_right(exported, lanes[1], images(exported, 3, 9))
    for lane in lanes[1:]:
        lane.close()
    gc.collect()
    assert not len(gpu.behaviour.alive)
    assert not gpu.device.leftovers
    with pytest.raises(ConfigError, match="lanes is 0"):
        open_tensorrt(exported, lanes=0)


def test_a_lane_that_does_not_fit_frees_the_others(gpu: FakeGpu, exported: Artifact) -> None:
    compile_plan(exported, SMALL)
    good = [real.cudaError_t.cudaSuccess] * 6
    gpu.device.errors = {"cudaMalloc": [*good, real.cudaError_t.cudaErrorMemoryAllocation]}
    with pytest.raises(RuntimeFailure, match="use fewer lanes"):
        open_tensorrt(exported, lanes=2)
    assert not gpu.device.leftovers


def test_wrong_images_are_refused(gpu: FakeGpu, exported: Artifact) -> None:
    compile_plan(exported, SMALL)
    (runtime,) = open_tensorrt(exported)
    for wrong in (np.zeros((1, 16, 16, 3), np.float32), np.zeros((1, 8, 16, 3), np.uint8)):
        with pytest.raises(RuntimeFailure, match=r"takes uint8 images of shape \[16, 16, 3\]"):
            runtime.run(wrong)  # type: ignore[arg-type]
    runtime.close()


def test_a_failing_engine_says_why(gpu: FakeGpu, exported: Artifact) -> None:
    compile_plan(exported, SMALL)
    gpu.behaviour.run_error = "Cask convolution execution"
    (runtime,) = open_tensorrt(exported)
    with pytest.raises(RuntimeFailure, match=r"TensorRT failed: Cask convolution execution\.$"):
        runtime.run(images(exported, 1))
    runtime.close()


def test_a_plan_that_tensorrt_refuses(gpu: FakeGpu, exported: Artifact) -> None:
    compile_plan(exported, SMALL)
    gpu.behaviour.load_error = "the stream is corrupt"
    with pytest.raises(PlanMismatch, match=r"the stream is corrupt\): run `sovit compile"):
        open_tensorrt(exported)


def test_a_plan_with_other_outputs_is_refused(gpu: FakeGpu, exported: Artifact) -> None:
    compile_plan(exported, SMALL)
    gpu.behaviour.rename = {"logits": "scores"}
    with pytest.raises(ArtifactMismatch, match="other inputs or outputs"):
        open_tensorrt(exported)
    assert not gpu.device.leftovers


def test_without_a_plan_the_sentence_says_what_to_run(gpu: FakeGpu, exported: Artifact) -> None:
    with pytest.raises(PlanMismatch, match="run `sovit compile"):
        open_tensorrt(exported)


# On a GPU


@pytest.fixture
def compiled(exported: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Artifact]:
    """The tiny artifact, compiled for the GPU of this machine."""
    try:
        load_tensorrt()
        current_gpu()
    except SoViTError as error:
        pytest.skip(str(error))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compile_plan(exported, CompileOptions(batch=(1, 8, 48)))
    yield exported
    gc.collect()


@pytest.mark.gpu
def test_the_real_thing_gives_the_right_numbers(compiled: Artifact) -> None:
    first, second = open_tensorrt(compiled, lanes=2)  # the plan is read again from the cache
    for lane in (first, second):
        for seed, count in enumerate((1, 3, 64, 3, 1, 48)):
            assert_right(compiled, lane, images(compiled, count, seed))
        assert all(run.graph is not None for run in lane._runs.values())
    first.close()
    assert_right(compiled, second, images(compiled, 3, 9))
    second.close()
