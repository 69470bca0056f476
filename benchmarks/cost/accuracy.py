"""Published accuracies (accuracy.json), every number with the table it stands in. None of them was measured here.

Two numbers can be compared only under the same metric, which fixes the data, the measure and how the models were
trained and evaluated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final

from pydantic import ConfigDict

from sovit.errors import ConfigError
from sovit.jsonio import STRICT, from_dict, read_json

SCHEMA_VERSION: Final = 1
PUBLISHED: Final = Path(__file__).with_name("accuracy.json")


@dataclass(frozen=True, kw_only=True)
class Metric:
    """What a number means. `training` says what the models have in common; a headline metric is drawn."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    id: str
    title: str
    training: str
    headline: bool


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where numbers were published."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    citation: str
    url: str


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """One published number, in percent. `image_size` is (Y, X) in pixels; `source` names one of the sources."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    variant: str
    image_size: tuple[int, int]
    metric: str
    value: float
    source: str


@dataclass(frozen=True, kw_only=True)
class Accuracies:
    """All published numbers."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    schema_version: int
    sources: dict[str, Source]
    metrics: tuple[Metric, ...]
    entries: tuple[Accuracy, ...]

    def of(self, variant: str, image_size: Sequence[int], metric: str) -> Accuracy | None:
        """The number of a variant at an image size, None where none was published."""
        wanted = (variant, tuple(image_size), metric)
        return next((one for one in self.entries if (one.variant, one.image_size, one.metric) == wanted), None)


def read_accuracies(path: Path = PUBLISHED) -> Accuracies:
    """The numbers in a file. Raises `ConfigError` where one lacks its source or metric, or is given twice."""
    found = from_dict(Accuracies, read_json(path), str(path))
    if found.schema_version != SCHEMA_VERSION:
        raise ConfigError(f"{path} has schema_version {found.schema_version}, known is {SCHEMA_VERSION}.")
    metrics = [metric.id for metric in found.metrics]
    if len(set(metrics)) != len(metrics):
        raise ConfigError(f"{path} has a metric twice.")
    seen = set()
    for one in found.entries:
        name = f"{one.variant} at {one.image_size[0]} px in {one.metric}"
        if one.metric not in metrics or one.source not in found.sources:
            raise ConfigError(f"{path}: {name} lacks its metric or its source.")
        if not 0 < one.value <= 100:
            raise ConfigError(f"{path}: {name} is {one.value}, it must be in percent.")
        if (one.variant, one.image_size, one.metric) in seen:
            raise ConfigError(f"{path} has {name} twice.")
        seen.add((one.variant, one.image_size, one.metric))
    return found
