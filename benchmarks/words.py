"""How measured numbers are written, for people."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from benchmarks.intervals import Estimate

TO: Final = "\u2013"  # a dash from one number to another


def pixels(image_size: Sequence[int]) -> str:
    """(Y, X) as people write it."""
    y, x = image_size
    return f"{y} px" if y == x else f"{y} x {x} px"


def plural(count: int, what: str) -> str:
    """A number of things."""
    return f"{count:,} {what}{'' if count == 1 else 'es' if what.endswith('s') else 's'}"


def places(rank: tuple[int, int]) -> str:
    """The places that a row may have, as `benchmarks.intervals.ranks` gives them."""
    first, last = rank
    return str(first) if first == last else f"{first}{TO}{last}"


def number(value: float) -> str:
    """Three significant digits, or all that stand before the point."""
    return f"{value:,.{_decimals(value)}f}"


def with_interval(estimate: Estimate) -> tuple[str, str]:
    """A value, and its interval in as many decimals, or in as many as show that it is one."""
    decimals = _decimals(estimate.value)
    while estimate.high > estimate.low and f"{estimate.low:.{decimals}f}" == f"{estimate.high:.{decimals}f}":
        decimals += 1
    return f"{estimate.value:,.{decimals}f}", f"{estimate.low:,.{decimals}f}{TO}{estimate.high:,.{decimals}f}"


def _decimals(value: float) -> int:
    return max(0, 2 - math.floor(math.log10(value))) if value > 0 else 0
