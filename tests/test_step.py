"""A step computes the same however it is done: in parts, with activations computed again, compiled."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from rich.console import Console

from sovit.checkpoint import load_model
from sovit.errors import ConfigError
from tests.conftest import tiny_spec
from train.data.dataset import Dataset
from train.data.load import load_dataset
from train.loop import train
from train.settings import recipe

SMALL = (
    "width=16", "depth=2", "mlp_dim=32", "num_heads=2", "steps=12", "warmup_steps=2", "batch_size=32", "log_every=1",
    "mixup=0.5", "erase=0.2", "stochastic_depth=0.3", "learning_rate=0.01",
)  # fmt: skip


def losses(out: Path, *settings: str) -> list[float]:
    train_set, test_set = load_dataset("digits", "train"), load_dataset("digits", "test")
    few = Dataset(test_set.name, test_set.images[:40], test_set.targets[:40], test_set.classes)
    train(recipe("digits", [*SMALL, *settings]), train_set, few, out, console=Console(quiet=True))
    entries = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [entry["loss"] for entry in entries if "loss" in entry]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    found = losses(tmp_path_factory.mktemp("plain"))
    assert len(found) == 12
    assert found[-1] < found[0]
    return found


@pytest.mark.parametrize("how", ["accumulate=4", "checkpoint_activations=true", "parallel=fsdp"])
def test_how_a_step_is_done_changes_nothing(how: str, plain: list[float], tmp_path: Path) -> None:
    assert losses(tmp_path, how) == pytest.approx(plain, rel=1e-6)


@pytest.mark.slow
def test_compiled_blocks_compute_the_same(plain: list[float], tmp_path: Path) -> None:
    assert losses(tmp_path / "fp32", "compile=true") == pytest.approx(plain, rel=1e-5)
    half = losses(tmp_path / "bf16", "compile=true", "precision=bf16")
    assert half == pytest.approx(plain, rel=0.02)


def test_bfloat16_is_near(plain: list[float], tmp_path: Path) -> None:
    found = losses(tmp_path, "precision=bf16")
    assert found == pytest.approx(plain, rel=0.02)
    assert found != plain


@pytest.mark.parametrize("optimizer", [("adafactor", "0.003"), ("sgd", "0.03")])
def test_the_other_optimisers_learn(optimizer: tuple[str, str], tmp_path: Path) -> None:
    easy = ("mixup=0", "erase=0", "stochastic_depth=0", "weight_decay=0", "label_smoothing=0")
    found = losses(tmp_path, f"optimizer={optimizer[0]}", f"learning_rate={optimizer[1]}", "steps=100", *easy)
    assert sum(found[-5:]) < 0.9 * sum(found[:5])


def test_a_checkpoint_is_a_start_and_a_teacher(tmp_path: Path) -> None:
    losses(tmp_path / "teacher", "steps=80", "mixup=0")
    teacher = str(tmp_path / "teacher" / "checkpoint")
    shapes = [f"{name}=none" for name in ("width", "depth", "mlp_dim", "num_heads", "patch_size")]
    tuned = losses(tmp_path / "tuned", *shapes, f"init={teacher}", "layer_decay=0.5", "mixup=0")
    assert tuned[0] == pytest.approx(2.3026, abs=1e-3), "the head is new"
    start, end = (load_model(path / "checkpoint") for path in (tmp_path / "teacher", tmp_path / "tuned"))
    moved = {
        name: float((end.state_dict()[name] - tensor).norm() / tensor.norm())
        for name, tensor in start.state_dict().items()
        if name in ("patch_embed.weight", "blocks.1.mlp.fc1.weight")
    }
    assert 0 < moved["patch_embed.weight"] < moved["blocks.1.mlp.fc1.weight"], "lower layers learn more slowly"
    soft = losses(tmp_path / "student", f"teacher={teacher}", "distill_weight=0.9", "mixup=0")
    assert soft != losses(tmp_path / "alone", "mixup=0")
    assert soft[-1] < soft[0]


def test_a_teacher_of_other_classes_is_refused(tmp_path: Path) -> None:
    from sovit.checkpoint import save_checkpoint
    from sovit.model import ViT

    spec = tiny_spec(pool="map")
    torch.manual_seed(0)
    save_checkpoint(tmp_path / "teacher", ViT(spec.model), spec, {})
    with pytest.raises(ConfigError, match="has other classes than the data"):
        losses(tmp_path / "out", f"teacher={tmp_path / 'teacher'}")


def test_a_batch_that_does_not_divide_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"multiple of 5: processes x accumulate\."):
        losses(tmp_path, "accumulate=5", "mixup=0")
