"""What an importer finds out about a foreign checkpoint before any weight is read, and what the user may choose."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sovit.config import PositionResampling
from sovit.convert.rules import Shape, Table, Weights
from sovit.errors import ConfigError
from sovit.preprocess import Interpolation, Preprocess, ResizeRule
from sovit.spec import ModelSpec, Score


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """Choices of the user; None leaves it to the source, or to its code base's convention.

    `image_size` (Y, X) resamples the position embedding by the rule `position_resampling`. `drop_head` leaves the
    source's head out. `num_classes` is the size the head must have; where there is none, or it is dropped, a new one
    of zeros. The preprocessing fields replace the source's own.
    """

    image_size: tuple[int, int] | None = None
    position_resampling: PositionResampling | None = None
    drop_head: bool = False
    num_classes: int | None = None
    labels: tuple[str, ...] | None = None
    score: Score | None = None
    resize: ResizeRule | None = None
    crop_fraction: float | None = None
    interpolation: Interpolation | None = None

    def __post_init__(self) -> None:
        if self.num_classes is not None and self.num_classes < 1:
            raise ConfigError(f"num_classes is {self.num_classes}, it must be at least 1; drop_head leaves it out.")

    def head_classes(self, declared: int, in_file: bool) -> int:
        """Outputs the source's own head must have; 0 when it has none or it is dropped."""
        if self.drop_head:
            return 0
        return self.num_classes if self.num_classes is not None and (declared or in_file) else declared

    def names(self, classes: int, found: tuple[str, ...]) -> tuple[str, ...]:
        """Names of the source's own classes: the user's where there are any, else those found."""
        return self.labels if self.labels is not None and classes else found

    def preprocess(self, found: Preprocess) -> Preprocess:
        """The source's preprocessing with the user's choices in its place.

        Another resize rule brings its own frame: without a `crop_fraction` beside it, nothing is cropped.
        """
        chosen = {name: getattr(self, name) for name in ("resize", "crop_fraction", "interpolation")}
        if self.resize not in (None, found.resize):
            found = replace(found, resize=self.resize, crop_fraction=1.0, patch_size=None, max_patches=None)
        return replace(found, **{name: value for name, value in chosen.items() if value is not None})


@dataclass(frozen=True, kw_only=True)
class Foreign:
    """A foreign checkpoint, described.

    `table` makes our parameters of its keys; `ignored` are keys that no parameter needs; `text` are those of a text
    tower, with their shapes, kept as they are beside `text_config` and the tokenizer's `files`. `silent` are fields of
    the preprocessing that the source says nothing about, `notes` other things to tell the user.
    """

    layout: str
    weights: Weights
    spec: ModelSpec
    table: Table
    ignored: frozenset[str] = frozenset()
    text: Mapping[str, Shape] = field(default_factory=dict)
    text_config: Mapping[str, Any] = field(default_factory=dict)
    files: tuple[Path, ...] = ()
    silent: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
