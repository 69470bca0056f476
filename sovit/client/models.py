"""What a service serves, as `GET /models` tells it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from pydantic import ConfigDict

from sovit.errors import ConfigError
from sovit.jsonio import STRICT, from_dict


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """A model of the service. `image_size` is (Y, X) in pixels, `dim` the length of an embedding."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    name: str
    artifact: str
    precision: str
    runtime: str
    image_size: tuple[int, int]
    dim: int
    labels: tuple[str, ...]
    ready: bool


def read_models(document: Any) -> list[ModelInfo]:
    """The models of a reply. Raises `ValueError` where it has no form of ours; it may say more than we know."""
    names = [field.name for field in fields(ModelInfo)]
    match document:
        case {"models": [_, *_] as entries}:
            pass
        case _:
            raise ValueError("no list of models")
    try:
        return [
            from_dict(ModelInfo, {name: entry[name] for name in names if name in entry}, "model") for entry in entries
        ]
    except (ConfigError, TypeError) as error:
        raise ValueError(str(error).rstrip(".")) from error


def chosen(models: Sequence[ModelInfo], name: str) -> ModelInfo:
    """The model of this name, the first when it is empty. Raises `ConfigError` where there is none."""
    for model in models:
        if name in ("", model.name):
            return model
    raise ConfigError(f"no model {name!r} is served; there is {', '.join(model.name for model in models)}.")
