"""Whole runs as Python functions. The docstring says how to run one and what to expect."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Final

from sovit.errors import ConfigError
from sovit.jsonio import from_dict
from train.config import FIELDS, TrainConfig


def digits() -> TrainConfig:
    """A small SoViT on scikit-learn's 8 x 8 digits.

        sovit train digits --data digits --out runs/digits

    The shape keeps So400m's proportions (width : depth : mlp_dim = 1152 : 27 : 4304) at depth 2, with patches of 2
    pixels. Expect about 99 % on the 360 held-out digits after half a minute on two CPU cores.
    """
    return TrainConfig(
        width=80,
        depth=2,
        mlp_dim=300,
        num_heads=5,
        patch_size=2,
        image_size=(8, 8),
        steps=700,
        warmup_steps=70,
        batch_size=64,
        learning_rate=3e-3,
        weight_decay=0.3,
        label_smoothing=0.1,
        rotate_degrees=8.0,
        shift_fraction=0.06,
        scale_fraction=0.06,
        keep_decoded=True,
        workers=0,  # 8 x 8 pixels are ready sooner than another process could send them
        # A model this small gains a third from a second core, and loses manifold where that core is busy elsewhere.
        threads=1,
    )


def cifar10() -> TrainConfig:
    """A small SoViT on CIFAR-10's 50,000 images of 32 x 32 pixels, from Parquet files.

    sovit train cifar10 --data DATA --out runs/cifar10
    """
    return TrainConfig(
        width=192,
        depth=6,
        mlp_dim=640,
        num_heads=6,
        patch_size=4,
        image_size=(32, 32),
        epochs=30,
        warmup_fraction=0.1,
        batch_size=256,
        learning_rate=2e-3,
        weight_decay=0.3,
        label_smoothing=0.1,
        crop="pad",
        flip=True,
        randaugment_count=1,
        randaugment_magnitude=5,
        ema=0.998,
        precision="bf16",
        keep_decoded=True,
        eval_every=1_000,
    )


RECIPES: Final[dict[str, Callable[[], TrainConfig]]] = {"digits": digits, "cifar10": cifar10}


def recipe(name: str, settings: list[str]) -> TrainConfig:
    """A recipe by name with `field=value` settings applied. Raises `ConfigError` naming the near match."""
    if name not in RECIPES:
        raise ConfigError(f"no recipe is called {name!r}; known are {', '.join(RECIPES)}.")
    values: dict[str, Any] = asdict(RECIPES[name]())
    for setting in settings:
        field, equals, text = setting.partition("=")
        if not equals:
            raise ConfigError(f"--set {setting!r} lacks its value, as in --set steps=100.")
        if field not in FIELDS:
            close = difflib.get_close_matches(field, FIELDS, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(FIELDS)}."
            raise ConfigError(f"--set: no field is called {field!r}; {hint}")
        values[field] = _read(field, text)
    return from_dict(TrainConfig, values, f"recipe {name}")


def _read(field: str, text: str) -> Any:
    """A value as it is typed: `image_size=224` or `224x196`, lists with commas, `none` for what is not set."""
    if field == "image_size":
        sides = text.split("x")
        return (sides[0], sides[-1]) if len(sides) <= 2 else sides
    if field in ("betas", "crop_area", "probes"):
        return [part for part in text.split(",") if part]
    return None if text == "none" else text
