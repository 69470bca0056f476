"""Latency of many cases, each in several fresh processes, one model in memory at a time.

    sovit bench latency So400m/14 g/14 --precision fp32 int8 --images PHOTOGRAPHS --out latency.json

All cases go through one process each, then all through a second, and so on: a machine that slows down slows all of
them, and how much a row differs from process to process is in its interval. No parity, no number: exports have passed
their check, and every process compares embeddings once more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from benchmarks.intervals import mean, percentiles
from benchmarks.latency.cases import Case
from benchmarks.latency.child import Job, Timed
from benchmarks.latency.result import Failed, Row, Settings
from benchmarks.opening import is_compiled, is_on_gpu
from benchmarks.process import run_child
from sovit.cost import cost
from sovit.errors import ConfigError, ServiceError
from sovit.machine import this_machine
from sovit.peaks import peak_flops

_PERCENTS: Final = (50, 90, 99)


@dataclass
class Taken:
    """What the processes of a case have measured so far, and why the last one failed."""

    load_seconds: list[float] = field(default_factory=list)
    matmul_flops: list[float] = field(default_factory=list)
    cosines: list[float] = field(default_factory=list)
    batches: dict[int, list[Timed]] = field(default_factory=dict)
    failure: str = ""


def measure(
    cases: Sequence[Case],
    settings: Settings,
    advance: Callable[[int], None],
    keep: Callable[[list[Row], list[Failed]], object] = lambda rows, failed: None,
) -> tuple[list[Row], list[Failed], bool]:
    """Measure all cases, `settings.processes` times over; rows, what failed, and whether it went to its end.

    What is finished is kept: after every pass over the cases it is handed to `keep`, and Ctrl-C ends with what there
    is. A case whose process fails is left out from then on, and the others go on.
    """
    taken = [Taken() for _ in cases]
    complete = True
    try:
        for _ in range(settings.processes):
            for case, one in zip(cases, taken, strict=True):
                if not one.failure:
                    _add(one, case, settings)
                advance(1)
            keep(*_found(cases, taken, settings))
    except KeyboardInterrupt:
        complete = False
    return *_found(cases, taken, settings), complete


def _found(cases: Sequence[Case], taken: Sequence[Taken], settings: Settings) -> tuple[list[Row], list[Failed]]:
    pairs = list(zip(cases, taken, strict=True))
    rows = [row(case, one, batch, settings) for batch in settings.batch for case, one in pairs if batch in one.batches]
    return rows, [case.failed(one.failure) for case, one in pairs if one.failure]


def row(case: Case, taken: Taken, batch: int, settings: Settings) -> Row:
    """The row of a case at a batch size, from what its processes measured."""
    manifest, timed = case.artifact.manifest, taken.batches[batch]
    seconds = [np.array(one.seconds) for one in timed]
    p50, p90, p99 = percentiles(seconds, _PERCENTS)
    rate = mean(seconds).inverse(batch)
    flops = cost(manifest.model).flops
    achieved = flops * rate.value
    peak = peak_flops(this_machine().gpu, case.precision) if is_on_gpu(case.runtime) else None
    joules = [one.joules / (batch * len(one.seconds)) for one in timed if one.joules is not None]
    firsts = [one.first_seconds - float(np.median(one.seconds)) for one in timed]
    return Row(
        variant=case.target,
        image_size=manifest.model.image_size,
        runtime=case.runtime,
        precision=case.precision,
        batch=batch,
        threads=settings.threads,
        weights="random" if str(manifest.provenance.get("weights", "")).startswith("random") else manifest.name,
        processes=len(timed),
        runs=sum(len(one.seconds) for one in timed),
        warmup_runs=max(one.warmup_runs for one in timed),
        warmed=all(one.warmed for one in timed),
        first_ms=float(np.median([one.first_seconds for one in timed])) * 1e3,
        load_seconds=float(np.median(taken.load_seconds)),
        compile_seconds=max(0.0, float(np.median(firsts))) if is_compiled(case.runtime) else None,
        p50_ms=p50.scaled(1e3),
        p90_ms=p90.scaled(1e3),
        p99_ms=p99.scaled(1e3),
        process_p50_ms=tuple(float(np.median(one) * 1e3) for one in seconds),
        images_per_second=rate,
        process_images_per_second=tuple(float(batch / np.mean(one)) for one in seconds),
        peak_memory_bytes=max(one.peak_memory_bytes for one in timed),
        device_memory_bytes=max((one.device_memory_bytes for one in timed if one.device_memory_bytes), default=None),
        flops_per_image=flops,
        achieved_flops=achieved,
        matmul_flops=float(np.median(taken.matmul_flops)) if taken.matmul_flops else None,
        mfu=achieved / peak if peak else None,
        joules_per_image=float(np.median(joules)) if joules else None,
        cosine=min(taken.cosines),
    )


def _add(taken: Taken, case: Case, settings: Settings) -> None:
    """Let one fresh process measure a case."""
    job = Job(
        artifact=str(case.artifact.folder.resolve()),
        runtime=case.runtime,
        threads=settings.threads,
        batches=settings.batch,
        rounds=settings.rounds,
        seconds=settings.seconds,
        checkpoint=case.checkpoint,
    )
    try:
        found = run_child("benchmarks.latency.child", job, threads=settings.threads)
    except (ConfigError, ServiceError) as error:
        taken.failure = str(error)
        return
    taken.load_seconds.append(found["load_seconds"])
    taken.matmul_flops += [rate for rate in [found["matmul_flops"]] if rate is not None]
    taken.cosines.append(found["cosine"])
    for one in found["batches"]:
        taken.batches.setdefault(one["batch"], []).append(Timed(**one))
