"""A recipe by its name, with the fields that were typed after `--set`."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import MISSING, asdict, fields
from typing import Any, Final

from sovit.errors import ConfigError
from sovit.jsonio import from_dict
from train.config import FIELDS, SHAPE, TrainConfig
from train.recipes import RECIPES

# Ways to say the same: one that is typed takes the place of another that the recipe has.
_INSTEAD: Final = (
    (("steps",), ("epochs",)),
    (("warmup_steps",), ("warmup_fraction",)),
    (SHAPE, ("init",)),
)
_DEFAULTS: Final = {field.name: None if field.default is MISSING else field.default for field in fields(TrainConfig)}
# What is typed has to have an effect: the field, what it takes, and whether that is so.
_NEEDS: Final[dict[str, tuple[str, Callable[[TrainConfig], bool]]]] = {
    "pad_pixels": ("crop=pad", lambda config: config.crop == "pad"),
    "crop_area": ("crop=inception", lambda config: config.crop == "inception"),
    "randaugment_magnitude": ("randaugment_count", lambda config: config.randaugment_count > 0),
    "distill_weight": ("teacher", lambda config: bool(config.teacher)),
    "distill_temperature": ("teacher", lambda config: bool(config.teacher)),
    "timescale": ("schedule=rsqrt", lambda config: config.schedule == "rsqrt"),
    "momentum": ("optimizer=sgd or adafactor", lambda config: config.optimizer != "adamw"),
    "betas": ("optimizer=adamw", lambda config: config.optimizer == "adamw"),
    "pool": ("a shape instead of init, whose pooling is kept", lambda config: not config.init),
    "position_embedding": ("a shape instead of init, whose embedding is kept", lambda config: not config.init),
}


def recipe(name: str, settings: list[str]) -> TrainConfig:
    """A recipe by name with `field=value` settings applied, the last of a field. `ConfigError`s name the near match."""
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(RECIPES)}."
        raise ConfigError(f"no recipe is called {name!r}; {hint}")
    typed = dict(_split(setting) for setting in settings)
    values: dict[str, Any] = asdict(RECIPES[name]()) | typed
    given = {field for field, value in typed.items() if value is not None}
    for ways in _INSTEAD:
        for way, other in (ways, ways[::-1]):
            if given.intersection(way) and not given.intersection(other):
                values |= {field: _DEFAULTS[field] for field in other}
    config = from_dict(TrainConfig, values, f"recipe {name}")
    for field in typed:
        needed, met = _NEEDS.get(field, ("", None))
        if met is not None and not met(config):
            raise ConfigError(f"--set {field} has no effect here: it needs {needed}.")
    return config


def _split(setting: str) -> tuple[str, Any]:
    field, equals, text = setting.partition("=")
    if not equals:
        raise ConfigError(f"--set {setting!r} lacks its value, as in --set steps=100.")
    if field not in FIELDS:
        close = difflib.get_close_matches(field, FIELDS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(FIELDS)}."
        raise ConfigError(f"--set: no field is called {field!r}; {hint}")
    return field, _read(field, text)


def _read(field: str, text: str) -> Any:
    """A value as it is typed: `image_size=224` or `224x196`, lists with commas, `none` for what is not set."""
    if field == "image_size":
        sides = text.split("x")
        return (sides[0], sides[-1]) if len(sides) <= 2 else sides
    if field in ("betas", "crop_area", "probes", "mup_depth") and text != "none":
        return [part for part in text.split(",") if part]
    if text == "none":
        return () if field == "probes" else None
    return text
