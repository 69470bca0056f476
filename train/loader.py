"""Batches ahead of their use, from worker processes. The order is a function of positions, so it needs no state."""

from __future__ import annotations

import itertools
import signal
from collections.abc import Generator, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader

from train.samples import Batch
from train.signals import STOPPING
from train.world import World

# To be closed: its workers take no notice of the signal by which Python would end them at exit, and be waited for.
Batches = Generator[Batch, None, None]
_AHEAD = 4  # batches that each worker has ready


class Samples(Protocol):
    """What gives a batch for a list of positions."""

    def __getitems__(self, positions: list[int]) -> Batch:
        """The batch."""
        ...


def train_batches(samples: Samples, *, start: int, batch_size: int, workers: int, world: World) -> Batches:
    """This process's part of every batch from step `start` on, without end."""
    local = batch_size // world.size
    firsts = itertools.count(start * batch_size + world.rank * local, batch_size)
    return _loaded(samples, (list(range(first, first + local)) for first in firsts), workers, world.device)


def test_batches(samples: Samples, *, indices: Sequence[int], batch_size: int, workers: int, world: World) -> Batches:
    """This process's part of the images with these indices, each once, in batches of at most `batch_size`.

    All processes get the same number of batches; the last ones begin again at the first images.
    """
    each = -(-len(indices) // world.size)
    mine = [indices[place % len(indices)] for place in range(world.rank * each, (world.rank + 1) * each)]
    parts = [mine[start : start + batch_size] for start in range(0, each, batch_size)]
    return _loaded(samples, parts, workers, world.device)


def _loaded(samples: Samples, positions: Any, workers: int, device: torch.device) -> Batches:
    loader: DataLoader[Any] = DataLoader(
        samples,  # type: ignore[arg-type]  # of a Dataset it is only ever asked __getitems__
        batch_sampler=_Lists(positions),
        collate_fn=_as_it_is,
        num_workers=workers,
        prefetch_factor=_AHEAD if workers else None,
        pin_memory=device.type == "cuda",
        worker_init_fn=_quiet_worker,
    )
    batches = iter(loader)
    try:
        yield from batches
    finally:
        del batches  # the last to hold it: whatever an error's traceback still refers to, the workers end here


class _Lists:
    """An iterable of lists of positions, as DataLoader's batch sampler."""

    def __init__(self, lists: Any) -> None:
        self._lists = lists

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self._lists)


def _as_it_is(batch: Any) -> Any:
    return batch


def _quiet_worker(_: int) -> None:
    """One thread; and a signal to the whole process group is for the loop to hear, which ends its workers itself."""
    torch.set_num_threads(1)
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
