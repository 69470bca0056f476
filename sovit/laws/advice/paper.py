"""A shape by the named law `paper`: an anchor of the paper, scaled to another compute. It knows no errors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Final

from pydantic import ConfigDict

from sovit.config import ViTConfig, by_number, variant_config
from sovit.cost import TRAINING, Cost, cost
from sovit.errors import ConfigError
from sovit.jsonio import STRICT
from sovit.laws.paper import PaperLaw, paper_law

_PATCH: Final = 14
_HEAD_DIM: Final = 64
# What the paper says a shape is the compute equivalent of: a variant, and the images it saw (section 4.1).
_EQUIVALENTS: Final = {"So400m": ("g", 16e9), "So150m": ("B", 4e9)}


@dataclass(frozen=True, kw_only=True)
class Scaled:
    """An anchor's shape for `tau` times its compute, at 14-pixel patches and 224-pixel images.

    `sizes` are width, depth and mlp_dim before they were rounded. `images` is how many `train_flops` pay for.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    anchor: str
    anchor_flops: float
    anchor_words: str
    train_flops: float
    tau: float
    sizes: tuple[float, float, float]
    name: str
    config: ViTConfig
    cost: Cost
    images: float
    caveat: str


def scale(*, train_flops: float, anchor: str, anchor_flops: float | None, multiple: int) -> Scaled:
    """Scale an anchor by tau = `train_flops` / `anchor_flops`, both forward and backward.

    Without `anchor_flops` it is what the paper calls the anchor's equivalent; for one that has none that is a
    `ConfigError`. Widths are multiples of 64, MLP sizes of `multiple`.
    """
    law = paper_law(anchor)
    for name, value in (("--train-flops", train_flops), ("--anchor-flops", anchor_flops)):
        if value is not None and not 0 < value < math.inf:
            raise ConfigError(f"{name} is {value:g}, it must be above 0 and finite.")
    if multiple < 1:
        raise ConfigError(f"the multiple of MLP sizes is {multiple}, it must be at least 1.")
    reference, words = (anchor_flops, "as given") if anchor_flops is not None else _equivalent(anchor)
    tau = train_flops / reference
    config = _rounded(law, tau, multiple)
    found = cost(config)
    if train_flops < TRAINING * found.flops:
        raise ConfigError(f"--train-flops {train_flops:g} does not pay for one image of {by_number(config)}.")
    return Scaled(
        anchor=anchor, anchor_flops=reference, anchor_words=words, train_flops=train_flops, tau=tau,
        sizes=law.shape(tau), name=by_number(config), config=config, cost=found,
        images=train_flops / TRAINING / found.flops, caveat=law.caveat,
    )  # fmt: skip


def _equivalent(anchor: str) -> tuple[float, str]:
    if anchor not in _EQUIVALENTS:
        raise ConfigError(
            f"the compute of the anchor {anchor} is not published: give it as --anchor-flops, forward and backward, or "
            f"take --anchor {' or '.join(_EQUIVALENTS)}."
        )
    name, images = _EQUIVALENTS[anchor]
    flops = TRAINING * images * cost(variant_config(f"{name}/{_PATCH}")).flops
    return flops, f"that of {name}/{_PATCH} on {images / 1e9:g} billion images, which the paper calls its equivalent"


def _rounded(law: PaperLaw, tau: float, multiple: int) -> ViTConfig:
    width, depth, mlp_dim = law.shape(tau)
    heads = max(1, round(width / _HEAD_DIM))
    return ViTConfig(
        width=heads * _HEAD_DIM, depth=max(1, round(depth)), mlp_dim=max(1, round(mlp_dim / multiple)) * multiple,
        num_heads=heads, patch_size=_PATCH,
    )  # fmt: skip
