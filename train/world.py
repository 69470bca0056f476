"""The processes of a run: one, or those that torchrun started.

    torchrun --nproc-per-node 2 -m sovit train cifar10 --data DATA --out DIR

Everything that has to be the same in all of them goes through here.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore

from sovit.errors import SoViTError

_DRAIN_SECONDS: Final = 10


@dataclass(frozen=True)
class World:
    """This process among the run's processes, and the device it computes on."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes the log and the checkpoint."""
        return self.rank == 0

    def sums(self, values: Sequence[float]) -> list[float]:
        """The sums of these numbers over all processes."""
        if self.size == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor)
        return tensor.tolist()

    def gathered(self, value: Any) -> list[Any]:
        """Every process's value, by rank."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return found

    def on_main(self, action: Callable[[], object]) -> None:
        """Have the first process do something; its error of ours is raised in all of them, so that none waits."""
        error: SoViTError | None = None
        if self.is_main:
            try:
                action()
            except SoViTError as found:
                error = found
        if (error := self.gathered(error)[0]) is not None:
            raise error

    def barrier(self) -> None:
        """Wait for the others."""
        if self.size > 1:
            dist.barrier()


def launched() -> tuple[int, int]:
    """This process's rank and the number of processes, as torchrun says them; 0 and 1 without it."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def joined(*, group: bool = False) -> Iterator[World]:
    """This process's place in the world of its launcher. `group` makes a process group of one process as well.

    CPU tensors go through gloo and CUDA's through NCCL. A group that exists already is used and left as it is.
    """
    rank, size = launched()
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    begun = False
    if dist.is_initialized():
        size, rank = dist.get_world_size(), dist.get_rank()
    elif size > 1 or group:
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        if size == 1:
            dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
        else:
            dist.init_process_group(backend)
        begun = True
    try:
        yield World(rank, size, device)
    finally:
        if begun:
            _drain(size)
            dist.destroy_process_group()


def _drain(size: int) -> None:
    """Let gloo's thread let go of its last tensors, which takes the interpreter's lock.

    DDP's own part holds that lock when it is freed and waits for the thread: both would wait for ever (torch 2.13).
    """
    if size > 1:
        with suppress(RuntimeError, ValueError):  # somebody has gone already, or it is another backend
            dist.monitored_barrier(timeout=timedelta(seconds=_DRAIN_SECONDS))
    gc.collect()
