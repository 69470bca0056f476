"""The shapes that a law is asked about: around those that it was fitted to, and known ones beside them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from sovit.config import ViTConfig, by_number, variant_config
from sovit.cost import Cost, cost
from sovit.errors import ConfigError
from sovit.laws.advice.hull import among
from sovit.laws.form import DIMENSIONS, ShapeLaw
from sovit.laws.law_file import Seen, Setting

KNOWN: Final = ("So400m", "L", "H", "g")
TOGETHER: Final = "together"
_STEP: Final = 1.1  # from one size to the next
_MOST_SIZES: Final = 32  # of a dimension: 32,768 shapes are weighed in two seconds
_MOST_MARGIN: Final = 10.0


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A shape with its cost.

    `outside` names the dimensions in which it is smaller or larger than all of the runs, and is `TOGETHER` where each
    of its sizes lies among theirs and all of them at once do not.
    """

    name: str
    config: ViTConfig
    cost: Cost
    outside: tuple[str, ...]


def candidates(setting: Setting, seen: Seen, law: ShapeLaw, *, margin: float, multiple: int) -> tuple[Candidate, ...]:
    """All combinations of sizes in geometric steps, up to `margin` times beyond those seen.

    Widths are multiples of the runs' head_dim, MLP sizes of `multiple`. A dimension whose best size the law does not
    tell stays at what most runs have. Raises `ConfigError` where no size is left.
    """
    if not 1 <= margin <= _MOST_MARGIN:
        raise ConfigError(f"the margin is {margin:g}, it must lie in 1..{_MOST_MARGIN:g}.")
    if multiple < 1:
        raise ConfigError(f"the multiple of MLP sizes is {multiple}, it must be at least 1.")
    multiples = (setting.head_dim, 1, multiple)
    sizes = [_sizes(k, seen, law, margin, multiples[k]) for k in range(len(DIMENSIONS))]
    shapes = list(itertools.product(*sizes))
    configs = [
        ViTConfig(
            width=width, depth=depth, mlp_dim=mlp_dim, num_heads=width // setting.head_dim,
            patch_size=setting.patch_size, image_size=setting.image_size, pool=setting.pool,
            num_classes=setting.classes,
        )
        for width, depth, mlp_dim in shapes
    ]  # fmt: skip
    return candidates_of([by_number(config) for config in configs], configs, seen)


def known_variants(setting: Setting, seen: Seen) -> tuple[Candidate, ...]:
    """So400m and the larger ViTs, with the patches, images, pooling and head that the law is about."""
    names = [f"{name}/{setting.patch_size}" for name in KNOWN]
    configs = [
        replace(variant_config(name, image_size=setting.image_size, num_classes=setting.classes), pool=setting.pool)
        for name in names
    ]
    return candidates_of(names, configs, seen)


def candidates_of(names: Sequence[str], configs: Sequence[ViTConfig], seen: Seen) -> tuple[Candidate, ...]:
    """Configurations as candidates."""
    shapes_PK = np.array([[getattr(config, name) for name in DIMENSIONS] for config in configs], np.float64)
    low_K, high_K = np.array([seen.sizes(name) for name in DIMENSIONS]).T
    beyond_PK = (shapes_PK < low_K) | (shapes_PK > high_K)
    apart_P = ~among(np.array(seen.shapes), shapes_PK) & ~beyond_PK.any(axis=1)
    outside_PJ = np.column_stack([beyond_PK, apart_P])
    said = (*DIMENSIONS, TOGETHER)
    return tuple(
        Candidate(name=name, config=config, cost=cost(config), outside=tuple(itertools.compress(said, outside_J)))
        for name, config, outside_J in zip(names, configs, outside_PJ.tolist(), strict=True)
    )


def untold(law: ShapeLaw) -> tuple[str, ...]:
    """The dimensions whose best size the law does not tell."""
    return tuple(name for name, s in zip(DIMENSIONS, law.exponents, strict=True) if math.isnan(s))


def _sizes(k: int, seen: Seen, law: ShapeLaw, margin: float, multiple: int) -> list[int]:
    """The sizes of one dimension, rising."""
    name = DIMENSIONS[k]
    if name in untold(law):
        usual = int(seen.usual(name))
        if usual % multiple:
            raise ConfigError(
                f"the law does not tell the best {name}, so it stays at {usual}, which is no multiple of {multiple}."
            )
        return [usual]
    low, high = seen.sizes(name)
    least, most = low / margin, high * margin
    count = min(_MOST_SIZES, math.ceil(math.log(most / least) / math.log(_STEP)) + 1)
    steps = {round(size / multiple) * multiple for size in np.geomspace(least, most, count).tolist()}
    steps |= {int(low), int(high)}
    found = sorted(size for size in steps if size % multiple == 0 and max(1, least) <= size <= most)
    if not found:
        raise ConfigError(
            f"no {name} from {least:g} to {most:g} is a multiple of {multiple}: widen the margin, or take another "
            "multiple."
        )
    return found
