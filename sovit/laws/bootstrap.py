"""How much a fitted law would differ, had other runs been made: a cluster bootstrap.

Runs are drawn with replacement, each with all of its points, and the law is fitted again from where it was. A draw in
which too few shapes, or sizes of a dimension, are left for the exponents is drawn anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict

from sovit.errors import ConfigError
from sovit.jsonio import STRICT
from sovit.laws.design import Design, design_of
from sovit.laws.fit import Fit
from sovit.laws.form import DIMENSIONS, ShapeLaw
from sovit.laws.refits import refits
from sovit.laws.solvers.powers import Floats
from sovit.laws.table import Points

REPLICATES: Final = 1000
_TRIES: Final = 300
_PERCENT_80: Final = (10, 90)
_PERCENT_95: Final = (2.5, 97.5)
_FEW_SHAPES: Final = 40  # by `python -m benchmarks.studies.law`
_OFTEN: Final = 0.1


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A value with its 80 % and 95 % intervals: percentiles of what the replicates say.

    `undefined` is the share of replicates that say nothing, in which a size only helps, only harms or does nothing;
    the bounds are of the others, and None where there are none.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    name: str
    value: float | None
    low_80: float | None
    high_80: float | None
    low_95: float | None
    high_95: float | None
    undefined: float


@dataclass(frozen=True, kw_only=True)
class Bootstrap:
    """The laws of all replicates, and intervals of the fitted law's parameters and exponents s_k.

    `redrawn` draws had too few shapes or sizes left. `warnings` say in words why not to trust the intervals.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    laws: tuple[ShapeLaw, ...]
    intervals: tuple[Interval, ...]
    redrawn: int
    warnings: tuple[str, ...]

    def interval(self, name: str) -> Interval:
        """The interval of a parameter, or of an exponent: `s_width`, `s_depth`, `s_mlp_dim`."""
        return {one.name: one for one in self.intervals}[name]


def bootstrap(points: Points, fitted: Fit, *, replicates: int = REPLICATES, seed: int = 0) -> Bootstrap:
    """Refit the law, by the method of `fitted`, to as many draws of the runs.

    What it takes, and what the intervals hold, is measured by `python -m benchmarks.studies.law`.
    """
    if replicates < 1:
        raise ConfigError(f"replicates is {replicates}, it must be at least 1.")
    design = design_of(points)
    counts_BR, redrawn = _draw(points, design, replicates, np.random.default_rng(seed))
    laws = refits(points, fitted, counts_BR)
    return Bootstrap(
        laws=laws,
        intervals=_intervals(design, fitted.law, laws),
        redrawn=redrawn,
        warnings=_doubts(points, replicates, redrawn),
    )


def summarise(name: str, value: float, values_B: Floats) -> Interval:
    """The interval of a value from those of the replicates; NaN is one that says nothing."""
    said = values_B[~np.isnan(values_B)]
    bounds = np.percentile(said, (*_PERCENT_80, *_PERCENT_95)).tolist() if len(said) else [None] * 4
    return Interval(
        name=name,
        value=None if np.isnan(value) else float(value),
        low_80=bounds[0],
        high_80=bounds[1],
        low_95=bounds[2],
        high_95=bounds[3],
        undefined=1 - len(said) / len(values_B),
    )


def _draw(points: Points, design: Design, replicates: int, rng: np.random.Generator) -> tuple[NDArray[np.int64], int]:
    """How often each replicate has each run [B, R], and how many draws were thrown away."""
    drawable = np.unique(points.run_P)
    shapes_RK = points.shapes_PK[[int(np.argmax(points.run_P == run)) for run in drawable]]
    counts_BR = np.zeros((replicates, len(points.runs)), np.int64)
    missing, redrawn = np.arange(replicates), 0
    for _ in range(_TRIES):
        drawn = rng.multinomial(len(drawable), np.full(len(drawable), 1 / len(drawable)), len(missing))
        counts_BR[missing[:, None], drawable] = drawn
        enough = design.told(shapes_RK, drawn)
        missing = missing[~enough]
        redrawn += len(missing)
        if not len(missing):
            return counts_BR, redrawn
    raise ConfigError(
        f"Of {len(drawable)} runs, hardly any draw leaves enough shapes and sizes for the exponents: train more shapes "
        "before asking for intervals."
    )


def _intervals(design: Design, law: ShapeLaw, laws: Sequence[ShapeLaw]) -> tuple[Interval, ...]:
    """Of every parameter that the points carry, and of the exponents."""
    rows = [one.parameters() for one in (law, *laws)]
    found = []
    for name in design.names():
        letter, _, dimension = name.partition("_")
        # Where a coefficient is 0, its exponent may be anything.
        coefficient = {"a": f"alpha_{dimension}", "b": f"beta_{dimension}"}.get(letter, "")
        values = np.array([np.nan if row.get(coefficient) == 0 else row[name] for row in rows])
        found.append(summarise(name, float(values[0]), values[1:]))
    s_BK = np.array([one.exponents for one in (law, *laws)])
    for k in design.free:
        found.append(summarise(f"s_{DIMENSIONS[k]}", float(s_BK[0, k]), s_BK[1:, k]))
    return tuple(found)


def _doubts(points: Points, replicates: int, redrawn: int) -> tuple[str, ...]:
    runs, shapes = len(np.unique(points.run_P)), len(np.unique(points.shapes_PK, axis=0))
    found = []
    # More runs of the same few shapes are no help: of three runs each, a draw differs less than three others would.
    if shapes < _FEW_SHAPES:
        found.append(
            f"intervals of {runs} runs of {shapes} shapes may be too narrow: from about {_FEW_SHAPES} different shapes "
            "on they hold what they say."
        )
    if redrawn > _OFTEN * replicates:
        found.append(
            f"{redrawn / (replicates + redrawn):.0%} of the bootstrap's draws left too few shapes, or sizes of a "
            "dimension, and were drawn anew: the intervals are of the others, and may be too narrow for it."
        )
    return tuple(found)
