"""Percentiles and means with their intervals, from runs in several processes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

RESAMPLES: Final = 1000
# Fewer processes or rounds than this say nothing of how much a number differs from one to the next.
LEAST_REPEATS: Final = 3
_COVERED: Final = 0.95
_LEVEL: Final = (2.5, 97.5)  # percent


@dataclass(frozen=True)
class Estimate:
    """A value and its 95 % interval."""

    value: float
    low: float
    high: float

    def scaled(self, factor: float) -> Estimate:
        """In another unit."""
        return Estimate(self.value * factor, self.low * factor, self.high * factor)

    def inverse(self, numerator: float) -> Estimate:
        """`numerator` divided by it: a rate of a time."""
        return Estimate(numerator / self.value, numerator / self.high, numerator / self.low)


def percentiles(processes: Sequence[NDArray[np.float64]], percents: Sequence[float], seed: int = 0) -> list[Estimate]:
    """Percentiles of the runs of all processes, each process with the same weight however many runs it made.

    A process that happened to be fast makes more runs in its time, and would pull the percentiles down with them.
    A high percentile of few runs lies between the slowest of them, and no resample can be slower: its interval is too
    narrow above.
    """
    return _bootstrap(processes, lambda runs: _weighted_percentiles(runs, percents), seed)


def mean(processes: Sequence[NDArray[np.float64]], seed: int = 0) -> Estimate:
    """The mean of the processes' means."""
    return _bootstrap(processes, lambda runs: np.array([np.mean([one.mean() for one in runs])]), seed)[0]


def _bootstrap(
    processes: Sequence[NDArray[np.float64]],
    statistics: Callable[[Sequence[NDArray[np.float64]]], NDArray[np.float64]],
    seed: int,
) -> list[Estimate]:
    """A cluster bootstrap: processes are drawn anew, and then the runs in each.

    What differs from process to process (where memory lies, what else the machine does) is in the intervals that way;
    runs of one process alone would hide it. Few processes say little of it: where all of the noise is between them,
    the intervals of three hold the true value in about three of four cases, and of six in about nine of ten.
    """
    rng = np.random.default_rng(seed)
    values = statistics(processes)
    found = np.empty((RESAMPLES, len(values)))
    for index in range(RESAMPLES):
        drawn = rng.integers(0, len(processes), len(processes))
        found[index] = statistics([rng.choice(processes[one], len(processes[one])) for one in drawn])
    return [
        Estimate(float(value), min(float(low), float(value)), max(float(high), float(value)))
        for value, low, high in zip(values, *np.percentile(found, _LEVEL, axis=0), strict=True)
    ]


def _weighted_percentiles(runs: Sequence[NDArray[np.float64]], percents: Sequence[float]) -> NDArray[np.float64]:
    """Linear percentiles as numpy's when all processes have as many runs, and the same idea when they have not."""
    times = np.concatenate(list(runs))
    weights = np.concatenate([np.full(len(one), 1 / len(one)) for one in runs])
    order = np.argsort(times)
    middles = np.cumsum(weights[order]) - weights[order] / 2
    places = (middles - middles[0]) / max(middles[-1] - middles[0], np.finfo(np.float64).tiny)
    found: NDArray[np.float64] = np.interp(np.array(percents) / 100, places, times[order])
    return found


def ratio(one: Estimate, other: Estimate) -> Estimate:
    """`one` divided by `other`. The interval holds every quotient of the two intervals, so it is never too narrow."""
    return Estimate(one.value / other.value, one.low / other.high, one.high / other.low)


def paired_ratio(ones: Sequence[float], others: Sequence[float]) -> Estimate | None:
    """The median of `ones` divided by `others`, pair by pair, and the 95 % interval of that median.

    What disturbs both of a pair alike is not in it. The interval lies between two of the quotients and takes nothing
    for granted of how they are spread (the sign test turned round); fewer than six pairs have none.
    """
    quotients = sorted(one / other for one, other in zip(ones, others, strict=True))
    count = len(quotients)
    chance, left_out = 0.0, -1  # of so few quotients on one side of the true median
    while (chance := chance + math.comb(count, left_out + 1) / 2**count) <= (1 - _COVERED) / 2:
        left_out += 1
    if left_out < 0:
        return None
    return Estimate(float(np.median(quotients)), quotients[left_out], quotients[count - 1 - left_out])


def ranks(estimates: Sequence[Estimate], repeats: Sequence[int] = ()) -> list[tuple[int, int]]:
    """The first and last place each may have, the least first: (2, 4) is second to fourth.

    Of two that overlap neither is before the other: their ranges overlap too. `repeats` are the processes or rounds
    behind each; with too few of them an interval means nothing, and such a one may have any place.
    """
    known = [count >= LEAST_REPEATS for count in repeats] or [True] * len(estimates)
    told_apart = [one for one, is_known in zip(estimates, known, strict=True) if is_known]
    return [
        (
            1 + is_known * sum(other.high < one.low for other in told_apart),
            len(estimates) - is_known * sum(other.low > one.high for other in told_apart),
        )
        for one, is_known in zip(estimates, known, strict=True)
    ]
