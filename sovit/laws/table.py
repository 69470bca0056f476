"""The points that a law is fitted to, and how they are read from a table of runs."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sovit.errors import ConfigError
from sovit.laws.form import DIMENSIONS
from sovit.laws.rows import read_rows
from sovit.laws.solvers.powers import Floats

GFLOP: Final = 1e9
LEAST_RUNS: Final = 3  # no dimension of a shape can have three sizes in fewer
_LEAST: Final = 1e-15  # of a size, a compute and an error: what lies beyond is a mistake, and no solver's to divide by
_MOST: Final = 1e25
# Compute that differs by less is the same level: rounding to whole steps and heads moves it by a few percent.
_SAME_LEVEL: Final = 1.1


@dataclass(frozen=True, kw_only=True, eq=False)
class Points:
    """P measured points of some runs. Raises `ConfigError` for points that no law could be fitted to.

    `shapes_PK` float64 [P, 3] are width, depth and mlp_dim. `compute_P` is the compute of the whole training up to the
    point, in GFLOPs, forward passes only. `error_P` is the metric, lower is better and above 0. `run_P` says which run
    a point belongs to, an index into `runs`: a run measured at several moments gives several points that share its
    luck.
    """

    shapes_PK: Floats
    compute_P: Floats
    error_P: Floats
    run_P: NDArray[np.int64]
    runs: tuple[str, ...]

    def __post_init__(self) -> None:
        count = len(self.error_P)
        shapes = {"shapes_PK": (count, 3), "compute_P": (count,), "error_P": (count,), "run_P": (count,)}
        for field, shape in shapes.items():
            if getattr(self, field).shape != shape:
                raise ConfigError(f"{field} has the shape {getattr(self, field).shape}, not {shape}.")
        if count and not (self.run_P.min() >= 0 and self.run_P.max() < len(self.runs)):
            raise ConfigError(f"run_P must index the {len(self.runs)} runs.")
        for index, dimension in enumerate(DIMENSIONS):
            self._refuse(~_positive(self.shapes_PK[:, index]), f"a {dimension}", self.shapes_PK[:, index])
        self._refuse(~_positive(self.compute_P), "a compute", self.compute_P)
        self._refuse(~_positive(self.error_P), "an error", self.error_P)
        self._refuse_duplicates()
        for run in np.unique(self.run_P).tolist():
            if len(np.unique(self.shapes_PK[self.run_P == run], axis=0)) > 1:
                raise ConfigError(f"Run {self.runs[run]} has points of several shapes: a run trains one.")
        with_points = len(np.unique(self.run_P))
        if with_points < LEAST_RUNS:
            raise ConfigError(
                f"There are {with_points} runs with points: a law needs {LEAST_RUNS} at the very least, and one with "
                f"exponents for all of {', '.join(DIMENSIONS)} needs 7. Train more shapes."
            )
        if self.compute_levels < 2:
            raise ConfigError(
                "All points have the same compute, so nothing tells what more of it would bring: measure every run at "
                "two moments or more, for instance with cooldown branches, or train some longer."
            )

    def __len__(self) -> int:
        return len(self.error_P)

    @property
    def compute_levels(self) -> int:
        """How many amounts of compute there are that differ by a tenth or more."""
        levels, last = 0, 0.0
        for compute in np.sort(self.compute_P).tolist():
            if compute >= last * _SAME_LEVEL:
                levels, last = levels + 1, compute
        return levels

    def subset(self, chosen_P: NDArray[np.bool_]) -> Points:
        """The chosen points, as a table of their own."""
        return Points(
            shapes_PK=self.shapes_PK[chosen_P],
            compute_P=self.compute_P[chosen_P],
            error_P=self.error_P[chosen_P],
            run_P=self.run_P[chosen_P],
            runs=self.runs,
        )

    def _refuse(self, bad_P: NDArray[np.bool_], what: str, values_P: Floats) -> None:
        if bad_P.any():
            first = int(np.argmax(bad_P))
            raise ConfigError(
                f"Run {self.runs[self.run_P[first]]} has {what} of {values_P[first]:g}, it must be a number above 0, "
                f"from {_LEAST:g} to {_MOST:g}: repeat the run, or take the point out of the table."
            )

    def _refuse_duplicates(self) -> None:
        seen = set()
        for run, compute in zip(self.run_P.tolist(), self.compute_P.tolist(), strict=True):
            if (run, compute) in seen:
                raise ConfigError(f"Run {self.runs[run]} has two points of the same compute: keep one of them.")
            seen.add((run, compute))


class Table(NamedTuple):
    """A table of runs: its lines, the points of those that were run, how many were not, and the most images of one.

    `images` is 0 where the table does not say.
    """

    rows: tuple[dict[str, Any], ...]
    points: Points
    not_run: int
    images: float


def read_table(path: Path) -> Table:
    """Read `runs.jsonl`: one JSON object a line, a run with its shape and, once it was run, its `points`.

        {"run": "3f2a...", "width": 64, "depth": 4, "mlp_dim": 256, ...,
         "points": [{"steps": 500, "images": 64000, "forward_flops": 1.2e12, "error": 0.61}, ...]}

    `forward_flops` are those of all images up to the point. Raises `ConfigError` that names the line or the run.
    """
    rows = tuple(read_rows(path).values())
    parsed = [_row(row, f"{path}, run {row['run']}") for row in rows]
    _refuse_copies(rows, path)
    run = [one for one in parsed if one.points]
    if not run:
        raise ConfigError(f"{path} holds {len(rows)} runs and none of them has points: run them first.")
    return Table(rows, _points(run), len(rows) - len(run), max(one.images for one in run))


def _refuse_copies(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Two runs may tie in all their errors, by chance; two that also agree in all else are one and its copy."""
    seen: dict[str, str] = {}
    for row in rows:
        content = json.dumps({name: value for name, value in row.items() if name != "run"}, sort_keys=True)
        other = seen.setdefault(content, row["run"])
        if other != row["run"]:
            raise ConfigError(
                f"{path}: runs {other} and {row['run']} agree in everything, so one is a copy: take one out."
            )


