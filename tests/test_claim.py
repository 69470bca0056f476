"""A run's folder is its own, and its data is known by what is in it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from sovit.errors import CheckpointMismatch, ConfigError, SoViTError
from train.claim import Claim, locked
from train.data.dataset import Dataset
from train.data.identity import difference, identity
from train.data.load import load_dataset
from train.loop import train
from train.settings import recipe
from train.world import World

SMALL = [
    "width=16", "depth=1", "mlp_dim=32", "num_heads=2", "steps=4", "warmup_steps=1", "batch_size=32", "keep_states=9",
    "save_every=2",
]  # fmt: skip
ALONE = World(0, 1, torch.device("cpu"))


def digits(split: str = "train", count: int = 64) -> Dataset:
    whole = load_dataset("digits", split)  # type: ignore[arg-type]
    return replace(whole, images=whole.images[:count], targets=whole.targets[:count])


def begun(out: Path, data: Dataset, *settings: str, branch: Path | None = None) -> None:
    console = Console(quiet=True)
    train(recipe("digits", [*SMALL, *settings]), data, digits("test", 20), out, console=console, branch=branch)


def test_the_same_images_are_known_wherever_they_lie() -> None:
    one = identity(digits())
    assert difference(one, identity(replace(digits(), name="moved"))) == ""
    assert len(one["pixels"]) == 32


def test_what_is_not_the_same_is_named(tmp_path: Path) -> None:
    data = digits()
    begun(tmp_path, data)
    inverted = [255 - np.asarray(image) for image in data.images]
    for other, message in (
        (digits(count=63), "images 64, not 63"),
        (replace(data, targets=data.targets[::-1].copy()), "other labels of these images"),
        (replace(data, images=inverted), r"another image 0 of digits \(train\)"),
        (replace(data, classes=tuple("abcdefghij")), r"classes \['0'"),
    ):
        judged = digits("test", 20) if other.classes == data.classes else replace(other, name="test")
        with pytest.raises(ConfigError, match=f"holds a run with {message}"):
            train(recipe("digits", SMALL), other, judged, tmp_path, console=Console(quiet=True))


def test_an_image_that_was_mended_is_no_other_data() -> None:
    data = digits(count=3)
    broken = replace(data, images=[data.images[0], b"broken", data.images[2]])
    assert "1" not in identity(broken)["pixels"]
    assert difference(identity(broken), identity(data)) == ""


def test_two_runs_cannot_use_a_folder_at_once(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "sovit", "train", "digits", "--data", "digits", "--out", str(tmp_path)]
    with locked(tmp_path, ALONE):
        Claim(tmp_path, recipe("digits", SMALL), digits(), digits("test", 20), None).take(forget=False, damaged=())
        before = (tmp_path / "run.json").read_bytes()
        done = subprocess.run([*words, "--restart"], capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert "another run is using" in done.stderr
        assert (tmp_path / "run.json").read_bytes() == before
    begun(tmp_path, digits())


def test_a_place_that_can_be_no_run_is_wrong_usage(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "tensorboard").write_text("mine")
    for out, message in ((tmp_path / "file" / "below", "cannot be the folder of a run"), (tmp_path, "TensorBoard's")):
        with pytest.raises(ConfigError, match=message):
            begun(out, digits(), "tensorboard=true")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["optimizer=sgd"], "optimizer adamw, not sgd"),
        (["ema=0.9"], r"averaged weights \(ema\) False, not True"),
        (["width=32"], "width 16, not 32"),
    ],
)
def test_a_branch_of_another_kind_of_run_is_told(settings: list[str], message: str, tmp_path: Path) -> None:
    begun(tmp_path / "long", digits())
    state = tmp_path / "long" / "state" / "step-000000002"
    with pytest.raises(ConfigError, match=f"is of a run with {message}"):
        begun(tmp_path / "short", digits(), *settings, branch=state)
    others = replace(digits(), classes=tuple("abcdefghij"))
    with pytest.raises(ConfigError, match="is of a run with classes"):
        train(
            recipe("digits", SMALL), others, replace(others, name="test"), tmp_path / "short",
            console=Console(quiet=True), branch=state,
        )  # fmt: skip
    assert not (tmp_path / "short" / "run.json").exists()


def test_a_damaged_state_gives_way_to_an_older_one(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    begun(tmp_path / "whole", digits())
    begun(tmp_path / "hurt", digits())
    state = tmp_path / "hurt" / "state"
    tensors = next((state / "step-000000004").glob("*.distcp"))
    content = bytearray(tensors.read_bytes())
    content[len(content) // 2] ^= 1
    tensors.write_bytes(content)
    begun(tmp_path / "hurt", digits())
    assert (state / "damaged-step-000000004").is_dir()
    wanted = (tmp_path / "whole" / "checkpoint" / "model.safetensors").read_bytes()
    assert (tmp_path / "hurt" / "checkpoint" / "model.safetensors").read_bytes() == wanted
    for one in state.glob("step-*"):
        next(one.glob("*.distcp")).write_bytes(b"half")
    with pytest.raises(CheckpointMismatch, match=r"is damaged.* None before it is whole: --restart begins anew"):
        begun(tmp_path / "hurt", digits())
    assert len(list(state.glob("step-*"))) == 2
    assert "Traceback" not in "".join(capfd.readouterr())


def test_a_restart_that_is_refused_for_its_branch_forgets_nothing(tmp_path: Path) -> None:
    begun(tmp_path / "long", digits(), "steps=8")
    begun(tmp_path / "run", digits())
    damaged = tmp_path / "long" / "state" / "step-000000002"
    (damaged / ".metadata").write_bytes(b"")
    before = sorted(path for path in (tmp_path / "run").rglob("*") if path.is_file())
    for branch, message in ((damaged, "is damaged"), (damaged.with_name("step-000000008"), "beyond the 4 steps")):
        with pytest.raises(SoViTError, match=message):
            train(
                recipe("digits", SMALL), digits(), digits("test", 20), tmp_path / "run", console=Console(quiet=True),
                restart=True, branch=branch,
            )  # fmt: skip
    assert sorted(path for path in (tmp_path / "run").rglob("*") if path.is_file()) == before


def test_a_restart_that_was_killed_can_be_begun_again(tmp_path: Path) -> None:
    begun(tmp_path, digits())
    for state in (tmp_path / "state").glob("step-*"):
        shutil.rmtree(state)
    (tmp_path / "log.jsonl").unlink()  # as far as it can come before the new run.json is there
    console = Console(quiet=True)
    result = train(recipe("digits", SMALL), digits(), digits("test", 20), tmp_path, console=console, restart=True)
    assert result.steps == 4


def test_a_branch_goes_on_when_its_parent_has_gone(tmp_path: Path) -> None:
    begun(tmp_path / "long", digits())
    branch = tmp_path / "long" / "state" / "step-000000002"
    begun(tmp_path / "whole", digits(), "steps=6", branch=branch)
    begun(tmp_path / "run", digits(), "steps=6", branch=branch)
    shutil.rmtree(tmp_path / "long")
    shutil.rmtree(tmp_path / "run" / "state" / "step-000000006")
    begun(tmp_path / "run", digits(), "steps=6", branch=branch)
    weights = [(tmp_path / name / "checkpoint" / "model.safetensors").read_bytes() for name in ("whole", "run")]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("content", ["{}", "[]", '{"config": null, "data": {}}', '{"config": {}, "data": []}'])
def test_a_run_json_that_says_nothing_is_told(content: str, tmp_path: Path) -> None:
    begun(tmp_path, digits())
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(ConfigError, match=r"run\.json does not say what runs there"):
        begun(tmp_path, digits())


def test_another_test_set_and_a_checkpoint_as_the_folder_are_refused(tmp_path: Path) -> None:
    begun(tmp_path, digits())
    with pytest.raises(ConfigError, match="holds a run with images 20, not 30"):
        train(recipe("digits", SMALL), digits(), digits("test", 30), tmp_path, console=Console(quiet=True))
    with pytest.raises(ConfigError, match="checkpoint is a checkpoint, and --out is the folder of a run"):
        begun(tmp_path / "checkpoint", digits())
