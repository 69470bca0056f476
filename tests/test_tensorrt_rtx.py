"""The real compiler, on a machine without a GPU: TensorRT for RTX builds what every precision and trait exports to."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

import export.builder
from benchmarks.studies.fusion import MODELS, Row, table
from sovit.artifact import GRAPH, Artifact, Precision, hash_files, open_artifact, write_manifest
from sovit.cli import main
from sovit.errors import ConfigError, PlanMismatch, RuntimeFailure
from sovit.runtime.tensorrt import compile as compiling
from sovit.runtime.tensorrt import monitor, network
from sovit.runtime.tensorrt.compile import compile_engine
from sovit.runtime.tensorrt.cuda import Gpu
from sovit.runtime.tensorrt.engine_folder import DESCRIPTION, ENGINE, read_engine, require_fit
from sovit.runtime.tensorrt.library import TENSORRT_RTX
from sovit.runtime.tensorrt.options import CompileOptions
from tests.conftest import random_model, tiny_spec
from tests.test_graph import PRECISIONS, exported

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx_bindings") is None,
    reason="TensorRT for RTX is not installed: it is for Linux and Windows on x86-64",
)
BATCH = CompileOptions(batch=(1, 8, 32))
ADA = Gpu(name="NVIDIA L4", compute_capability="8.9", memory=24 << 30, driver="13.0", runtime="13.0")
AMPERE = replace(ADA, name="NVIDIA A10", compute_capability="8.6")
TURING = replace(ADA, name="Tesla T4", compute_capability="7.5")
ROWS: dict[str, dict[str, Any]] = {
    "head_dim 64, map": {"width": 128, "pool": "map"},
    "head_dim 72, gap, registers, LayerScale, tokens": {
        "width": 144, "pool": "gap", "registers": 2, "layer_scale": True,
    },
    "head_dim 55, tok, external weights, rectangle": {"width": 110, "pool": "tok", "image_size": (24, 40)},
    "head_dim 64, map, fc_norm, registers, rectangle": {
        "width": 128, "pool": "map", "registers": 1, "fc_norm": True, "image_size": (36, 28),
    },
}  # fmt: skip


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def export_row(name: str, precision: Precision, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Artifact:
    traits = ROWS[name]
    if "external" in name:
        monkeypatch.setattr(export.builder, "EXTERNAL_BYTES", 0)
    spec = tiny_spec(**{"image_size": (32, 32), **traits})
    outputs = ("pre_logits", "logits", *(["tokens"] if "tokens" in name else []))
    return exported(random_model(spec.model), spec, folder, precision, outputs=outputs)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", ROWS)
def test_every_precision_builds(
    name: str, precision: Precision, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = export_row(name, precision, tmp_path / "artifact", monkeypatch)
    assert ("model.onnx.data" in artifact.manifest.files) == ("external" in name)
    engine = compile_engine(artifact, tmp_path / "engine", BATCH)
    content, read = read_engine(tmp_path / "engine", artifact)
    assert read == engine
    assert (len(content), read.batch, read.precision) == (read.bytes, (1, 8, 32), precision)
    blocks = {"fp32": "not fused", "int8": "not fused", "fp8-bf16": "fused fp8"}.get(precision, "fused")
    assert engine.attention["blocks"] == blocks
    assert ("map_head" in engine.attention) == (ROWS[name]["pool"] == "map")
    assert (b"qmma_e4m3" in content) == (precision == "fp8-bf16"), "the kernel's name says what it multiplies"
    capabilities = ("8.9", "12.0", "12.1") if precision == "fp8-bf16" else ()
    assert engine.compute_capabilities == capabilities


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    spec = tiny_spec(width=128, pool="map")
    return exported(random_model(spec.model), spec, tmp_path / "artifact", "bf16")


def change(artifact: Artifact, edit: Any) -> Artifact:
    """The artifact with another graph, and the hashes of it."""
    model = onnx.load(str(artifact.graph))
    edit(model)
    (artifact.folder / GRAPH).write_bytes(model.SerializeToString())
    (artifact.folder / "manifest.json").unlink()
    write_manifest(artifact.folder, replace(artifact.manifest, files=hash_files(artifact.folder)))
    return open_artifact(artifact.folder)


def test_artifacts_of_before_build_without_being_exported_again(artifact: Artifact, tmp_path: Path) -> None:
    new = compile_engine(artifact, tmp_path / "new", BATCH)

    def as_before(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            if node.op_type == "Attention":
                node.attribute.append(helper.make_attribute("softmax_precision", int(TensorProto.FLOAT)))

    before = change(artifact, as_before)
    old = compile_engine(before, tmp_path / "old", BATCH)
    assert old.attention == new.attention
    assert old.bytes == pytest.approx(new.bytes, rel=0.01)


def test_a_map_head_is_fused_where_no_batch_has_one_image(artifact: Artifact, tmp_path: Path) -> None:
    fused = compile_engine(artifact, tmp_path / "two", CompileOptions(batch=(2, 8, 32)))
    assert fused.attention == {"blocks": "fused", "map_head": "fused"}


def test_fp8_attention_is_left_out_where_it_is_not_fused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A head of 2048 has no fused kernel: attention falls apart, in bf16."""
    spec = tiny_spec(width=512, num_heads=1, pool="gap")
    artifact = exported(random_model(spec.model), spec, tmp_path / "artifact", "fp8-bf16")
    engine = compile_engine(artifact, tmp_path / "engine", BATCH)
    assert engine.attention == {"blocks": "not fused"}


