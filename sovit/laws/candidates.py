"""The shapes that a law is asked about: around those that it was fitted to, and known ones beside them."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from sovit.config import ViTConfig, by_number, variant_config
from sovit.cost import Cost, cost
from sovit.errors import ConfigError
from sovit.laws.form import DIMENSIONS, ShapeLaw
from sovit.laws.law_file import Seen, Setting

KNOWN: Final = ("So400m", "L", "H", "g")
_STEP: Final = 1.1  # from one size to the next
_MOST_SIZES: Final = 32  # of a dimension: 32,768 shapes are weighed in two seconds
_MOST_MARGIN: Final = 10.0


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A shape with its cost. `outside` names the dimensions in which it is smaller or larger than all of the runs."""

    name: str
    config: ViTConfig
    cost: Cost
    outside: tuple[str, ...]


def candidates(setting: Setting, seen: Seen, law: ShapeLaw, *, margin: float, multiple: int) -> tuple[Candidate, ...]:
    """All combinations of sizes in geometric steps, up to `margin` times beyond those seen.

    Widths are multiples of the runs' head_dim, MLP sizes of `multiple`. In a dimension whose best size the law does
    not tell, nothing beyond the sizes seen is asked for; where even its exponents were held, only the two sizes that
    the law passes through. Raises `ConfigError` where no size is left.
    """
    if not 1 <= margin <= _MOST_MARGIN:
        raise ConfigError(f"the margin is {margin:g}, it must lie in 1..{_MOST_MARGIN:g}.")
    if multiple < 1:
        raise ConfigError(f"the multiple of MLP sizes is {multiple}, it must be at least 1.")
    multiples = (setting.head_dim, 1, multiple)
    sizes = [_sizes(k, seen, law, margin, multiples[k]) for k in range(len(DIMENSIONS))]
    return tuple(_candidate(setting, seen, *shape) for shape in itertools.product(*sizes))


def known_variants(setting: Setting, seen: Seen) -> tuple[Candidate, ...]:
    """So400m and the larger ViTs, with the patches, images, pooling and head that the law is about."""
    found = []
    for name in KNOWN:
        text = f"{name}/{setting.patch_size}"
        config = replace(
            variant_config(text, image_size=setting.image_size, num_classes=setting.classes), pool=setting.pool
        )
        found.append(candidate_of(text, config, seen))
    return tuple(found)


def candidate_of(name: str, config: ViTConfig, seen: Seen) -> Candidate:
    """A configuration as a candidate."""
    ranges = {dimension: getattr(seen, dimension) for dimension in DIMENSIONS}
    outside = tuple(each for each, (low, high) in ranges.items() if not low <= getattr(config, each) <= high)
    return Candidate(name=name, config=config, cost=cost(config), outside=outside)


def untold(law: ShapeLaw) -> tuple[str, ...]:
    """The dimensions whose best size the law does not tell."""
    return tuple(name for name, s in zip(DIMENSIONS, law.exponents, strict=True) if math.isnan(s))


def _candidate(setting: Setting, seen: Seen, width: int, depth: int, mlp_dim: int) -> Candidate:
    config = ViTConfig(
        width=width, depth=depth, mlp_dim=mlp_dim, num_heads=width // setting.head_dim, patch_size=setting.patch_size,
        image_size=setting.image_size, pool=setting.pool, num_classes=setting.classes,
    )  # fmt: skip
    return candidate_of(by_number(config), config, seen)


def _sizes(k: int, seen: Seen, law: ShapeLaw, margin: float, multiple: int) -> list[int]:
    """The sizes of one dimension, rising."""
    name = DIMENSIONS[k]
    low, high = getattr(seen, name)
    least, most = (low, high) if name in untold(law) else (low / margin, high * margin)
    ends = {low, high}
    if law.terms[k].identified:
        count = min(_MOST_SIZES, math.ceil(math.log(most / least) / math.log(_STEP)) + 1)
        steps = {round(size / multiple) * multiple for size in np.geomspace(least, most, count).tolist()}
    else:
        steps = set()
    found = sorted(int(size) for size in steps | ends if size % multiple == 0 and max(1, least) <= size <= most)
    if not found:
        raise ConfigError(
            f"no {name} from {least:g} to {most:g} is a multiple of {multiple}: widen the margin, or take another "
            "multiple."
        )
    return found
