"""Carry out the search for the highest rate on a running service."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from benchmarks.load.loops import Load, Observed, Target, load_of, observe_closed, observe_open
from benchmarks.load.slo import Phase, Slo, Step, judged, search
from benchmarks.load.telling import Telling
from sovit.errors import ServiceError, SoViTError

_ALONE_SECONDS: Final = 3.0
_FIRST_SHARE: Final = 0.5  # of the rate of one client alone: what a service can most likely do
_RECOVERY_SECONDS: Final = 60.0
_RECOVERY_PAUSE: Final = 0.2
_RECOVERED: Final = 2.0  # times the longest latency of one client alone


@dataclass(kw_only=True)
class Searched:
    """Steps that were finished, `alone`: one client's before them, and why the search stopped before its end."""

    alone: Load | None = None
    steps: list[Step] = field(default_factory=list)
    stopped: str | None = None
    interrupted: bool = False


def run_search(
    slo: Slo,
    target: Target,
    images: Sequence[bytes],
    *,
    seconds: float,
    warmup_seconds: float,
    seed: int,
    telling: Telling,
) -> Searched:
    """Search, on a target whose `limit_ms` is the promise's. Every step has its own arrivals.

    A step lasts `seconds`, or as long as `slo.requests` take, after its own warm-up. It ends at once where it can only
    miss, and the next one waits until the service answers one request as fast as before.

    Raises `ServiceError` when one client alone gets no answer; what comes later only stops the search.
    """
    done = Searched()

    def probe(rate: float, phase: Phase) -> Step:
        assert done.alone is not None
        _recover(target, images, max(slo.limit_ms, _RECOVERED * (done.alone.max_ms or 0.0)))
        length = max(seconds, slo.requests / rate)
        return judged(
            slo,
            phase,
            rate,
            _uninterrupted(
                observe_open(
                    target,
                    images,
                    rate=rate,
                    seconds=seconds,
                    seed=seed + len(done.steps),
                    warmup_seconds=warmup_seconds,
                    least=slo.requests,
                    decided=slo.is_lost,
                    tell=telling.run(f"{phase}, {rate:g}/s", length),
                )
            ),
        )

    telling.line(
        f"each step: {slo.requests:,} requests or more, for ten beyond the {slo.percentile:g}th percentile, "
        f"and {seconds:g} s or more"
    )
    try:
        done.alone = _alone(target, images, warmup_seconds, telling)
        for step in search(probe, _FIRST_SHARE * done.alone.throughput):
            done.steps.append(step)
            telling.line(_said(slo, step))
    except KeyboardInterrupt:
        done.stopped, done.interrupted = "interrupted", True
    except SoViTError as error:
        if not done.steps:
            raise
        done.stopped = str(error)
    return done


def _alone(target: Target, images: Sequence[bytes], warmup_seconds: float, telling: Telling) -> Load:
    found = load_of(
        _uninterrupted(
            observe_closed(
                target,
                images,
                concurrency=1,
                seconds=_ALONE_SECONDS,
                warmup_seconds=warmup_seconds,
                tell=telling.run("one client alone", _ALONE_SECONDS),
            )
        )
    )
    if not found.throughput:
        raise ServiceError(f"{target.url} answered none of one client's {found.offered} requests with 200.")
    return found


def _recover(target: Target, images: Sequence[bytes], within_ms: float) -> None:
    """Wait until one request alone is answered within so much time: until the backlog of the step before is gone."""
    patient = replace(target, limit_ms=within_ms)
    deadline = time.monotonic() + _RECOVERY_SECONDS
    while time.monotonic() < deadline:
        if _uninterrupted(observe_closed(patient, images, concurrency=1, seconds=0.0)).measured.good:
            return
        time.sleep(_RECOVERY_PAUSE)
    raise ServiceError(
        f"{target.url} did not recover from the load: in {_RECOVERY_SECONDS:g} s no request alone was answered "
        f"with 200 within {within_ms:.0f} ms."
    )


def _uninterrupted(observed: Observed) -> Observed:
    if observed.interrupted:
        raise KeyboardInterrupt
    return observed


def _said(slo: Slo, step: Step) -> str:
    latency = "none" if step.latency_ms is None else f"{step.latency_ms:.1f} ms"
    early = ", stopped as it could only miss" if step.decided else ""
    verdict = "the generator was late" if step.verdict == "generator" else step.verdict
    return (
        f"{step.phase}, {step.rate:g}/s: {verdict}, p{slo.percentile:g} {latency}, {step.success:.2%} answered{early}"
    )
