"""One model in one runtime in a fresh process: load, warm up, time, and print it all as one line of JSON.

    python -m benchmarks.latency.child '{"artifact": "runs/demo/artifact", "runtime": "onnxruntime", ...}'

The time is the runtime's call alone, on uint8 images already resized: no decoding, no HTTP.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.latency.energy import measured_energy
from benchmarks.latency.process import first_to_go
from sovit.artifact import Artifact, read_manifest
from sovit.runtime.base import Runtime
from sovit.runtime.open import open_runtime

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
    runtime = _open(job)
    load_seconds = time.perf_counter() - began
    folder = Path(job.artifact)
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
        peak_memory_bytes=_peak_memory(),
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


def _open(job: Job) -> Runtime:
    folder = Path(job.artifact)
    if job.runtime in ("torch", "torch-compile"):
        import torch

        from sovit.checkpoint import load_model
        from sovit.runtime.pytorch import TorchRuntime

        torch.set_num_threads(job.threads)
        runtime = TorchRuntime(load_model(job.checkpoint), read_manifest(folder).preprocess)
        if job.runtime == "torch-compile":
            runtime.graph.compile()
        return runtime
    # Files are checked once, by whoever started this process.
    return open_runtime(Artifact(folder, read_manifest(folder)), job.runtime, threads=job.threads)


def _peak_memory() -> int:
    """The most that was ever resident (Linux)."""
    lines: Sequence[str] = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def parse(line: str) -> dict[str, Any]:
    """What a child printed."""
    found: dict[str, Any] = json.loads(line)
    return {**found, "batches": [Timed(**one) for one in found["batches"]]}


if __name__ == "__main__":
    main()