@pytest.mark.parametrize("precision", ["fp16", "fp8-bf16"])
def test_named_gpus_are_built_for(precision: Precision, tmp_path: Path) -> None:
    spec = tiny_spec(width=128, pool="gap")
    artifact = exported(random_model(spec.model), spec, tmp_path / "artifact", precision)
    engine = compile_engine(artifact, tmp_path / "engine", CompileOptions(compute_capabilities=("8.9", "12.0")))
    assert engine.compute_capabilities == ("8.9", "12.0")
    require_fit(tmp_path / "engine", engine, artifact, engine.tensorrt, ADA)
    with pytest.raises(PlanMismatch, match=r"8\.9, 12\.0, and NVIDIA A10 has 8\.6"):
        require_fit(tmp_path / "engine", engine, artifact, engine.tensorrt, AMPERE)


def test_what_cannot_be_built_is_told_and_leaves_nothing(artifact: Artifact, tmp_path: Path) -> None:
    out = tmp_path / "engine"
    with pytest.raises(ConfigError, match=r"9\.0 is not supported: .* builds for 8\.0, 8\.6, 8\.9, 12\.0, 12\.1\."):
        compile_engine(artifact, out, CompileOptions(compute_capabilities=("9.0",)))

    def unknown(model: onnx.ModelProto) -> None:
        next(node for node in model.graph.node if node.op_type == "Gelu").op_type = "Swirl"

    with pytest.raises(RuntimeFailure, match=r"model\.onnx: it does not know the operator Swirl \(node Gelu_\d+\)\."):
        compile_engine(change(artifact, unknown), out, BATCH)
    assert not out.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["artifact"]


