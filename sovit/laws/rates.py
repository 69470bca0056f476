"""Runs of a sweep at other learning rates than the design's own: they are no points of the law, but a check on it."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Final

from pydantic import ConfigDict

from sovit.errors import ConfigError
from sovit.jsonio import STRICT
from sovit.laws.form import DIMENSIONS
from sovit.laws.sweep import Run

_MATTERS: Final = 0.01  # of an error


@dataclass(frozen=True, kw_only=True)
class OtherRate:
    """A run at `factor` times the design's learning rate; `change` of its last error to that of the design's run."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    run: str
    shape: str
    factor: float
    change: float


def other_rates(rows: Sequence[Mapping[str, Any]]) -> tuple[tuple[OtherRate, ...], frozenset[str]]:
    """Runs whose rate is not the most frequent one of the table, and the names of all such runs that have points.

    Each is compared with the run that differs from it in the rate alone, where that one has points. A row without a
    `learning_rate` has the design's. Raises `ConfigError` for a rate that is no number above 0.
    """
    for row in rows:
        rate = row.get("learning_rate")
        if rate is not None and not (isinstance(rate, int | float) and 0 < rate < math.inf):
            raise ConfigError(f"run {row['run']} has a learning_rate of {rate!r}: it must be a number above 0.")
    rates = Counter(row.get("learning_rate") for row in rows)
    own = rates.most_common(1)[0][0]
    run = [row for row in rows if row.get("points") and row.get("learning_rate") is not None]
    base = {_but_the_rate(row): row for row in run if row["learning_rate"] == own}
    apart = [row for row in run if own is not None and row["learning_rate"] != own]
    found = [
        OtherRate(
            run=row["run"], shape=_shape(row), factor=row["learning_rate"] / own,
            change=row["points"][-1]["error"] / beside["points"][-1]["error"] - 1,
        )
        for row in apart
        if (beside := base.get(_but_the_rate(row))) is not None
    ]  # fmt: skip
    return tuple(found), frozenset(row["run"] for row in apart)


def _but_the_rate(row: Mapping[str, Any]) -> str:
    decides = {field.name for field in fields(Run)} - {"learning_rate"} | {"data"}
    return json.dumps({name: row.get(name) for name in sorted(decides)})


def doubts(others: Sequence[OtherRate]) -> tuple[str, ...]:
    """Warnings where another rate would have been better: then the rate is a part of what was measured."""
    return tuple(
        f"{one.shape} is better by {-one.change:.1%} at {one.factor:g} times the learning rate: differences of shapes "
        "that are no larger may be the rate's."
        for one in others
        if one.change < -_MATTERS
    )


def unpaired(others: Sequence[OtherRate], left_out: Collection[str]) -> tuple[str, ...]:
    """A warning for runs that took no part and are no check either."""
    alone = sorted(set(left_out) - {one.run for one in others})
    if not alone:
        return ()
    some = ", ".join(alone[:3]) + (", ..." if len(alone) > 3 else "")
    return (
        f"left out of the fit, {len(alone)} in all: {some}, for another learning rate than most, with nothing beside "
        "them that differs in the rate alone. A design at another rate is fitted from a table of its own.",
    )


def told(others: Sequence[OtherRate]) -> str:
    """How the errors change with the rate, in a sentence."""
    parts = [
        f"{factor:g} times the rate {min(changes):+.1%} to {max(changes):+.1%}"
        for factor in sorted({one.factor for one in others})
        for changes in [[one.change for one in others if one.factor == factor]]
    ]
    shapes = len({one.shape for one in others})
    counted = f"{shapes} shapes" if shapes > 1 else "one shape"
    return f"learning rate: the error of {counted} changes at {', at '.join(parts)}; these runs are not fitted"


def _shape(row: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {row[name]}" for name in DIMENSIONS)
