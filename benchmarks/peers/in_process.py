"""The same work without a server: files of photographs to embeddings in one process, as fast as an engine goes.

    python -m benchmarks.peers.in_process '{"artifact": "runs/ti16", "runtime": "openvino", "threads": 2, ...}'

Images are decoded one after the other, and run alone or in batches; all cores belong to the run.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil

from benchmarks.opening import open_any
from benchmarks.process import first_to_go
from sovit.artifact import read_manifest
from sovit.predict import Predictor

_WARMUP_SECONDS: Final = 1.0


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to embed, by what, and for how long. `checkpoint` is for PyTorch, which takes no artifact."""

    artifact: str
    runtime: str
    threads: int
    batches: tuple[int, ...]
    seconds: float
    images: list[str]
    checkpoint: str = ""


def main() -> None:
    """Do the job in the first argument, and print what it took as a line of JSON."""
    first_to_go()
    job = Job(**json.loads(sys.argv[1]))
    folder = Path(job.artifact)
    runtime = open_any(folder, job.runtime, threads=job.threads, checkpoint=job.checkpoint)
    predictor = Predictor(runtime, read_manifest(folder), batch_size=max(job.batches))
    images = [Path(path).read_bytes() for path in job.images]
    embedding_D = predictor.embed(images[:1])[0]
    found = [_measure(predictor, cycle(images), batch, job.seconds) for batch in job.batches]
    resident = psutil.Process().memory_info().rss
    print(json.dumps({"embedding": embedding_D.tolist(), "batches": found, "memory_bytes": resident}), flush=True)


def _measure(predictor: Predictor, images: Iterator[bytes], batch: int, seconds: float) -> dict[str, Any]:
    _embed_for(predictor, images, batch, _WARMUP_SECONDS)
    cpu = time.process_time()
    times = _embed_for(predictor, images, batch, seconds)
    count = batch * len(times)
    return {
        "batch": batch,
        "images_per_second": count / sum(times),
        "cpu_ms": 1000 * (time.process_time() - cpu) / count,
        "p50_ms": 1000 * float(np.percentile(times, 50)),
        "p99_ms": 1000 * float(np.percentile(times, 99)),
    }


def _embed_for(predictor: Predictor, images: Iterator[bytes], batch: int, seconds: float) -> Sequence[float]:
    """Seconds of each batch."""
    times: list[float] = []
    while sum(times) < seconds:
        taken = [next(images) for _ in range(batch)]
        began = time.perf_counter()
        predictor.embed(taken)
        times.append(time.perf_counter() - began)
    return times


if __name__ == "__main__":
    main()