def test_a_full_disk_is_a_sentence_and_leaves_nothing(
    artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, content: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(RuntimeFailure, match="engine cannot be written: No space left on device"):
        compile_engine(artifact, tmp_path / "engine", BATCH)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["artifact"]


def test_an_engine_takes_the_place_of_an_older_one_and_of_nothing_else(artifact: Artifact, tmp_path: Path) -> None:
    out = tmp_path / "engine"
    for batch in ((1, 2, 4), (1, 8, 8)):
        compile_engine(artifact, out, CompileOptions(batch=batch))
        assert read_engine(out, artifact)[1].batch == batch
    (out / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"notes\.txt"):
        compile_engine(artifact, out, BATCH)


def test_fp8_is_not_for_amperes(tmp_path: Path) -> None:
    spec = tiny_spec(width=128, pool="gap", image_size=(32, 32))
    artifact = exported(random_model(spec.model), spec, tmp_path / "artifact", "fp8-bf16")
    with pytest.raises(RuntimeFailure, match=r"capability 8\.0, which has no fp8: export it as int8-bf16, or leave"):
        compile_engine(artifact, tmp_path / "engine", CompileOptions(compute_capabilities=("8.0",)))
    assert not (tmp_path / "engine").exists()


def test_int8_attention_has_no_fused_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Why int8-bf16 leaves attention as it is: with q, k, v and the softmax in int8 nothing fused is to be had."""
    spec = tiny_spec(width=128, pool="gap", image_size=(32, 32))

    def quantised(self: Any, q: str, k: str, v: str, name: str) -> str:
        q, k, v = (self._quantize(value, f"{name}.{part}") for value, part in ((q, "q"), (k, "k"), (v, "v")))
        heads = self._config.num_heads
        return str(self._graph.node("Attention", q, k, v, q_num_heads=heads, kv_num_heads=heads, scale=1.0))

    monkeypatch.setattr("export.graph._ViTGraph._attention", quantised)
    artifact = exported(random_model(spec.model), spec, tmp_path / "artifact", "int8-bf16")
    trt = TENSORRT_RTX.load()
    decide = network._decide

    def in_int8(trt: Any, built: Any, attention: Any, part: network.Part, plan: network.AttentionPlan) -> Any:
        step = decide(trt, built, attention, part, network.AttentionPlan(plan.fused, fp8=True))
        step[0] = 1 / 127
        attention.normalization_quantize_to_type = trt.DataType.INT8
        return step

    monkeypatch.setattr(network, "_decide", in_int8)
    for capability in ("8.0", "8.9", "12.0"):
        for fused, builds in ((frozenset[network.Part]({"blocks"}), False), (frozenset[network.Part](), True)):
            plan = network.AttentionPlan(fused)
            content = compiling._build(trt, TENSORRT_RTX, artifact, BATCH, plan, None, (capability,))
            assert (content is not None) == builds, capability


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_build_leaves_nothing(artifact: Artifact, tmp_path: Path, number: signal.Signals) -> None:
    out = tmp_path / "out" / "engine"
    out.parent.mkdir()
    program = (  # a build whose steps take long, interrupted in the middle of them
        "import sys, time, sovit.runtime.tensorrt.monitor as c\n"
        "def step(self, name, step):\n"
        "    print('building', flush=True)\n"
        "    time.sleep(0.2)\n"
        "c.Phases.step = step\n"
        "from sovit.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    command = [sys.executable, "-c", program, "compile", str(artifact.folder), "--for", "rtx", "--out", str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "building\n"
        process.send_signal(number)
        error = process.communicate(timeout=60)[1]
    assert process.returncode == (-number if number == signal.SIGKILL else 130)
    assert "Traceback" not in error
    assert not list(out.parent.iterdir())
    compile_engine(artifact, out, BATCH)
    assert read_engine(out, artifact)


def test_a_bar_is_drawn_while_the_library_is_kept_quiet(artifact: Artifact, capfd: pytest.CaptureFixture[str]) -> None:
    with monitor.quiet():
        os.write(2, b"Internal Error: from the library")
        print("from Python", file=sys.stderr)
    assert capfd.readouterr().err == "from Python\n"


def test_two_builds_at_once_are_two_whole_engines(artifact: Artifact, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sovit", "compile", str(artifact.folder), "--for", "rtx"]
    processes = [
        subprocess.Popen([*command, "--out", str(tmp_path / name)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for name in ("same", "same", "other")
    ]
    assert [process.wait(120) for process in processes] == [0] * 3
    for name in ("same", "other"):
        assert read_engine(tmp_path / name, artifact)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["artifact", "other", "same"]


@pytest.fixture
def engine(artifact: Artifact, tmp_path: Path) -> Path:
    compile_engine(artifact, tmp_path / "engine", BATCH)
    return tmp_path / "engine"


def flip(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


DAMAGE: dict[str, Any] = {
    "truncated": lambda content: content[:-1],
    "one bit": lambda content: flip(content, len(content) // 2),
    "empty": lambda _: b"",
    "another format": lambda _: b"\x7fELF" + bytes(1000),
}


@pytest.mark.parametrize("name", DAMAGE)
@pytest.mark.parametrize("described", [False, True], ids=["as it was", "described anew"])
def test_a_damaged_engine_is_found_without_the_library(
    engine: Path, artifact: Artifact, name: str, described: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = DAMAGE[name]((engine / ENGINE).read_bytes())
    (engine / ENGINE).write_bytes(content)
    if described:  # by whoever made it, hash and all: then the header speaks
        if name == "one bit":
            content = flip((engine / ENGINE).read_bytes(), 27)  # of the version
            (engine / ENGINE).write_bytes(content)
        from hashlib import sha256

        data = json.loads((engine / DESCRIPTION).read_text())
        data |= {"engine_sha256": sha256(content).hexdigest(), "bytes": len(content)}
        (engine / DESCRIPTION).write_text(json.dumps(data))
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx_bindings", None)
    assert main(["compile", str(artifact.folder), "--from", str(engine)]) == 2
    with pytest.raises(PlanMismatch):
        read_engine(engine, artifact)


def test_an_engine_for_something_else_is_refused(engine: Path, artifact: Artifact, tmp_path: Path) -> None:
    _, description = read_engine(engine, artifact)
    with pytest.raises(PlanMismatch, match=r"was built by TensorRT for RTX 1\.\S+, and this is 9\.9\.9\.9"):
        require_fit(engine, description, artifact, "9.9.9.9", ADA)
    with pytest.raises(PlanMismatch, match=r"8\.0 and newer, and Tesla T4 has 7\.5"):
        require_fit(engine, description, artifact, description.tensorrt, TURING)
    data = json.loads((engine / DESCRIPTION).read_text())
    for wrong in ({"library": "tensorrt"}, {"tensorrt": "1.7\x1b[31m"}, {"bytes": 1}, {"batch": [5, 1, 0]}):
        (engine / DESCRIPTION).write_text(json.dumps(data | wrong))
        with pytest.raises(PlanMismatch) as caught:
            read_engine(engine, artifact)
        assert str(caught.value).isprintable()
    (engine / DESCRIPTION).write_text(json.dumps(data))
    other = change(artifact, lambda model: model.graph.__setattr__("name", "other"))
    with pytest.raises(PlanMismatch, match="built from another artifact"):
        read_engine(engine, other)
    with pytest.raises(PlanMismatch, match="is not an engine folder"):
        read_engine(tmp_path, artifact)


def test_nothing_lets_an_engine_run_code_on_the_host() -> None:
    trt = TENSORRT_RTX.load()
    assert trt.Runtime(trt.Logger()).engine_host_code_allowed is False
    sources = (Path(__file__).parents[1] / "sovit").rglob("*.py")
    assert not [path for path in sources if "engine_host_code_allowed" in path.read_text(encoding="utf-8")]


def test_the_command(artifact: Artifact, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["compile", str(artifact.folder), "--for", "rtx", "--batch", "2:8:32"]
    out = tmp_path / "engine"
    assert main([*command, "--out", str(out), "--compute-capability", "8.9", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["engine"]["compute_capabilities"] == ["8.9"]
    assert result["engine"]["attention"] == {"blocks": "fused", "map_head": "fused"}
    assert result["bytes"] == (out / ENGINE).stat().st_size
    for wrong in (
        ["--hardware-compatibility", "ampere_plus", "--for", "rtx", "--out", str(out)],
        ["--out", str(out)],
        ["--compute-capability", "8.9", "--for", "rtx"],
        ["--from", str(out), "--builder-level", "1"],
        ["--from", str(out), "--out", str(out)],
    ):
        assert main(["compile", str(artifact.folder), *wrong]) == 2


def test_the_table_in_the_docs_is_what_the_study_found() -> None:
    root = Path(__file__).parents[1]
    stored = json.loads((root / "benchmarks" / "results" / "fusion.json").read_text())
    rows = [Row(**row) for row in stored["rows"]]
    assert {(row.model, row.image_size) for row in rows} == {(model, size) for model, size, _ in MODELS}
    assert table(rows) in (root / "docs" / "measured.md").read_text()
