"""What the loader reaches of its own functions' speed, and what the loop adds to the steps themselves.

    python -m train.speed IMAGES [--out FILE]

Loader: random crops of JPEG files, decoded, resized to 224 px and flipped, as `sovit train` gets them in batches from
worker processes, against as many processes that call the decode and resize functions in a bare loop; in turns, the
median of the ratios. Loop: a short run of a ViT of S/16's shape, whose log says which part of the time went into
forward and backward, the optimiser, and waiting for data; what is left over is the loop's own.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from multiprocessing.synchronize import Barrier
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np
import torch
from rich.console import Console

from sovit.cores import available_cores
from sovit.errors import ConfigError, SoViTError
from sovit.jsonio import must_be_writable, write_json
from sovit.preprocess import Preprocess
from train.augment.crop import decode_for_crop
from train.config import TrainConfig
from train.data.dataset import Dataset
from train.data.order import sample_at
from train.loader import train_batches
from train.loop import train
from train.randomness import generator
from train.samples import TrainSamples
from train.signals import Stopped
from train.world import World

_BATCH: Final = 64
_BATCHES: Final = 24  # of a turn
_SIZE: Final = (224, 224)
_LOADER: Final = TrainConfig(
    width=384, depth=12, mlp_dim=1536, num_heads=6, patch_size=16, image_size=_SIZE, steps=1, batch_size=_BATCH,
    learning_rate=1e-3, crop="inception", flip=True,
)  # fmt: skip
_LOOP: Final = replace(_LOADER, steps=16, batch_size=8, log_every=4, workers=1)


@dataclass(frozen=True, kw_only=True)
class LoaderSpeed:
    """Images a second by turn, on so many worker processes, and the median of loader over bare loop."""

    workers: int
    bare: tuple[float, ...]
    loader: tuple[float, ...]
    ratio: float


@dataclass(frozen=True, kw_only=True)
class LoopShares:
    """Parts of a run's time, the median of what its log says; `outside` is all but the first two."""

    forward_backward: float
    optimizer: float
    data: float
    outside: float


def loader_speed(dataset: Dataset, workers: int, rounds: int) -> LoaderSpeed:
    """Both in turns."""
    samples = TrainSamples(dataset, Preprocess(image_size=_SIZE), _LOADER)
    bare, loader = [], []
    for _ in range(rounds):
        bare.append(_bare(samples, workers))
        loader.append(_loader(samples, workers))
    ratio = median(ours / plain for ours, plain in zip(loader, bare, strict=True))
    return LoaderSpeed(workers=workers, bare=tuple(bare), loader=tuple(loader), ratio=ratio)


def loop_shares(dataset: Dataset, out: Path) -> LoopShares:
    """A run with all that a run does, on the first images. The first entry of its log is left out as warm-up."""
    train(_LOOP, dataset, replace(dataset, images=dataset.images[:8], targets=dataset.targets[:8]), out,
          console=Console(quiet=True))  # fmt: skip
    entries = [json.loads(line) for line in (out / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = [entry for entry in entries if "loss" in entry][1:]
    parts = {name: median(entry[name] for entry in steps) for name in ("forward_backward", "optimizer", "data")}
    outside = median(1 - entry["forward_backward"] - entry["optimizer"] for entry in steps)
    return LoopShares(**parts, outside=outside)


def _loader(samples: TrainSamples, workers: int) -> float:
    """Images a second once every worker has handed over what it had ready."""
    world = World(0, 1, torch.device("cpu"))
    batches = train_batches(samples, start=0, batch_size=_BATCH, workers=workers, world=world)
    with closing(batches):
        for _ in range(workers):
            next(batches)
        began = time.perf_counter()
        for _ in range(_BATCHES):
            next(batches)
        return _BATCH * _BATCHES / (time.perf_counter() - began)


def _bare(samples: TrainSamples, workers: int) -> float:
    """The same images in as many processes, without batches, flips and handing over."""
    context = multiprocessing.get_context("fork")  # as the loader's workers
    barrier, spans = context.Barrier(workers), context.SimpleQueue()
    arguments = [(samples, worker, workers, barrier, spans) for worker in range(workers)]
    processes = [context.Process(target=_decode, args=one) for one in arguments]
    for process in processes:
        process.start()
    found = [spans.get() for _ in processes]
    for process in processes:
        process.join()
    if broken := [one for one in found if isinstance(one, SoViTError)]:
        raise broken[0]
    seconds: float = max(end for _, end in found) - min(begin for begin, _ in found)
    return _BATCH * _BATCHES / seconds


def _decode(samples: TrainSamples, worker: int, workers: int, barrier: Barrier, spans: Any) -> None:
    torch.set_num_threads(1)
    positions = np.arange(worker, _BATCH * _BATCHES, workers)
    epochs, indices = sample_at(positions, len(samples.dataset), samples.config.seed)
    barrier.wait()
    began = time.perf_counter()
    try:
        for epoch, index in zip(epochs.tolist(), indices.tolist(), strict=True):
            rng = generator(samples.config.seed, "augment", epoch, index)
            decode_for_crop(samples.dataset.images[index], _SIZE, rng)
    except SoViTError as error:
        spans.put(type(error)(f"{samples.dataset.images[index]}: {error}"))
        return
    spans.put((began, time.perf_counter()))


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path, help="a folder of JPEG files")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="write the result as JSON there")
    arguments = parser.parse_args()
    must_be_writable(arguments.out)
    if not arguments.images.is_dir():
        raise ConfigError(f"{arguments.images} is no folder: it must hold JPEG files.")
    if arguments.rounds < 1:
        raise ConfigError(f"--rounds is {arguments.rounds}, it must be at least 1.")
    paths = sorted(path for path in arguments.images.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    if len(paths) < _LOOP.batch_size:
        raise ConfigError(
            f"{arguments.images} holds {len(paths)} JPEG files (*.jpg, *.jpeg), and it takes {_LOOP.batch_size}."
        )
    dataset = Dataset(str(arguments.images), paths, np.arange(len(paths)) % 2, ("even", "odd"))
    loader = loader_speed(dataset, available_cores(), arguments.rounds)
    print(
        f"loader: {median(loader.loader):,.0f} images/s with {loader.workers} workers, bare loop "
        f"{median(loader.bare):,.0f}; {loader.ratio:.1%} of it in the median of {arguments.rounds} turns"
    )
    with tempfile.TemporaryDirectory() as folder:
        loop = loop_shares(dataset, Path(folder) / "run")
    print(
        f"loop: forward and backward {loop.forward_backward:.1%}, optimiser {loop.optimizer:.1%}, waiting for data "
        f"{loop.data:.1%}; {loop.outside:.1%} outside the first two"
    )
    if arguments.out:
        write_json(arguments.out, {"images": len(paths), "loader": asdict(loader), "loop": asdict(loop)})


if __name__ == "__main__":
    try:
        _main()
    except Stopped as stopped:
        print("stopped: nothing was measured to the end.", file=sys.stderr)
        sys.exit(128 + stopped.signal)
    except SoViTError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
