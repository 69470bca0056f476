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
from typing import Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.latency.energy import measured_energy
from benchmarks.opening import open_any
from benchmarks.process import first_to_go, peak_memory
from sovit.artifact import Artifact, read_manifest
from sovit.runtime.base import Runtime

# Warm-up ends when the medians of two groups of runs in a row agree, or after so many groups.
_GROUP: Final = 3
_AGREE: Final = 0.02
_MOST_GROUPS: Final = 10
_PRODUCT_SIDE: Final = 1536
_PRODUCT_RUNS: Final = 5
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
    first_seconds: float
    peak_memory_bytes: int
    joules: float | None


def main() -> None:
    """Do the job in the first argument."""
    first_to_go()
    job = Job(**json.loads(sys.argv[1]))
    began = time.perf_counter()
    folder = Path(job.artifact)
    runtime = open_any(folder, job.runtime, threads=job.threads, checkpoint=job.checkpoint)
    load_seconds = time.perf_counter() - began
    images, reference = Artifact(folder, read_manifest(folder)).reference()
    found = [measure(runtime, images, batch, job.rounds, job.seconds) for batch in sorted(job.batches)]
    result = {
        "runtime": job.runtime,
        "load_seconds": load_seconds,
        "matmul_flops": matmul_flops(),
        "cosine": cosine(runtime, images, reference["pre_logits"]),
        "batches": [asdict(one) for one in found],
    }
    print(json.dumps(result), flush=True)


def measure(runtime: Runtime, images_BYXC: NDArray[np.uint8], batch: int, rounds: int, least_seconds: float) -> Timed:
    """Warm up, and time at least `rounds` runs of a batch that take at least `least_seconds` together."""
    images = images_BYXC[np.arange(batch) % len(images_BYXC)]

    def run() -> float:
        began = time.perf_counter()
        runtime.run(images)
        return time.perf_counter() - began

    first = run()
    warmup = 1 + warm_up(run)
    with measured_energy() as stretch:
        seconds = [run() for _ in range(rounds)]
        while (taken := sum(seconds)) < least_seconds:
            seconds += [run() for _ in range(max(1, int((least_seconds - taken) / float(np.median(seconds)))))]
    return Timed(
        batch=batch,
        seconds=seconds,
        warmup_runs=warmup,
        first_seconds=first,
        peak_memory_bytes=peak_memory(),
        joules=stretch.joules,
    )


def warm_up(run: Callable[[], float]) -> int:
    """Run until it no longer gets faster; returns how many runs that took."""
    last: float | None = None
    for group in range(1, _MOST_GROUPS + 1):
        median = float(np.median([run() for _ in range(_GROUP)]))
        if last is not None and abs(median - last) <= _AGREE * last:
            return group * _GROUP
        last = median
    return _MOST_GROUPS * _GROUP


def cosine(runtime: Runtime, images_BYXC: NDArray[np.uint8], reference_BD: NDArray[np.float32]) -> float:
    """The smallest cosine to fp32 PyTorch's embeddings of a few images: what was timed computes the right thing."""
    found_BD = np.concatenate([runtime.run(image[None])["pre_logits"] for image in images_BYXC[:_COMPARED]])
    expected_BD = reference_BD[:_COMPARED]
    lengths_B = np.linalg.norm(found_BD, axis=1) * np.linalg.norm(expected_BD, axis=1)
    return float(((found_BD * expected_BD).sum(1) / lengths_B).min())


def matmul_flops() -> float:
    """FLOP/s of a float32 matrix product in this process: the best of a few, by numpy's own library."""
    left = np.ones((_PRODUCT_SIDE, _PRODUCT_SIDE), np.float32)
    times = []
    for _ in range(_PRODUCT_RUNS):
        began = time.perf_counter()
        _ = left @ left
        times.append(time.perf_counter() - began)
    return 2 * _PRODUCT_SIDE**3 / min(times)


if __name__ == "__main__":
    main()
