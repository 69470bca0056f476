"""Latency of artifacts side by side, in one process and one interleaved run.

    sovit bench latency runs/demo/artifact S/2 --image-size 8

A variant is exported with random weights first, parity check included: no parity, no number. Rows take turns, so that
a machine that slows down slows all of them; the ratio to the first row is taken turn by turn. The time is the
runtime's call alone, on uint8 images already resized: no decoding, no HTTP.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from rich.console import Console
from rich.progress import Progress

from export.reference import reference_images
from export.to_onnx import export_onnx, from_random
from sovit.artifact import Artifact, is_artifact, open_artifact
from sovit.config import variant_config
from sovit.cost import cost
from sovit.errors import ConfigError
from sovit.runtime.base import Runtime
from sovit.runtime.open import open_runtime
from sovit.runtime.profile import AUTO

# Warm-up ends when the medians of two groups of runs in a row agree, or after so many groups.
_GROUP: Final = 3
_AGREE: Final = 0.02
_MOST_GROUPS: Final = 10


@dataclass(frozen=True)
class Row:
    """One artifact at one batch size. Times are in milliseconds for a whole batch; `ratio` is to the first row."""

    target: str
    runtime: str
    precision: str
    batch: int
    runs: int
    warmup_runs: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    images_per_second: float
    gflops_per_image: float
    achieved_gflops: float
    ratio: float


def resolve(target: str, image_size: tuple[int, int], num_classes: int, scratch: Path) -> Artifact:
    """An artifact folder, or a variant exported with random weights into `scratch`."""
    folder = Path(target)
    if is_artifact(folder):
        return open_artifact(folder)
    if folder.is_dir():
        raise ConfigError(f"{target} is no artifact: manifest.json is missing.")
    source = from_random(target, variant_config(target, image_size=image_size, num_classes=num_classes))
    out = scratch / target.replace("/", "-")
    return export_onnx(source, out, reference_images(source.spec.preprocess, None))


def measure(
    artifacts: Sequence[tuple[str, Artifact]],
    batches: Sequence[int],
    *,
    rounds: int,
    runtime: str = AUTO,
    threads: int,
    console: Console,
) -> list[Row]:
    """Time every artifact at every batch size, in turns. The first artifact is the measure of the others."""
    lanes = [(target, artifact, open_runtime(artifact, runtime, threads=threads)) for target, artifact in artifacts]
    cases = [(lane, batch) for batch in batches for lane in lanes]
    inputs = [_images(artifact, batch) for (_, artifact, _), batch in cases]
    seconds = np.zeros((len(cases), rounds))
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("measuring", total=len(cases) * rounds)
        warmups = [_warm_up(lane[2], image) for (lane, _), image in zip(cases, inputs, strict=True)]
        for turn in range(rounds):
            for index, ((_, _, lane), _) in enumerate(cases):
                began = time.perf_counter()
                lane.run(inputs[index])
                seconds[index, turn] = time.perf_counter() - began
                progress.advance(task)
    for _, _, lane in lanes:
        lane.close()
    rows = []
    for index, ((target, artifact, lane), batch) in enumerate(cases):
        first = (index // len(lanes)) * len(lanes)
        p50, p90, p99 = np.percentile(seconds[index], (50, 90, 99))
        flops = cost(artifact.manifest.model).flops
        rows.append(
            Row(
                target=target,
                runtime=lane.name,
                precision=lane.precision,
                batch=batch,
                runs=rounds,
                warmup_runs=warmups[index],
                p50_ms=float(p50 * 1e3),
                p90_ms=float(p90 * 1e3),
                p99_ms=float(p99 * 1e3),
                images_per_second=float(batch / p50),
                gflops_per_image=flops / 1e9,
                achieved_gflops=float(batch * flops / p50 / 1e9),
                ratio=float(np.median(seconds[index] / seconds[first])),
            )
        )
    return rows


def _images(artifact: Artifact, batch: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    images, _ = artifact.reference()
    return images[np.arange(batch) % len(images)]


def _warm_up(runtime: Runtime, images: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> int:
    """Run until it no longer gets faster; returns how many runs that took."""
    last: float | None = None
    for group in range(1, _MOST_GROUPS + 1):
        times = []
        for _ in range(_GROUP):
            began = time.perf_counter()
            runtime.run(images)
            times.append(time.perf_counter() - began)
        median = float(np.median(times))
        if last is not None and abs(median - last) <= _AGREE * last:
            return group * _GROUP
        last = median
    return _MOST_GROUPS * _GROUP