class _Row(NamedTuple):
    name: str
    shape: tuple[float, ...]
    points: tuple[tuple[float, float], ...]  # GFLOPs and error
    images: float


def _row(row: dict[str, Any], where: str) -> _Row:
    points = row.get("points") or []
    return _Row(
        row["run"],
        tuple(_whole(row, dimension, where) for dimension in DIMENSIONS),
        tuple((_number(point, "forward_flops", where) / GFLOP, _number(point, "error", where)) for point in points),
        max((_images(point, where) for point in points), default=0.0),
    )


def _images(point: dict[str, Any], where: str) -> float:
    """What a point's run had seen; 0 where it does not say."""
    if point.get("images") is None:
        return 0.0
    images = _number(point, "images", where)
    if not 0 < images < math.inf:
        raise ConfigError(f'{where}: "images" is {images:g}, it must be a number above 0.')
    return images


def _whole(data: dict[str, Any], field: str, where: str) -> float:
    value = _number(data, field, where)
    if value % 1:
        raise ConfigError(f'{where}: "{field}" is {value:g}, it must be a whole number.')
    return value


def _number(data: dict[str, Any], field: str, where: str) -> float:
    value = data.get(field)
    if value is None:
        raise ConfigError(f'{where} lacks "{field}".')
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f'{where}: "{field}" must be a number.')
    try:
        return float(value)
    except OverflowError as error:
        raise ConfigError(f'{where}: "{field}" is too large a number.') from error


def _points(rows: Sequence[_Row]) -> Points:
    repeats = [len(row.points) for row in rows]
    pairs = np.array([point for row in rows for point in row.points], np.float64)
    return Points(
        shapes_PK=np.repeat(np.array([row.shape for row in rows], np.float64), repeats, axis=0),
        compute_P=pairs[:, 0],
        error_P=pairs[:, 1],
        run_P=np.repeat(np.arange(len(rows)), repeats),
        runs=tuple(row.name for row in rows),
    )


def _positive(values: Floats) -> NDArray[np.bool_]:
    return np.asarray((values >= _LEAST) & (values <= _MOST))
