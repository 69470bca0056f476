"""From somebody's own images and an imported checkpoint to a service, in one command."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sovit.artifact import open_artifact
from sovit.checkpoint import save_checkpoint
from sovit.client import Client
from sovit.errors import EXIT_USAGE, ConfigError
from sovit.process import free_port, serving
from tests.conftest import random_model, tiny_spec
from train.build import spec_of
from train.settings import recipe

ROOT = Path(__file__).parents[1]
COLOURS = {"red": (220, 30, 40), "green": (30, 200, 60)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two colours with noise: something to learn in a minute, and a file that is no image."""
    root = tmp_path_factory.mktemp("colours")
    noise = np.random.default_rng(0)
    for split, count in (("train", 24), ("test", 10)):
        for name, colour in COLOURS.items():
            place = root / split / name
            place.mkdir(parents=True)
            for index in range(count):
                pixels = np.clip(np.array(colour) + noise.normal(0, 40, (20, 24, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(place / f"{index}.png")
    for split in ("train", "test"):
        (root / split / "red" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n but nothing more")
    return root


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint without a head, as an encoder's is."""
    spec = tiny_spec(num_classes=0)
    path = tmp_path_factory.mktemp("imported") / "checkpoint"
    save_checkpoint(path, random_model(spec.model), spec, {})
    return path


def command(folder: Path, out: Path, init: Path | str, *more: str) -> list[str]:
    settings = (f"init={init}", "image_size=16", "epochs=12", "learning_rate=0.003", "batch_size=16", "workers=0")
    words = [word for setting in settings for word in ("--set", setting)]
    return ["train", "finetune-folder", "--data", str(folder), "--out", str(out), *words, *more]


def test_own_images_are_trained_on_exported_in_int8_and_served(folder: Path, imported: Path, tmp_path: Path) -> None:
    out, port = tmp_path / "run", free_port()
    words = ["sovit", *command(folder, out, imported, "--export", "int8", "--serve", str(port))]
    with serving(words, f"http://127.0.0.1:{port}", tmp_path / "log"), Client(f"http://127.0.0.1:{port}") as client:
        assert open_artifact(out / "artifact").manifest.precision == "int8"
        tests = [(path, name) for name in COLOURS for path in sorted((folder / "test" / name).glob("[0-9].png"))]
        found = [one.predictions[0].label for one in client.classify([path for path, _ in tests], top_k=1)]
    assert np.mean([label == name for label, (_, name) in zip(found, tests, strict=True)]) >= 0.95
    log = " ".join((tmp_path / "log").read_text().split())
    assert "broken.png" in log
    assert "int8: top-1" in log
    assert "the checkpoint's class for" in log


def test_the_result_says_how_the_artifact_does(folder: Path, imported: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "holiday.png").write_bytes(b"precious")
    words = [sys.executable, "-m", "sovit", *command(folder, tmp_path, imported, "--export", "fp32", "--json")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "images" / "holiday.png").read_bytes() == b"precious"
    said = json.loads(done.stdout)
    assert said["artifact_evaluation"]["agreement"] == 1
    assert [Path(name).name for name, _ in said["artifact_evaluation"]["failed"]] == ["broken.png"]
    assert said["artifact_evaluation"]["top1"] == said["evaluation"]["top1"] >= 0.95


def test_a_recipe_for_fine_tuning_asks_for_its_checkpoint(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--set init=FOLDER says which"):
        spec_of(recipe("finetune-folder", []), ("ant", "bee"))
    words = [sys.executable, "-m", "sovit", *command(folder, tmp_path, tmp_path / "none")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == EXIT_USAGE, done.stderr
    assert "Traceback" not in done.stderr
