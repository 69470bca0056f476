"""`sovit evaluate` on a checkpoint, an artifact and a service: labels by name, bad images, probes."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from sovit.artifact import Artifact
from sovit.cli import main
from sovit.errors import ConfigError, InvalidImage
from sovit.labels import imagenet_1k
from sovit.predict import Classification, Prediction
from sovit.process import free_port, serving, sovit_serve
from train.data.dataset import Dataset
from train.data.load import load_dataset
from train.evaluate import by_name, evaluate_classifier, match_labels, run_in_batches
from train.probing import PROBES, evaluate_probe

COLOURS = {"ant": (200, 30, 30), "bee": (30, 200, 30), "cat": (30, 30, 200)}


@pytest.fixture
def coloured(tmp_path: Path) -> Path:
    """Three classes of plain colours with a little noise, train and val."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 4)):
        for name, colour in COLOURS.items():
            folder = tmp_path / "data" / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = np.clip(np.array(colour) + rng.integers(-20, 20, (16, 16, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")
    return tmp_path / "data"


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, Any], str]:
    code = main(["evaluate", *words, "--json"])
    captured = capsys.readouterr()
    return code, json.loads(captured.out) if captured.out else {}, captured.err


@pytest.mark.parametrize("probe", PROBES)
def test_probes_of_a_checkpoint_and_an_artifact_agree(
    probe: str, checkpoint: Path, exported: Artifact, coloured: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = []
    for target in (checkpoint, exported.folder):
        code, found, _ = run(capsys, str(target), "--data", str(coloured), "--probe", probe)
        assert code == 0
        assert found["images"] == 12
        assert found["images_per_second"] > 0
        results.append(found["scores"])
    assert results[0] == results[1]
    # Colours are told apart even by random features.
    assert min(results[0].values()) > 0.9
    assert list(results[0]) == (["1-shot", "5-shot", "10-shot"] if probe == "fewshot" else ["top-1", "top-5"])
    assert main(["evaluate", str(checkpoint), "--data", str(coloured), "--probe", probe]) == 0
    assert f"{probe} probe on" in " ".join(capsys.readouterr().out.split())


def test_a_service_is_evaluated_like_its_artifact(
    exported: Artifact, coloured: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with serving(sovit_serve(exported.folder, port), url, tmp_path / "log"):
        for options in ([], ["--probe", "knn"]):
            code, served, _ = run(capsys, url, "--data", str(coloured), *options)
            assert code == 0
            _, local, _ = run(capsys, str(exported.folder), "--data", str(coloured), *options)
            for name in ("data", "images", "top1", "top5", "per_class", "scores"):
                assert served.get(name) == local.get(name), name


def test_an_image_that_cannot_be_decoded_is_named_and_left_out(
    exported: Artifact, coloured: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (coloured / "val" / "bee" / "9.png").write_bytes(b"no image")
    shutil.copyfile(coloured / "val" / "bee" / "0.png", coloured / "val" / "bee" / "8.png")
    code, found, errors = run(capsys, str(exported.folder), "--data", str(coloured))
    assert code == 1
    assert found["images"] == 13
    assert [row["name"] for row in found["per_class"]] == ["ant", "bee", "cat"]
    assert [row["images"] for row in found["per_class"]] == [4, 5, 4]
    assert len(found["failed"]) == 1
    assert "val/bee/9.png: the bytes are no image" in errors
    (coloured / "train" / "ant" / "0.png").write_bytes(b"")
    for probe in PROBES:
        code, found, errors = run(capsys, str(exported.folder), "--data", str(coloured), "--probe", probe)
        assert (code, found["images"]) == (1, 13)
        assert "val/bee/9.png" in errors
        if probe != "fewshot":  # which may not have sampled it
            assert "train/ant/0.png: the image is empty" in errors
            assert found["train_images"] == 35
    assert main(["evaluate", str(exported.folder), "--data", str(coloured)]) == 1
    assert "1 more could not be decoded and are not counted" in " ".join(capsys.readouterr().out.split())


def test_a_probe_needs_training_images_and_an_evaluation_never_takes_them(
    exported: Artifact, coloured: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, errors = run(capsys, str(exported.folder), "--data", str(coloured / "val"), "--probe", "knn")
    assert code == 2
    assert "has no train images: it must hold train/CLASS/IMAGE" in errors
    shutil.rmtree(coloured / "val")
    code, _, errors = run(capsys, str(exported.folder), "--data", str(coloured))
    assert code == 2
    assert "has no test images: it must hold test/CLASS/IMAGE or val/CLASS/IMAGE" in errors


def test_a_test_class_that_was_not_trained_on_is_listed(coloured: Path, exported: Artifact) -> None:
    (coloured / "val" / "dog").mkdir()
    shutil.copyfile(coloured / "val" / "bee" / "0.png", coloured / "val" / "dog" / "0.png")
    train, test = load_dataset(str(coloured), "train"), load_dataset(str(coloured), "test")
    with pytest.raises(ConfigError, match="classes that have no training images: dog"):
        evaluate_probe("knn", lambda images, normalize=True: np.zeros((len(images), 2), np.float32), train, test)


def test_labels_are_matched_by_name_and_imagenets_by_id() -> None:
    assert match_labels(["b", "a"], ["a", "b", "c"], "x") == ["b", "a"]
    labels = list(imagenet_1k().values())
    assert match_labels(["n01440764", "goldfish", "n03126707"], labels, "x") == ["tench", "goldfish", "crane (machine)"]
    with pytest.raises(ConfigError, match="x has classes the model does not know: n99999999, wolpertinger"):
        match_labels(["n99999999", "tench", "wolpertinger"], labels, "x")
    with pytest.raises(ConfigError, match="does not know: n01440764"):
        match_labels(["n01440764"], ["cat"], "x")


def test_imagenet_folders_are_scored_by_their_ids() -> None:
    data = Dataset("x", [b"1", b"2"], np.array([0, 1]), ("n01440764", "n01443537"))

    def classify(images: object, top_k: int) -> list[Classification]:
        return [Classification((Prediction("tench", 0, 0.9), Prediction("goldfish", 1, 0.1)))] * 2

    found = evaluate_classifier(classify, list(imagenet_1k().values()), data)
    assert (found.top1, found.top5) == (0.5, 1.0)


def test_a_model_without_a_head_says_so(coloured: Path) -> None:
    with pytest.raises(ConfigError, match="has no classification head; evaluate its embeddings with --probe"):
        evaluate_classifier(lambda images, top_k: [], [], load_dataset(str(coloured), "test"))


def test_a_head_of_zeros_is_told_apart_from_a_bad_model() -> None:
    def classify(images: object, top_k: int) -> list[Classification]:
        return [Classification((Prediction("a", 0, 0.5), Prediction("b", 1, 0.5)))]

    with pytest.raises(ConfigError, match="its head was never trained"):
        evaluate_classifier(classify, ["a", "b"], Dataset("x", [b"1"], np.zeros(1, np.int64), ("a",)))


def test_outputs_that_are_not_finite_are_no_accuracy(
    checkpoint: Path, coloured: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = load_file(checkpoint / "model.safetensors")
    save_file({**tensors, "norm.weight": tensors["norm.weight"] * float("nan")}, checkpoint / "model.safetensors")
    for options in ([], *(["--probe", probe] for probe in PROBES)):
        code, found, errors = run(capsys, str(checkpoint), "--data", str(coloured), *options)
        assert (code, found) == (1, {})
        assert "outputs are not finite" in errors


def test_odd_targets_are_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.npz").write_bytes(b"")
    for target, message in (("http://[::1", "is no URL"), (str(tmp_path / "x.npz"), "sovit convert")):
        code, _, errors = run(capsys, target, "--data", "digits")
        assert code == 2
        assert message in errors


def test_images_are_found_at_any_depth_and_pipes_are_not_waited_for(coloured: Path) -> None:
    deep = coloured / "val" / "ant" / "a" / "b"
    deep.mkdir(parents=True)
    shutil.move(coloured / "val" / "ant" / "0.png", deep / "0.png")
    os.mkfifo(coloured / "val" / "ant" / "pipe.png")
    assert len(load_dataset(str(coloured), "test")) == 12


def test_one_bad_image_costs_its_batch_nothing() -> None:
    data = Dataset("x", [str(i) for i in range(70)], np.zeros(70, np.int64), ("a",))

    def classify(images: Any) -> list[int]:
        if "40" in images:
            raise InvalidImage("it is 40.")
        return [int(image) for image in images]

    results, failed = run_in_batches("testing", classify, data)
    assert list(results.values()) == [i for i in range(70) if i != 40]
    assert failed == {40: "it is 40."}
    assert by_name(data, failed) == (("40", "it is 40."),)


def test_no_image_at_all_is_an_error() -> None:
    def classify(images: object, top_k: int) -> list[Classification]:
        raise InvalidImage("it is broken.")

    with pytest.raises(ConfigError, match="none of the 1 images could be decoded; the first, image 0 of x: it is"):
        evaluate_classifier(classify, ["a"], Dataset("x", [b"1"], np.zeros(1, np.int64), ("a",)))
