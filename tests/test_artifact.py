from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import sovit
from export.reference import reference_images
from export.to_onnx import export_onnx, from_checkpoint, from_random
from sovit.artifact import Artifact, open_artifact, write_artifact
from sovit.checkpoint import load_model
from sovit.errors import ArtifactMismatch, ConfigError, ParityError
from sovit.parity import measure_parity, relative_error
from sovit.preprocess import Preprocess
from sovit.runtime.open import open_runtime
from sovit.runtime.pytorch import TorchRuntime
from tests.conftest import tiny_spec


@pytest.fixture
def copy(exported: Artifact, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported.folder, tmp_path / "artifact"))


def test_the_manifest_says_what_the_artifact_is(exported: Artifact) -> None:
    manifest = open_artifact(exported.folder).manifest
    assert (manifest.name, manifest.precision, manifest.labels) == ("tiny", "fp32", ("ant", "bee", "cat"))
    assert [(i.name, i.dtype, i.shape) for i in manifest.inputs] == [("image", "uint8", ("B", 16, 16, 3))]
    assert [(o.name, o.dtype, o.shape) for o in manifest.outputs] == [
        ("pre_logits", "float32", ("B", 32)),
        ("logits", "float32", ("B", 3)),
    ]
    assert set(manifest.files) == {"model.onnx", "reference.npz"}
    assert manifest.parity[0].relative_error <= 1e-5
    assert len(manifest.checkpoint_sha256) == 64


def test_the_graph_equals_torch_at_any_batch(exported: Artifact) -> None:
    images, reference = exported.reference()
    assert images.shape == (16, 16, 16, 3)
    runtime = open_runtime(exported)
    torch_runtime = TorchRuntime(load_model(exported.folder.parent / "checkpoint"), exported.manifest.preprocess)
    for batch in (1, 2, 3, 64):
        repeated = images[np.arange(batch) % 16]
        outputs, expected = runtime.run(repeated), torch_runtime.run(repeated)
        for name in ("pre_logits", "logits"):
            assert relative_error(outputs[name], expected[name]) < 1e-5
    assert measure_parity(runtime, images, reference).require().top1_agreement == 1.0


def test_the_graph_says_nothing_of_this_machine(exported: Artifact) -> None:
    content = exported.graph.read_bytes()
    assert str(Path(__file__).parents[1]).encode() not in content
    assert b"site-packages" not in content


@pytest.mark.parametrize("name", ["model.onnx", "reference.npz", "manifest.json"])
def test_a_missing_file_is_named(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(ArtifactMismatch, match=rf"{name}.*is missing"):
        open_artifact(copy)


@pytest.mark.parametrize("name", ["model.onnx", "reference.npz"])
def test_a_truncated_file_is_named(copy: Path, name: str) -> None:
    (copy / name).write_bytes((copy / name).read_bytes()[:-1])
    with pytest.raises(ArtifactMismatch, match=rf"{name} has [\d,]+ bytes.*truncated"):
        open_artifact(copy)


@pytest.mark.parametrize("name", ["model.onnx", "reference.npz"])
def test_an_edited_file_is_named(copy: Path, name: str) -> None:
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    with pytest.raises(ArtifactMismatch, match=rf"{name} does not have the hash"):
        open_artifact(copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 3}, "schema_version 3, this sovit reads 2: export again"),
        ({"precision": "fp3"}, "precision"),
        ({"surprise": 1}, "surprise: unknown field"),
        ({"labels": ["one"]}, "1 labels do not fit a head of 3"),
        ({"inputs": []}, "inputs are not the one this model has"),
        ({"outputs": []}, "outputs are not those this model has"),
        ({"batch": [4, 1, 8]}, "batch is"),
        ({"opset": 99}, "opset is 99, this sovit knows 23"),
        ({"files": {}}, r"lists no model\.onnx"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(copy: Path, change: dict[str, object], message: str) -> None:
    path = copy / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ArtifactMismatch, match=message):
        open_artifact(copy)


def test_a_graph_of_another_model_is_refused_when_loaded(copy: Path) -> None:
    path = copy / "manifest.json"
    data = json.loads(path.read_text())
    data["model"]["num_classes"] = 2
    data["labels"] = ["one", "two"]
    data["outputs"][1]["shape"] = ["B", 2]
    path.write_text(json.dumps(data))
    with pytest.raises(ArtifactMismatch, match=r"model\.onnx has other inputs or outputs than the manifest declares"):
        open_runtime(open_artifact(copy))


