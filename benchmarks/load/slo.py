"""The highest rate at which a service keeps its promise: so many of the requests answered, that percentile in time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from benchmarks.load.loops import Load, Observed, Tally, load_of, milliseconds, percentile
from sovit.errors import ConfigError

Verdict = Literal["met", "missed", "generator"]
Phase = Literal["doubling", "bisection", "recheck", "confirmation"]

PRECISION: Final = 1.05  # the search ends when the lowest rate that misses is at most this much above one that meets
LATE_SHARE: Final = 0.1  # of the limit: a generator later than that, at the same percentile, has not offered the rate
_BEYOND: Final = 10  # requests of a step that lie beyond its percentile: with fewer it is a matter of chance
_MAX_DOUBLINGS: Final = 20
_MAX_HALVINGS: Final = 4
_MAX_RECHECKS: Final = 3
_MAX_CONFIRMATIONS: Final = 5
_DIGITS: Final = 3
_EPSILON: Final = 1e-9  # 0.001 of 1,000 requests is one request, whatever floating point says


@dataclass(frozen=True, kw_only=True)
class Slo:
    """`percentile` percent of the answers within `limit_ms`, and a share `success` of the requests answered with 200.

    Raises `ConfigError` for a promise that makes no sense.
    """

    limit_ms: float
    percentile: float = 99.0
    success: float = 0.999

    def __post_init__(self) -> None:
        if not 0 < self.limit_ms < math.inf:
            raise ConfigError(f"--slo-ms {self.limit_ms:g} must be above 0.")
        if not 0 < self.percentile <= 99.99:
            raise ConfigError(f"--percentile {self.percentile:g} must be above 0 and at most 99.99.")
        if not 0 < self.success <= 1:
            raise ConfigError(f"--success {self.success:g} is a share: it must be above 0 and at most 1.")

    @property
    def requests(self) -> int:
        """How many requests a step needs at least: ten of them lie beyond the percentile, 1,000 for the 99th."""
        return math.ceil(round(100 * _BEYOND / (100 - self.percentile), 6))

    def is_lost(self, tally: Tally, planned: int) -> bool:
        """Whether a step of `planned` requests has missed already, whatever becomes of those still to come.

        `tally` must count as good what is within `limit_ms`.
        """
        slow, failed = tally.succeeded - tally.good, tally.failed - tally.unsent
        allowed_slow = planned * (100 - self.percentile) / 100
        return slow > allowed_slow + _EPSILON or failed > planned * (1 - self.success) + _EPSILON


@dataclass(frozen=True, kw_only=True)
class Step:
    """One rate that was tried. `latency_ms` and `late_ms`, of the generator, are at the percentile of the promise.

    `success` is the share of 200s among the requests that were sent and ended. `decided` where it was stopped because
    it could only miss.
    """

    phase: Phase
    rate: float
    verdict: Verdict
    latency_ms: float | None
    success: float
    late_ms: float
    decided: bool
    load: Load


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What the steps say. `rate` is the highest that met the promise in a confirming run, None where none did.

    `highest_met` and `lowest_unmet` are the rates between which the search ended. `limited_by` says who was the limit
    at `lowest_unmet`: where it is the generator, the service may do more.
    """

    rate: float | None
    highest_met: float | None
    lowest_unmet: float | None
    limited_by: Literal["service", "generator"] | None


def judged(slo: Slo, phase: Phase, rate: float, observed: Observed) -> Step:
    """The verdict on a run at a rate."""
    tally = observed.measured
    latency_ms = percentile(milliseconds(tally.latencies.get(200, ())), slo.percentile)
    late_ms = percentile(milliseconds(tally.late), slo.percentile) or 0.0
    sent = tally.ended - tally.unsent
    success = tally.succeeded / sent if sent else 0.0
    verdict: Verdict = "met"
    if late_ms > LATE_SHARE * slo.limit_ms:
        verdict = "generator"
    elif latency_ms is None or latency_ms > slo.limit_ms or success < slo.success - _EPSILON:
        verdict = "missed"
    elif tally.unsent:
        verdict = "generator"
    return Step(
        phase=phase,
        rate=rate,
        verdict=verdict,
        latency_ms=latency_ms,
        success=success,
        late_ms=late_ms,
        decided=observed.decided,
        load=load_of(observed),
    )


def search(probe: Callable[[float, Phase], Step], first: float) -> Iterator[Step]:
    """Each step when it is done: doubling, or halving, from the first rate; bisection; then both ends a second time.

    Late answers come in bursts, and one burst can make a rate miss that the service can do. So the lowest rate that
    missed is tried again, and the search goes on above it where it now meets. At last the highest rate that met must
    meet in a confirming run, or else the next lower one. Rates have three digits.
    """
    low: float | None = None
    unmet: list[float] = []  # all above `low`, the lowest of them last
    rate = rounded(first)
    least, most = rate / 2**_MAX_HALVINGS, rate * 2**_MAX_DOUBLINGS
    rechecks = 0
    while least <= rate <= most and rechecks < _MAX_RECHECKS:
        again = rate in unmet
        phase: Phase = "recheck" if again else "doubling" if low is None or not unmet else "bisection"
        step = probe(rate, phase)
        yield step
        rechecks += again
        if step.verdict == "met":
            low = rate
            unmet = unmet[:-1] if again else unmet
        elif again:
            break
        else:
            unmet.append(rate)
        rate = _next(low, unmet)
    if low is None:
        return
    for _ in range(_MAX_CONFIRMATIONS):
        step = probe(low, "confirmation")
        yield step
        if step.verdict == "met":
            return
        low = rounded(low / PRECISION)


def _next(low: float | None, unmet: Sequence[float]) -> float:
    """The rate to try between the highest that met and the lowest that did not: where they are close, the latter."""
    if not unmet:
        assert low is not None
        return rounded(2 * low)
    if low is None:
        return rounded(unmet[-1] / 2)
    return unmet[-1] if unmet[-1] / low <= PRECISION else rounded(math.sqrt(low * unmet[-1]))


def found(steps: Sequence[Step]) -> Finding:
    """What the steps of a search say, also of one that was interrupted. The last word on a rate holds."""
    last = {step.rate: step for step in steps}.values()
    confirmed = [step.rate for step in last if step.phase == "confirmation" and step.verdict == "met"]
    unmet = min((step for step in last if step.verdict != "met"), key=lambda step: step.rate, default=None)
    met = [step.rate for step in last if step.verdict == "met" and (unmet is None or step.rate < unmet.rate)]
    limits: dict[Verdict, Literal["service", "generator"]] = {"missed": "service", "generator": "generator"}
    return Finding(
        rate=confirmed[0] if confirmed else None,
        highest_met=max(met, default=None),
        lowest_unmet=unmet.rate if unmet else None,
        limited_by=limits[unmet.verdict] if unmet else None,
    )


def rounded(rate: float) -> float:
    """A rate with three significant digits."""
    return float(f"{rate:.{_DIGITS}g}")
