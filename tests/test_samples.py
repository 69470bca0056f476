from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

from sovit.preprocess import Preprocess
from tests.conftest import png
from train.config import TrainConfig
from train.data.dataset import Dataset
from train.data.load import load_dataset
from train.loader import test_batches as evaluation_batches
from train.loader import train_batches
from train.loop import TooManyBadImages, train
from train.samples import Batch, TrainSamples, decoded
from train.settings import recipe
from train.world import World

CPU = torch.device("cpu")
PREPROCESS = Preprocess(image_size=(16, 16))


def config(*more: str) -> TrainConfig:
    plain = ("rotate_degrees=0", "shift_fraction=0", "scale_fraction=0", "image_size=16", "batch_size=8")
    return recipe("digits", ["keep_decoded=false", *plain, *more])


def pictures(count: int) -> Dataset:
    """Each image one grey level, its own."""
    images = [np.full((20, 24, 3), index, np.uint8) for index in range(count)]
    return Dataset("greys", images, np.arange(count) % 2, ("even", "odd"))


class Positions:
    """Samples that are their own positions."""

    def __getitems__(self, positions: list[int]) -> Batch:
        return Batch(torch.zeros(len(positions), 1, 1, 3), torch.tensor(positions), {})


def test_an_epoch_has_every_image_once_and_the_next_another_order() -> None:
    samples = TrainSamples(pictures(50), PREPROCESS, config())
    batches = [samples.__getitems__(list(range(start, start + 10))) for start in range(0, 100, 10)]
    seen = torch.cat([batch.image_BYXC[:, 0, 0, 0] for batch in batches]).tolist()
    assert sorted(seen[:50]) == sorted(seen[50:]) == list(range(50))
    assert seen[:50] != seen[50:]
    targets = torch.cat([batch.target_B for batch in batches]).tolist()
    assert targets == [image % 2 for image in seen]


@pytest.mark.parametrize("crop", ["squash", "pad", "inception"])
def test_a_sample_depends_on_its_own_numbers_alone(crop: str) -> None:
    rng = np.random.default_rng(0)
    images = [png(rng.integers(0, 255, (40, 50, 3), np.uint8)) for _ in range(6)]
    dataset = Dataset("noise", images, np.arange(6) % 2, ("a", "b"))
    samples = TrainSamples(dataset, PREPROCESS, config(f"crop={crop}", "flip=true", "randaugment_count=2"))
    together = samples.__getitems__([3, 9, 14])
    alone = [samples.__getitems__([position]) for position in (3, 9, 14)]
    assert together.image_BYXC.shape == (3, 16, 16, 3)
    assert torch.equal(together.image_BYXC, torch.cat([batch.image_BYXC for batch in alone]))


def test_one_that_cannot_be_used_is_named_and_the_next_stands_in() -> None:
    dataset = pictures(10)
    images = [b"\xff\xd8\xff broken" if index in (4, 5) else image for index, image in enumerate(dataset.images)]
    samples = TrainSamples(Dataset("greys", images, dataset.targets, dataset.classes), PREPROCESS, config())
    batch = samples.__getitems__(list(range(10)))
    seen = batch.image_BYXC[:, 0, 0, 0].tolist()
    assert set(batch.bad) == {4, 5}
    assert sorted(seen) == [0, 1, 2, 3, 6, 6, 6, 7, 8, 9]
    assert batch.target_B.tolist() == [image % 2 for image in seen]


def test_images_that_cannot_be_used_are_counted_in_a_run_up_to_the_limit(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for name, level in (("dark", 20), ("light", 220)):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for index in range(12):
                Image.new("RGB", (8, 8), (level, level, index)).save(folder / f"{index}.png")
    for index in range(3):
        (tmp_path / "train" / "dark" / f"{index}.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    (tmp_path / "test" / "light" / "0.png").write_bytes(b"nothing")
    sets = [load_dataset(str(tmp_path), "train"), load_dataset(str(tmp_path), "test")]
    small = ["width=16", "depth=1", "mlp_dim=16", "num_heads=2", "steps=12", "warmup_steps=1", "batch_size=8"]
    out = tmp_path / "out"
    result = train(recipe("digits", small), sets[0], sets[1], out, console=Console(quiet=True))
    told = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert {Path(entry["left_out"]).name for entry in told if "left_out" in entry} == {"0.png", "1.png", "2.png"}
    assert (result.evaluation.images, len(result.evaluation.failed)) == (23, 1)
    with pytest.raises(TooManyBadImages, match=r"3 images could not be used .* most_bad_images is 2"):
        train(
            recipe("digits", [*small, "most_bad_images=2"]), sets[0], sets[1], tmp_path / "again",
            console=Console(quiet=True),
        )  # fmt: skip


def test_decoded_once_is_the_same_data() -> None:
    dataset = Dataset("x", [png(np.full((30, 30, 3), 99, np.uint8)), b"broken"], np.array([0, 1]), ("a", "b"))
    found = decoded(dataset, PREPROCESS)
    assert np.array_equal(np.asarray(found.images[0]), PREPROCESS(dataset.images[0]))
    assert found.images[1] == b"broken"


@given(st.sampled_from([1, 2, 4, 8]), st.integers(0, 40))
@settings(max_examples=20, deadline=None)
def test_the_processes_parts_of_a_batch_make_the_batch(processes: int, start: int) -> None:
    def part(rank: int) -> list[Batch]:
        world = World(rank, processes, CPU)
        return list(islice(train_batches(Positions(), start=start, batch_size=16, workers=0, world=world), 3))

    parts = [part(rank) for rank in range(processes)]
    for index, batch in enumerate(zip(*parts, strict=True)):
        first = (start + index) * 16
        assert torch.cat([one.target_B for one in batch]).tolist() == list(range(first, first + 16))


@given(st.integers(1, 40), st.sampled_from([1, 2, 3, 8]), st.integers(1, 9))
@settings(max_examples=30, deadline=None)
def test_the_processes_share_an_evaluation(size: int, processes: int, batch_size: int) -> None:
    def part(rank: int) -> list[list[int]]:
        world = World(rank, processes, CPU)
        batches = evaluation_batches(Positions(), indices=range(size), batch_size=batch_size, workers=0, world=world)
        return [batch.target_B.tolist() for batch in batches]

    parts = [part(rank) for rank in range(processes)]
    assert len({len(one) for one in parts}) == 1, "as many batches in each, or one would wait for ever"
    flat = [index for one in parts for batch in one for index in batch]
    assert flat[:size] == list(range(size))


def test_workers_change_nothing() -> None:
    samples = TrainSamples(pictures(20), PREPROCESS, config("flip=true", "crop=pad"))
    world = World(0, 1, CPU)
    found = [
        list(islice(train_batches(samples, start=2, batch_size=8, workers=workers, world=world), 5))
        for workers in (0, 2)
    ]
    for one, other in zip(*found, strict=True):
        assert torch.equal(one.image_BYXC, other.image_BYXC)
        assert torch.equal(one.target_B, other.target_B)
