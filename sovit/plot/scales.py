"""Axes: where a value lies, and which round numbers to write beside it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

FEW: Final = 7  # ticks, where the labels of more would touch
MANY: Final = 9
_LEAST_TICKS: Final = 4
Scale = Callable[[float], float]


def log_scale(values: Sequence[float], first: float, last: float, most: int = FEW) -> tuple[Scale, list[float]]:
    """Where a value lies between `first` and `last`, and round numbers to write at the axis."""
    low, high = min(values), max(values)
    if high / low < 1.1:  # nearly one value: room around it
        low, high = low / 1.5, high * 1.5
    slope = (last - first) / math.log(high / low)

    def scale(value: float) -> float:
        return first + slope * math.log(value / low)

    return scale, log_ticks(low, high, most)


def log_ticks(low: float, high: float, most: int = FEW) -> list[float]:
    """Round numbers from `low` to `high`, about as far from each other on a logarithmic axis, and not too many."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found: list[float] = []
    for steps in ((1,), (1, 3), (1, 2, 5), (1, 2, 3, 5), (1, 2, 3, 5, 7)):
        ticks = [float(f"{step}e{decade}") for decade in decades for step in steps]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) <= most:
            found = ticks
    if len(found) < _LEAST_TICKS - 1 and high / low < 10:
        return linear_ticks(low, high)
    return found or ticks[:: math.ceil(len(ticks) / most)]


def linear_scale(values: Sequence[float], first: float, last: float) -> tuple[Scale, list[float]]:
    """The same with equal steps."""
    low, high = min(values), max(values)
    if high == low:
        low, high = low - 1, high + 1
    slope = (last - first) / (high - low)

    def scale(value: float) -> float:
        return first + slope * (value - low)

    return scale, linear_ticks(low, high)


def linear_ticks(low: float, high: float) -> list[float]:
    """Four to seven round numbers from `low` to `high`; three where there are no better."""
    decade = 10.0 ** math.floor(math.log10(high - low))
    found: list[float] = []
    for step in (decade, decade / 2, decade / 4, decade / 5, decade / 10):
        if len(found) < _LEAST_TICKS:
            found = [step * count for count in range(math.ceil(low / step), math.floor(high / step) + 1)]
    return [float(f"{tick:.6g}") for tick in found]


def tick_text(value: float) -> str:
    """A number at an axis."""
    return f"{value:,.10f}".rstrip("0").rstrip(".")
