"""TensorRT for RTX on a GPU machine, on doubles that keep its rules: an engine is taken in, run, and run again."""

from __future__ import annotations

import gc
import json
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest

import sovit.runtime.open
from sovit.artifact import Artifact
from sovit.cli import main
from sovit.errors import ParityError, PlanMismatch
from sovit.machine import this_machine
from sovit.runtime.open import installed_runtimes, open_runtime
from sovit.runtime.tensorrt.compile import compile_plan, take_engine
from sovit.runtime.tensorrt.engine_folder import DESCRIPTION, ENGINE, EngineDescription, write_engine
from sovit.runtime.tensorrt.library import TENSORRT, TENSORRT_RTX
from sovit.runtime.tensorrt.runtime import open_tensorrt
from tests.fixtures_tensorrt import RTX_VERSION, SMALL, FakeGpu, assert_right, images, install


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeGpu:
    gpu = install(monkeypatch, tmp_path / "cache", RTX_VERSION, rtx=True)
    gpu.device.compute_capability = (8, 9)
    return gpu


@pytest.fixture
def engine(gpu: FakeGpu, exported: Artifact, tmp_path: Path) -> Path:
    """An engine as another machine would have built it."""
    content = compile_plan(exported, SMALL, TENSORRT_RTX).path.read_bytes()
    for path in (gpu.cache / "plans").rglob("*.*"):
        path.unlink()
    description = EngineDescription(
        artifact_sha256=exported.sha256,
        name="tiny",
        precision="fp32",
        engine_sha256=sha256(content).hexdigest(),
        bytes=len(content),
        library="tensorrt-rtx",
        tensorrt=RTX_VERSION,
        compute_capabilities=("8.9",),
        batch=(1, 4, 6),
        builder_level=3,
        attention={"blocks": "not fused"},
    )
    write_engine(tmp_path / "engine", content, description)
    return tmp_path / "engine"


def test_an_engine_is_taken_in_after_parity_and_then_run(gpu: FakeGpu, engine: Path, exported: Artifact) -> None:
    with pytest.raises(PlanMismatch, match=r"run `sovit compile .* --for rtx`"):
        open_tensorrt(exported, TENSORRT_RTX)
    compiled = take_engine(exported, engine)
    assert compiled.plan.parity.runtime == "tensorrt-rtx"
    assert compiled.path.name == f"nvidia-h100-80gb-hbm3-8.9-tensorrt-rtx-{RTX_VERSION}.plan"
    assert (compiled.plan.library, compiled.plan.attention) == ("tensorrt-rtx", {"blocks": "not fused"})
    runtime = open_runtime(exported, "tensorrt-rtx")
    assert runtime.name == "tensorrt-rtx"
    for count in (1, 3, 6, 8):
        assert_right(exported, runtime, images(exported, count))
    runtime.close()
    del runtime
    gc.collect()
    assert not gpu.device.leftovers
    assert not len(gpu.behaviour.alive)


def test_what_was_compiled_at_run_time_is_kept_beside_the_plan(
    gpu: FakeGpu, engine: Path, exported: Artifact, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    compiled = take_engine(exported, engine)
    kept = compiled.path.with_suffix(".kernels")
    assert kept.read_bytes() == b"kernels 1 4 6"
    again = install(monkeypatch, tmp_path / "cache", RTX_VERSION, rtx=True)
    again.device.compute_capability = (8, 9)
    (runtime,) = open_tensorrt(exported, TENSORRT_RTX)
    assert_right(exported, runtime, images(exported, 6))
    assert_right(exported, runtime, images(exported, 2))
    runtime.close()
    assert again.behaviour.kernels == [2]
    assert kept.read_bytes() == b"kernels 1 2 4 6"
    kept.write_bytes(b"of another driver")
    (runtime,) = open_tensorrt(exported, TENSORRT_RTX)
    assert_right(exported, runtime, images(exported, 1))
    runtime.close()
    assert kept.read_bytes() == b"kernels 1"


@pytest.mark.parametrize("what", ["parity", "batch", "gpu", "version", "bit"])
def test_one_that_does_not_fit_is_never_kept(gpu: FakeGpu, engine: Path, exported: Artifact, what: str) -> None:
    contexts = len(gpu.behaviour.contexts)
    if what == "parity":
        content = (engine / ENGINE).read_bytes()
        wrong = content.replace(b'"factor": 1.0', b'"factor": 1.1')
        assert wrong != content
        (engine / ENGINE).write_bytes(wrong)
        data = json.loads((engine / DESCRIPTION).read_text())
        (engine / DESCRIPTION).write_text(json.dumps(data | {"engine_sha256": sha256(wrong).hexdigest()}))
    elif what == "batch":
        data = json.loads((engine / DESCRIPTION).read_text())
        (engine / DESCRIPTION).write_text(json.dumps(data | {"batch": [1, 2, 3]}))
    elif what == "gpu":
        gpu.device.compute_capability = (9, 0)
    elif what == "version":
        gpu.trt.__version__ = "1.8.0.1"
    else:
        content = (engine / ENGINE).read_bytes()
        (engine / ENGINE).write_bytes(content[:-1] + b" ")
    with pytest.raises(ParityError if what == "parity" else PlanMismatch):
        take_engine(exported, engine)
    assert not [path for path in (gpu.cache / "plans").rglob("*") if path.is_file()]
    assert (len(gpu.behaviour.contexts) > contexts) == (what == "parity"), "nothing else loads it"


def test_the_command_and_auto(
    gpu: FakeGpu, engine: Path, exported: Artifact, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compile", str(exported.folder), "--from", str(engine), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["plan"]["gpu"] == "NVIDIA H100 80GB HBM3"
    assert main(["check", str(exported.folder), "--runtime", "tensorrt-rtx", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["parity"]["runtime"] == "tensorrt-rtx"
    machine = replace(this_machine(), gpu="NVIDIA Test")
    monkeypatch.setattr(sovit.runtime.open, "this_machine", lambda: machine)
    assert installed_runtimes(exported) == ["tensorrt-rtx"]


def test_the_libraries_do_not_take_each_others_plans(
    gpu: FakeGpu, exported: Artifact, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    compile_plan(exported, SMALL, TENSORRT_RTX)
    install(monkeypatch, tmp_path / "cache")
    with pytest.raises(
        PlanMismatch, match=r"is compiled for .* with tensorrt-rtx 1\.7\.1\.116, and this is .* tensorrt 11"
    ):
        open_tensorrt(exported, TENSORRT)
