"""`law.json`: a fitted law with all that advice is drawn from, its replicates and what the runs have in common."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

import numpy as np
from pydantic import ConfigDict

from sovit.config import Pool
from sovit.errors import ConfigError
from sovit.jsonio import STRICT, from_dict, read_json, to_dict, write_json
from sovit.laws.bootstrap import Interval
from sovit.laws.fit import Fit
from sovit.laws.form import DIMENSIONS, ShapeLaw
from sovit.laws.holdout import EachShape, HoldOut
from sovit.laws.rates import OtherRate
from sovit.laws.sweep import MULTIPLE
from sovit.laws.table import Points

_SCHEMA_VERSION: Final = 1
_MOST_MULTIPLE: Final = 1_000_000
_KEPT: Final = ("patch_size", "image_size", "pool", "classes", "data")
_SAME: Final = (*_KEPT, "recipe", "settings", "batch_size", "cooldown")  # in all runs of a table


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all runs have in common: the model apart from its shape, and the images.

    `head_dim` is the widest run's, and all MLP sizes are multiples of `multiple`.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    patch_size: int
    image_size: tuple[int, int]
    pool: Pool
    classes: int
    data: str
    head_dim: int
    multiple: int

    def __post_init__(self) -> None:
        for name in ("head_dim", "multiple"):
            if not 1 <= getattr(self, name) <= _MOST_MULTIPLE:
                raise ConfigError(f"{name} is {getattr(self, name)}, it must lie in 1..{_MOST_MULTIPLE}.")


@dataclass(frozen=True, kw_only=True)
class Training:
    """How all runs were trained, as `sovit shape sweep` wrote it; the `learning_rate` is the design's own.

    `warmup_steps` are those of every run, None in a table that does not say.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    recipe: str
    settings: tuple[str, ...]
    batch_size: int
    cooldown: float
    learning_rate: float
    warmup_steps: int | None = None

    def __post_init__(self) -> None:
        if self.batch_size < 1 or not 0 < self.cooldown < 1 or self.learning_rate <= 0 or (self.warmup_steps or 0) < 0:
            raise ConfigError(
                "batch_size must be 1 or more, cooldown above 0 and below 1, learning_rate above 0 and warmup_steps 0 "
                "or more."
            )


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What was measured: the shapes of the runs, and the least and the largest compute, in GFLOPs forward, and error.

    `shapes` are width, depth and mlp_dim, one for each run. `images` are the most that a run saw, repeats counted; 0
    where the table does not say.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    shapes: tuple[tuple[float, float, float], ...]
    compute: tuple[float, float]
    error: tuple[float, float]
    images: float

    def __post_init__(self) -> None:
        if not self.shapes or min(size for shape in self.shapes for size in shape) < 1:
            raise ConfigError("the shapes seen must be one or more, and their sizes 1 or more.")
        if self.images < 0:
            raise ConfigError(f"the images seen are {self.images:g}, they must be 0 or more.")

    def sizes(self, dimension: str) -> tuple[float, float]:
        """The least and the largest of a dimension."""
        sizes = self._of(dimension)
        return min(sizes), max(sizes)

    def usual(self, dimension: str) -> float:
        """The size that most runs have, as the centre of a star; of several the largest."""
        counts = Counter(self._of(dimension))
        return max(counts, key=lambda size: (counts[size], size))

    def _of(self, dimension: str) -> list[float]:
        return [shape[DIMENSIONS.index(dimension)] for shape in self.shapes]


@dataclass(frozen=True, kw_only=True)
class LawFile:
    """A law as it is kept.

    `training` is None where the table does not say how its runs were trained. `hold_out` is None, and `not_held_out`
    says why, where no part could be held out; `each_shape` where no shape could be.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    schema_version: Literal[1] = _SCHEMA_VERSION
    setting: Setting
    training: Training | None
    seen: Seen
    fit: Fit
    laws: tuple[ShapeLaw, ...]
    intervals: tuple[Interval, ...]
    hold_out: HoldOut | None
    not_held_out: str
    each_shape: EachShape | None
    other_rates: tuple[OtherRate, ...] = ()
    warnings: tuple[str, ...]

    @property
    def law(self) -> ShapeLaw:
        """The law itself."""
        return self.fit.law


def setting_of(rows: Sequence[dict[str, Any]], where: str) -> Setting:
    """What runs with points have in common. Raises `ConfigError` for runs that one law cannot be fitted to."""
    run = [row for row in rows if row.get("points")]
    for name in _SAME:
        found = {str(row.get(name)) for row in run}
        if len(found) > 1:
            raise ConfigError(f"{where} holds runs with different {name}: {', '.join(sorted(found))}; a law is of one.")
    for row in run:
        heads, width = row.get("num_heads"), row["width"]
        if isinstance(heads, bool) or not isinstance(heads, int) or heads < 1 or width % heads:
            raise ConfigError(
                f"{where}: run {row['run']} has {heads!r} num_heads: its width {width} must divide by it."
            )
    widest = max(run, key=lambda row: int(row["width"]))
    sizes = {"head_dim": widest["width"] // widest["num_heads"], "multiple": _multiple(run)}
    return from_dict(Setting, {name: widest.get(name) for name in _KEPT} | sizes, where)


def training_of(rows: Sequence[dict[str, Any]], where: str) -> Training | None:
    """How runs of one learning rate were trained. Raises `ConfigError` for a table that says it in another way."""
    run = [row for row in rows if row.get("points")]
    warmups = {row["warmup_steps"] for row in run if row.get("warmup_steps") is not None}
    if len(warmups) > 1:
        raise ConfigError(f"{where} holds runs with different warmup_steps: {', '.join(map(str, sorted(warmups)))}.")
    row = run[0] | {"warmup_steps": next(iter(warmups), None)}
    said = {field.name: row.get(field.name) for field in fields(Training)}
    lacks = any(said[field.name] is None for field in fields(Training) if field.default is MISSING)
    return None if lacks else from_dict(Training, said, where)


def seen_in(points: Points, images: float) -> Seen:
    """The shapes and ranges of the points; `images` are the most of one, as the table says."""
    first_R = np.unique(points.run_P, return_index=True)[1]
    shapes = tuple((width, depth, mlp_dim) for width, depth, mlp_dim in points.shapes_PK[first_R].tolist())
    return Seen(shapes=shapes, compute=_range(points.compute_P), error=_range(points.error_P), images=images)


def write_law(path: Path, law: LawFile) -> None:
    """Write it whole or not at all."""
    write_json(path, to_dict(law))


def read_law(path: Path) -> LawFile:
    """Read it; raises `ConfigError` for a file that is none."""
    if path.suffix == ".jsonl":
        raise ConfigError(f"{path} looks like a table of runs: `sovit shape fit` makes a law of one.")
    data = read_json(path)
    if not (isinstance(data, dict) and "fit" in data and "laws" in data):
        raise ConfigError(f"{path} is no law: `sovit shape fit` writes one.")
    try:
        return from_dict(LawFile, data, "the law")
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _range(values: Any) -> tuple[float, float]:
    return float(values.min()), float(values.max())


def _multiple(rows: Sequence[dict[str, Any]]) -> int:
    """What MLP sizes are multiples of: `MULTIPLE`, or as much of it as the runs' are."""
    return math.gcd(MULTIPLE, *(int(row["mlp_dim"]) for row in rows))
