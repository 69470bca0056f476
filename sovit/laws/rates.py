"""Runs of a sweep at other learning rates than the design's own: they are no points of the law, but a check on it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from pydantic import ConfigDict

from sovit.jsonio import STRICT
from sovit.laws.form import DIMENSIONS

_MATTERS: Final = 0.01  # of an error


@dataclass(frozen=True, kw_only=True)
class OtherRate:
    """A run at `factor` times the design's learning rate; `change` of its last error to that of the design's run."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    run: str
    shape: str
    factor: float
    change: float


def other_rates(rows: Sequence[Mapping[str, Any]]) -> tuple[OtherRate, ...]:
    """The runs with points whose rate is not the most frequent one, beside the run of their shape that has it.

    A row without a `learning_rate` has the design's.
    """
    run = [row for row in rows if row.get("points")]
    rates = Counter(row.get("learning_rate") for row in run)
    if len(rates) < 2:
        return ()
    own = rates.most_common(1)[0][0]
    base = {_shape(row): row for row in run if row.get("learning_rate") == own}
    found = []
    for row in run:
        rate = row.get("learning_rate")
        if rate is None or own is None or rate == own:
            continue
        beside = base.get(_shape(row))
        change = float("inf") if beside is None else row["points"][-1]["error"] / beside["points"][-1]["error"] - 1
        found.append(OtherRate(run=row["run"], shape=_shape(row), factor=rate / own, change=change))
    return tuple(one for one in found if one.change < float("inf"))


def doubts(others: Sequence[OtherRate]) -> tuple[str, ...]:
    """Warnings where another rate would have been better: then the rate is a part of what was measured."""
    return tuple(
        f"{one.shape} is better by {-one.change:.1%} at {one.factor:g} times the learning rate: differences of shapes "
        "that are no larger may be the rate's."
        for one in others
        if one.change < -_MATTERS
    )


def told(others: Sequence[OtherRate]) -> str:
    """How the errors change with the rate, in a sentence."""
    parts = [
        f"{factor:g} times the rate {min(changes):+.1%} to {max(changes):+.1%}"
        for factor in sorted({one.factor for one in others})
        for changes in [[one.change for one in others if one.factor == factor]]
    ]
    shapes = len({one.shape for one in others})
    return f"learning rate: the error of {shapes} shapes changes at {', at '.join(parts)}; these runs are not fitted"


def _shape(row: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {row[name]}" for name in DIMENSIONS)