def test_a_manifest_cannot_point_outside(copy: Path) -> None:
    path = copy / "manifest.json"
    data = json.loads(path.read_text())
    data["files"]["../secret"] = {"bytes": 1, "sha256": "0" * 64}
    path.write_text(json.dumps(data))
    with pytest.raises(ArtifactMismatch, match="no file name inside the artifact"):
        open_artifact(copy)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe"])
def test_a_manifest_that_is_no_manifest_is_refused(copy: Path, content: bytes) -> None:
    (copy / "manifest.json").write_bytes(content)
    with pytest.raises(ArtifactMismatch, match=r"manifest\.json"):
        open_artifact(copy)


def test_an_artifact_out_of_parity_is_not_written(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = from_checkpoint(checkpoint, "x")
    images = reference_images(source.spec.preprocess, None)
    run = TorchRuntime.run
    monkeypatch.setattr(
        TorchRuntime, "run", lambda self, x: {name: values * 1.001 for name, values in run(self, x).items()}
    )
    with pytest.raises(ParityError, match="relative error"):
        export_onnx(source, tmp_path / "out", images)
    assert not (tmp_path / "out").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint"]


def test_weights_that_are_not_finite_are_found_before_export(checkpoint: Path, tmp_path: Path) -> None:
    source = from_checkpoint(checkpoint, "x")
    source.model.norm.bias.data[0] = float("nan")
    with pytest.raises(ConfigError, match=r"norm\.bias holds values that are not finite"):
        export_onnx(source, tmp_path / "out", reference_images(source.spec.preprocess, None))
    assert not (tmp_path / "out").exists()


def test_a_reference_that_is_no_archive_is_refused(copy: Path) -> None:
    """Its hash may fit: whoever wrote the manifest wrote it too."""
    (copy / "reference.npz").write_bytes(b"no archive")
    manifest = json.loads((copy / "manifest.json").read_text())
    digest = hashlib.sha256(b"no archive").hexdigest()
    manifest["files"]["reference.npz"] = {"bytes": len(b"no archive"), "sha256": digest}
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactMismatch, match=r"reference\.npz cannot be read"):
        open_artifact(copy).reference()


def test_what_arrives_in_the_folder_meanwhile_is_not_lost(copy: Path) -> None:
    with pytest.raises(ConfigError, match="also holds notes, which would be lost"), write_artifact(copy) as aside:
        shutil.copytree(copy, aside, dirs_exist_ok=True)
        (copy / "notes").write_text("mine")
    assert (copy / "notes").read_text() == "mine"


def test_a_full_disk_leaves_no_half_artifact(checkpoint: Path, tmp_path: Path) -> None:
    """A real process whose files may not grow beyond 40 kB, which is less than the graph."""
    code = (
        "import resource, sys; from sovit.cli import main; "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000)); sys.exit(main(sys.argv[1:]))"
    )
    out = tmp_path / "there" / "artifact"
    command = [sys.executable, "-c", code, "export", str(checkpoint), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("sovit: File too large")
    assert done.stderr.count("\n") == 1
    assert list(out.parent.iterdir()) == []


def test_random_sources_are_reproducible_and_have_a_head_that_says_something() -> None:
    config = tiny_spec().model
    one, two = from_random("a", config), from_random("a", config)
    assert one.model.head is not None
    assert two.model.head is not None
    assert one.model.head.weight.abs().sum() > 0
    assert (one.model.head.weight == two.model.head.weight).all()


def test_reference_images_come_from_a_folder(tmp_path: Path) -> None:
    from PIL import Image

    preprocess = Preprocess(image_size=(8, 8))
    for index in range(20):
        Image.new("RGB", (9, 9), (index, 0, 0)).save(tmp_path / f"{index:02}.png")
    images = reference_images(preprocess, tmp_path)
    assert images[:, 0, 0, 0].tolist() == [index * 20 // 16 for index in range(16)]
    (tmp_path / "00.png").write_bytes(b"no image")
    with pytest.raises(Exception, match=r"00\.png: the bytes are no image"):
        reference_images(preprocess, tmp_path)
    with pytest.raises(ConfigError, match="holds 0 images, the reference needs 16"):
        (tmp_path / "empty").mkdir()
        reference_images(preprocess, tmp_path / "empty")


def test_predictions_of_artifact_and_torch_agree(exported: Artifact) -> None:
    predictor = sovit.load_artifact(exported.folder)
    images, reference = exported.reference()
    embeddings = predictor.embed(list(images), normalize=False)
    assert relative_error(embeddings, reference["pre_logits"]) < 1e-5
    lengths = np.linalg.norm(predictor.embed(list(images)), axis=1)
    np.testing.assert_allclose(lengths, 1, rtol=1e-6)
    best = [c.predictions[0].index for c in predictor.classify(list(images), top_k=1)]
    assert best == reference["logits"].argmax(axis=1).tolist()
