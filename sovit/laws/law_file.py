"""`law.json`: a fitted law with all that advice is drawn from, its replicates and what the runs have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

from pydantic import ConfigDict

from sovit.config import Pool
from sovit.errors import ConfigError
from sovit.jsonio import STRICT, from_dict, read_json, to_dict, write_json
from sovit.laws.bootstrap import Interval
from sovit.laws.fit import Fit
from sovit.laws.form import DIMENSIONS, ShapeLaw
from sovit.laws.holdout import HoldOut
from sovit.laws.rates import OtherRate
from sovit.laws.table import Points

_SCHEMA_VERSION: Final = 1
_KEPT: Final = ("patch_size", "image_size", "pool", "classes", "data")
_SAME: Final = (*_KEPT, "recipe", "settings", "batch_size", "cooldown")  # in all runs of a table


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all runs have in common: the model apart from its shape, and the images. `head_dim` is the widest run's."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    patch_size: int
    image_size: tuple[int, int]
    pool: Pool
    classes: int
    data: str
    head_dim: int


@dataclass(frozen=True, kw_only=True)
class Seen:
    """The least and the largest of what was measured; compute in GFLOPs, forward passes only.

    `images` are the most that a run saw, repeats counted; 0 where the table does not say.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    width: tuple[float, float]
    depth: tuple[float, float]
    mlp_dim: tuple[float, float]
    compute: tuple[float, float]
    error: tuple[float, float]
    images: float


@dataclass(frozen=True, kw_only=True)
class LawFile:
    """A law as it is kept. `hold_out` is None, and `not_held_out` says why, where no part could be held out."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    schema_version: Literal[1] = _SCHEMA_VERSION
    setting: Setting
    seen: Seen
    fit: Fit
    laws: tuple[ShapeLaw, ...]
    intervals: tuple[Interval, ...]
    hold_out: HoldOut | None
    not_held_out: str
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
        if not isinstance(row.get("num_heads"), int) or not isinstance(row.get("width"), int) or row["num_heads"] < 1:
            raise ConfigError(f"{where}: run {row.get('run')} lacks width and num_heads as whole numbers above 0.")
    widest = max(run, key=lambda row: int(row["width"]))
    data = {name: widest.get(name) for name in _KEPT} | {"head_dim": widest["width"] // widest["num_heads"]}
    return from_dict(Setting, data, where)


def seen_in(points: Points, rows: Sequence[dict[str, Any]]) -> Seen:
    """The ranges of the points; `rows` are those of their table."""
    images = max((point.get("images") or 0 for row in rows for point in row.get("points") or []), default=0)
    ranges = {name: _range(points.shapes_PK[:, index]) for index, name in enumerate(DIMENSIONS)}
    return Seen(**ranges, compute=_range(points.compute_P), error=_range(points.error_P), images=float(images))


def write_law(path: Path, law: LawFile) -> None:
    """Write it whole or not at all."""
    write_json(path, to_dict(law))


def read_law(path: Path) -> LawFile:
    """Read it; raises `ConfigError` for a file that is none."""
    return from_dict(LawFile, read_json(path), str(path))


def _range(values: Any) -> tuple[float, float]:
    return float(values.min()), float(values.max())
