"""How well a law foretells what it was not fitted to, more compute and other shapes: to be read before any advice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np
from pydantic import ConfigDict

from sovit.errors import ConfigError
from sovit.jsonio import STRICT
from sovit.laws.design import design_of
from sovit.laws.fit import DELTA, STARTS, Fit, fit
from sovit.laws.refits import refits
from sovit.laws.solvers.solve import Method
from sovit.laws.table import Points

_BIASED: Final = 0.05  # beyond noise, in the mean
_FAR: Final = 0.1
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


def doubts(held_out: HoldOut, already: Sequence[str]) -> tuple[str, ...]:
    """In words, why not to ask for more compute than was seen; `already` was said of the fit to all points."""
    found = [f"without what was held out: {one}" for one in held_out.warnings if one not in already]
    if abs(held_out.bias) >= _BIASED:
        more, less = ("high", "faster") if held_out.bias > 0 else ("low", "more slowly")
        found.append(
            f"what was held out is predicted {abs(held_out.bias):.0%} too {more} in the mean: errors fall {less} with "
            "compute than a law of the rest says, so this one may be as far off beyond the points it was fitted to."
        )
    elif held_out.mean_error >= _FAR:
        found.append(
            f"what was held out is predicted with an error of {held_out.mean_error:.0%} in the mean: take no advice "
            "from this law that rests on smaller differences."
        )
    return tuple(found)


@dataclass(frozen=True, kw_only=True)
class EachShape:
    """Errors of predictions for all points of a shape from a fit to all others, as |prediction / measurement - 1|.

    The held-out points of most compute are mostly later moments of runs that were fitted; these are of shapes that
    were not. `shapes` is how many could be left out: without some a dimension may have too few sizes for its exponents.
    Of a star's smallest and largest sizes little is known without their own runs, so the median says more than a mean.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    shapes: int
    median_error: float
    max_error: float


def each_shape(points: Points, fitted: Fit) -> EachShape | None:
    """Leave out one shape after another, with all of its runs; None where none can be."""
    design = design_of(points)
    shapes_SK, shape_P = np.unique(points.shapes_PK, axis=0, return_inverse=True)
    counts_SR = np.ones((len(shapes_SK), len(points.runs)), np.int64)
    counts_SR[shape_P, points.run_P] = 0
    told_S = design.told(shapes_SK, 1 - np.eye(len(shapes_SK), dtype=np.int64))
    if not told_S.any():
        return None
    laws = refits(points, fitted, counts_SR[told_S])
    error = []
    for shape, law in zip(np.flatnonzero(told_S).tolist(), laws, strict=True):
        of_shape_P = shape_P == shape
        said_P = law.predict(points.shapes_PK[of_shape_P], points.compute_P[of_shape_P])
        error.append(np.abs(said_P / points.error_P[of_shape_P] - 1))
    error_P = np.concatenate(error)
    return EachShape(shapes=len(error), median_error=float(np.median(error_P)), max_error=float(error_P.max()))
