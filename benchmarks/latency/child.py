"""One model in one runtime in a fresh process: load, warm up, time, and print it all as one line of JSON.

    python -m benchmarks.latency.child '{"artifact": "runs/demo/artifact", "runtime": "onnxruntime", ...}'

The time is the runtime's call alone, on uint8 images already resized: no decoding, no HTTP.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.latency import products
from benchmarks.latency.device import device_memory
from benchmarks.latency.energy import measured_energy
from benchmarks.opening import is_on_gpu, open_any
from benchmarks.process import first_to_go, peak_memory
from sovit.artifact import Artifact, read_manifest
from sovit.errors import SoViTError
from sovit.parity import compare
from sovit.runtime.base import Runtime

# Warm-up ends when the medians of two groups of runs in a row agree, or after two groups or more that took so long.
_GROUP: Final = 3
_AGREE: Final = 0.02
_MOST_SECONDS: Final = 10.0
_COMPARED: Final = 4  # images; parity of the artifact was measured on all when it was made


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a child does: at least `rounds` timed runs of each batch, for at least `seconds` of measured time.

    `checkpoint` is for PyTorch, which takes no artifact.
    """

    artifact: str
    runtime: str
    threads: int
    batches: tuple[int, ...]
    rounds: int
    seconds: float
    checkpoint: str = ""


@dataclass(frozen=True, kw_only=True)
class Timed:
    """One batch size: seconds of every timed run, and what it took to get there."""

    batch: int
    seconds: list[float]
    warmup_runs: int
    warmed: bool
    first_seconds: float
    peak_memory_bytes: int
    device_memory_bytes: int | None
    joules: float | None


def main() -> int:
    """Do the job in the first argument."""
    first_to_go()
    try:
        print(json.dumps(_done(Job(**json.loads(sys.argv[1])))), flush=True)
    except SoViTError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


def _done(job: Job) -> dict[str, Any]:
    began = time.perf_counter()
    folder = Path(job.artifact)
    runtime = open_any(folder, job.runtime, threads=job.threads, checkpoint=job.checkpoint)
    load_seconds = time.perf_counter() - began
    images, reference = Artifact(folder, read_manifest(folder)).reference()
    gpu = is_on_gpu(job.runtime)
    found = [measure(runtime, images, batch, job.rounds, job.seconds, gpu=gpu) for batch in sorted(job.batches)]
    return {
        "runtime": job.runtime,
        "load_seconds": load_seconds,
        "matmul_flops": products.on_gpu(runtime.precision) if gpu else products.on_cpu(),
        "cosine": min(checked_cosine(runtime, images, reference["pre_logits"], size) for size in {1, *job.batches}),
        "batches": [asdict(one) for one in found],
    }


def measure(
    runtime: Runtime,
    images_BYXC: NDArray[np.uint8],
    batch: int,
    rounds: int,
    least_seconds: float,
    *,
    gpu: bool = False,
) -> Timed:
    """Warm up, and time at least `rounds` runs of a batch that take at least `least_seconds` together."""
    images = images_BYXC[np.arange(batch) % len(images_BYXC)]

    def run() -> float:
        began = time.perf_counter()
        runtime.run(images)
        return time.perf_counter() - began

    first = run()
    warmup, warmed = warm_up(run)
    with measured_energy(gpu=gpu) as stretch:
        seconds = [run() for _ in range(rounds)]
        while (taken := sum(seconds)) < least_seconds:
            seconds += [run() for _ in range(max(1, int((least_seconds - taken) / float(np.median(seconds)))))]
    return Timed(
        batch=batch,
        seconds=seconds,
        warmup_runs=1 + warmup,
        warmed=warmed,
        first_seconds=first,
        peak_memory_bytes=peak_memory(),
        device_memory_bytes=device_memory() if gpu else None,
        joules=stretch.joules,
    )


def warm_up(run: Callable[[], float], most_seconds: float = _MOST_SECONDS) -> tuple[int, bool]:
    """Run until it no longer gets faster; returns how many runs that took, and whether it did not merely take too long.

    A machine that others use too may never settle within 2 %: what comes then is noise, and the intervals show it.
    """
    last = float(np.median([run() for _ in range(_GROUP)]))
    runs, began = _GROUP, time.perf_counter()
    while True:
        median = float(np.median([run() for _ in range(_GROUP)]))
        runs += _GROUP
        if abs(median - last) <= _AGREE * last:
            return runs, True
        if time.perf_counter() - began >= most_seconds:
            return runs, False
        last = median


def checked_cosine(
    runtime: Runtime, images_BYXC: NDArray[np.uint8], reference_BD: NDArray[np.float32], batch: int
) -> float:
    """The smallest cosine to fp32 PyTorch's embeddings of a few images: what was timed computes the right thing.

    They are run in as many batches as it takes, of the size that was timed. Raises `ParityError` where it does not.
    """
    chosen = np.arange(-(-_COMPARED // batch) * batch) % len(images_BYXC)
    batches = np.split(images_BYXC[chosen], len(chosen) // batch)
    found_BD = np.concatenate([runtime.run(one)["pre_logits"] for one in batches])
    reference = {"pre_logits": reference_BD[chosen]}
    found = compare({"pre_logits": found_BD}, reference, runtime=runtime.name, precision=runtime.precision)
    return found.require().cosine


if __name__ == "__main__":
    sys.exit(main())
