"""What would fail after the last step is refused before the first one."""

from __future__ import annotations

import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from sovit.errors import ConfigError, ServiceError
from train.build import spec_of
from train.data.checks import check_splits
from train.data.dataset import Dataset
from train.data.load import load_dataset
from train.deliver import check_delivery
from train.loop import TooManyBadImages, train
from train.preflight import unseen_pixels
from train.settings import recipe

SMALL = ["width=16", "depth=1", "mlp_dim=32", "num_heads=2", "steps=12", "warmup_steps=1", "batch_size=16"]


def digits(split: str, count: int) -> Dataset:
    whole = load_dataset("digits", split)  # type: ignore[arg-type]
    return replace(whole, images=whole.images[:count], targets=whole.targets[:count])


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_split_of_which_nothing_can_be_decoded_is_refused_at_once(split: str, tmp_path: Path) -> None:
    sets = {"train": digits("train", 64), "test": digits("test", 20)}
    sets[split] = replace(sets[split], images=[b"none"] * len(sets[split]))
    with pytest.raises(ConfigError, match=f"none of the {len(sets[split])} images could be decoded"):
        train(recipe("digits", SMALL), sets["train"], sets["test"], tmp_path / "run", console=Console(quiet=True))
    assert not (tmp_path / "run").exists()


def test_a_class_without_an_image_that_can_be_used_ends_the_run(tmp_path: Path) -> None:
    whole = digits("train", 64)
    images = [b"none" if target == 3 else image for image, target in zip(whole.images, whole.targets, strict=True)]
    console = Console(quiet=True)
    with pytest.raises(TooManyBadImages, match="no image of class 3 could be used; the first is image 2 of"):
        train(recipe("digits", SMALL), replace(whole, images=images), digits("test", 20), tmp_path, console=console)


def test_a_class_that_is_not_judged_is_told() -> None:
    whole = digits("test", 60)
    kept = np.flatnonzero(whole.targets != 7)
    judged = replace(whole, images=[whole.images[index] for index in kept.tolist()], targets=whole.targets[kept])
    assert check_splits(digits("train", 64), whole) == ()
    (warning,) = check_splits(digits("train", 64), judged)
    assert "digits (test) has no image of 7:" in warning


def test_pixels_that_no_patch_covers_are_told() -> None:
    classes = tuple("ab")
    assert unseen_pixels(spec_of(recipe("digits", []), classes)) == ()
    (warning,) = unseen_pixels(spec_of(recipe("digits", ["image_size=9x8"]), classes))
    assert "patches of 2 px cover 8 x 8 of 9 x 8 px" in warning


def test_a_delivery_that_would_fail_is_refused(tmp_path: Path) -> None:
    (tmp_path / "artifact").mkdir()
    check_delivery(tmp_path / "artifact", None)
    (tmp_path / "artifact" / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is no artifact of sovit's"):
        check_delivery(tmp_path / "artifact", None)
    for port in (0, 70_000):
        with pytest.raises(ConfigError, match=f"--port {port} is not in"):
            check_delivery(tmp_path / "none", port)
    with socket.create_server(("127.0.0.1", 0)) as busy, pytest.raises(ServiceError, match="cannot listen on"):
        check_delivery(tmp_path / "none", busy.getsockname()[1])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["head_bias=1e39"], r"head_bias is 1e\+39, its size is at most 100"),
        (["threads=99999999"], "threads is 99999999, its size is at most 1024"),
        (["workers=1000"], "workers is 1000"),
        (["randaugment_count=999999"], "randaugment_count is 999999"),
        (["stochastic_depth=0.99999999"], "stochastic_depth is 0.99999999"),
        (["shift_fraction=3"], "shift_fraction is 3"),
        (["rotate_degrees=1e9"], "rotate_degrees is 1000000000"),
        (["probes=knn,knn"], "each can be fitted once"),
        (["distill_weight=0.3"], "distill_weight has no effect here: it needs teacher"),
        (["pad_pixels=3"], "pad_pixels has no effect here: it needs crop=pad"),
        (["init=x", "pool=gap"], "pool has no effect here"),
        (["width=none"], "the model lacks width: set what is missing"),
    ],
)
def test_settings_without_effect_or_sense_are_named(settings: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        recipe("digits", settings)


def test_one_way_to_say_it_takes_the_place_of_another() -> None:
    by_epochs = recipe("digits", ["epochs=2"])
    assert (by_epochs.steps, by_epochs.epochs) == (0, 2)
    tuned = recipe("digits", ["init=folder"])
    assert (tuned.init, tuned.width, tuned.num_heads) == ("folder", None, None)
    assert recipe("digits", ["warmup_fraction=0.5"]).warmup_steps == 0
    with pytest.raises(ConfigError, match="either steps or epochs"):
        recipe("digits", ["epochs=2", "steps=3"])


def test_sigterm_before_the_first_step_ends_with_0(tmp_path: Path) -> None:
    # Between the handler and the loop: the moment at which the torch that it waits for is imported.
    script = (
        "import builtins, os, signal, sys\n"
        "real = builtins.__import__\n"
        "def imported(name, *rest):\n"
        "    if name == 'train.loop':\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "    return real(name, *rest)\n"
        "builtins.__import__ = imported\n"
        "from sovit.cli import main\n"
        f"sys.exit(main(['train', 'digits', '--data', 'digits', '--out', {str(tmp_path / 'run')!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "stopped where no step was being made" in done.stdout
    assert not (tmp_path / "run").exists()
