"""Percentiles with their intervals, from runs in several processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

RESAMPLES: Final = 1000
_LEVEL: Final = (2.5, 97.5)  # percent


@dataclass(frozen=True)
class Estimate:
    """A value and its 95 % interval."""

    value: float
    low: float
    high: float

    def overlaps(self, other: Estimate) -> bool:
        """Whether the two cannot be told apart."""
        return self.low <= other.high and other.low <= self.high

    def scaled(self, factor: float) -> Estimate:
        """In another unit."""
        return Estimate(self.value * factor, self.low * factor, self.high * factor)

    def inverse(self, numerator: float) -> Estimate:
        """`numerator` divided by it: a rate of a time."""
        return Estimate(numerator / self.value, numerator / self.high, numerator / self.low)


def percentile(processes: Sequence[NDArray[np.float64]], percent: float, seed: int = 0) -> Estimate:
    """A percentile of all runs, by a cluster bootstrap: processes are drawn anew, and then the runs in each.

    What differs from process to process (where memory lies, what else the machine does) is in the interval that way;
    runs of one process alone would hide it.
    """
    rng = np.random.default_rng(seed)
    found = np.empty(RESAMPLES)
    for index in range(RESAMPLES):
        drawn = rng.integers(0, len(processes), len(processes))
        runs = [rng.choice(processes[one], len(processes[one])) for one in drawn]
        found[index] = np.percentile(np.concatenate(runs), percent)
    low, high = np.percentile(found, _LEVEL)
    value = float(np.percentile(np.concatenate(list(processes)), percent))
    return Estimate(value, min(float(low), value), max(float(high), value))
