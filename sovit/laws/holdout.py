"""How well a law foretells what it was not fitted to, more compute and other runs: to be read before any advice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np
from pydantic import ConfigDict

from sovit.errors import ConfigError
from sovit.jsonio import STRICT
from sovit.laws.fit import DELTA, STARTS, Fit, fit
from sovit.laws.refits import refits
from sovit.laws.solvers.solve import Method
from sovit.laws.table import Points

_BIASED: Final = 0.05  # beyond noise, in the mean
_SHARE: Final = 0.75  # of the points, those with the least compute, are fitted


@dataclass(frozen=True, kw_only=True)
class HoldOut:
    """Errors of predictions for the quarter of the points that has most compute, from a fit to the rest.

    `mean_error` and `max_error` are of |prediction / measurement - 1|, `bias` the mean of prediction / measurement - 1.
    `compute` is the largest that was fitted and `largest_compute` the largest predicted, in GFLOPs forward.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    fitted_points: int
    predicted_points: int
    compute: float
    largest_compute: float
    mean_error: float
    max_error: float
    bias: float
    warnings: tuple[str, ...]


def hold_out(
    points: Points, *, method: Method = "relative", delta: float = DELTA, starts: int = STARTS, seed: int = 0
) -> HoldOut:
    """Fit the three quarters with the least compute and predict the rest, as `fit` would with the same settings."""
    limit = float(np.quantile(points.compute_P, _SHARE))
    fitted_P = points.compute_P <= limit
    if fitted_P.all():
        raise ConfigError("No quarter of the points has more compute than the rest: train some runs longer.")
    try:
        found = fit(points.subset(fitted_P), method=method, delta=delta, starts=starts, seed=seed)
    except ConfigError as error:
        raise ConfigError(f"Without the quarter of the points that has most compute: {error}") from error
    predicted_P = found.law.predict(points.shapes_PK[~fitted_P], points.compute_P[~fitted_P])
    error_P = predicted_P / points.error_P[~fitted_P] - 1
    return HoldOut(
        fitted_points=int(fitted_P.sum()),
        predicted_points=len(error_P),
        compute=float(points.compute_P[fitted_P].max()),
        largest_compute=float(points.compute_P.max()),
        mean_error=float(np.abs(error_P).mean()),
        max_error=float(np.abs(error_P).max()),
        bias=float(error_P.mean()),
        warnings=found.warnings,
    )


def doubts(held_out: HoldOut) -> tuple[str, ...]:
    """In words, where the predictions lie on one side of what was measured."""
    if abs(held_out.bias) < _BIASED:
        return ()
    more, less = ("high", "faster") if held_out.bias > 0 else ("low", "more slowly")
    return (
        f"what was held out is predicted {abs(held_out.bias):.0%} too {more} in the mean: errors fall {less} with "
        "compute than a law of the rest says, so this one may be as far off beyond the points it was fitted to.",
    )


@dataclass(frozen=True, kw_only=True)
class EachRun:
    """Errors of predictions for all points of each run from a fit to all other runs, as |prediction / measurement - 1|.

    The held-out points of most compute are later moments of runs that were fitted; these are of shapes that were not.
    Of a star's smallest and largest sizes little is known without their own runs: the median says more than the mean.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    median_error: float
    max_error: float


def each_run(points: Points, fitted: Fit) -> EachRun:
    """Leave out one run after another."""
    present_B = np.unique(points.run_P)
    counts_BR = 1 - np.eye(len(points.runs), dtype=np.int64)[present_B]
    error_P = np.empty(len(points))
    for run, law in zip(present_B.tolist(), refits(points, fitted, counts_BR), strict=True):
        of_run_P = points.run_P == run
        said_P = law.predict(points.shapes_PK[of_run_P], points.compute_P[of_run_P])
        error_P[of_run_P] = np.abs(said_P / points.error_P[of_run_P] - 1)
    return EachRun(median_error=float(np.median(error_P)), max_error=float(error_P.max()))
