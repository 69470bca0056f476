"""What may be spent, on training, on answers and on the model itself, and which shapes keep to it.

Compute has two conventions, and both are told: `train_flops` counts forward and backward passes, 3 times the forward
pass alone; the law's t counts forward passes, in GFLOPs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import ClassVar, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict

from sovit.cost import TRAINING, Cost
from sovit.errors import ConfigError
from sovit.jsonio import STRICT
from sovit.laws.advice.candidates import Candidate
from sovit.laws.solvers.powers import Floats
from sovit.laws.table import GFLOP

_MOST_BATCH: Final = 65_536
_MOST: Final = 1e40  # of anything: beyond all that is ever computed


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What a shape may cost. None is no limit.

    `train_flops` pays for the training, forward and backward, and before it for one forward pass of each of
    `lifetime_images`. `max_memory` is in bytes of float32, weights and activations of a batch of `batch` images;
    `max_latency_ms` is the median time of such a batch. Raises `ConfigError` for what is no amount.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    train_flops: float
    lifetime_images: float = 0.0
    max_params: float | None = None
    max_memory: float | None = None
    max_latency_ms: float | None = None
    batch: int = 1

    def __post_init__(self) -> None:
        for name in ("train_flops", "max_params", "max_memory", "max_latency_ms"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= _MOST:
                raise ConfigError(f"{option(name)} is {value:g}, it must be above 0 and at most {_MOST:g}.")
        if not 0 <= self.lifetime_images <= _MOST:
            raise ConfigError(f"--lifetime-images is {self.lifetime_images:g}, it must lie in 0..{_MOST:g}.")
        if not 1 <= self.batch <= _MOST_BATCH:
            raise ConfigError(f"--batch is {self.batch}, it must lie in 1..{_MOST_BATCH:,}.")

    def compute(self, cost: Cost) -> float:
        """GFLOPs of forward passes that are left for the training of a model; 0 and less where nothing is."""
        return (self.train_flops - self.lifetime_images * cost.flops) / TRAINING / GFLOP

    def memory(self, cost: Cost) -> int:
        """Bytes of the weights and of a batch's activations."""
        return cost.weight_bytes + self.batch * cost.activation_bytes

    def least_flops(self, cost: Cost) -> float:
        """What pays for a training with one image: the law knows nothing of less."""
        return (TRAINING + self.lifetime_images) * cost.flops


class Limit(NamedTuple):
    """Something that may be at most so much, and what each candidate has of it; NaN where that is not known."""

    name: str
    most: float
    values_P: Floats

    @property
    def kept(self) -> NDArray[np.bool_]:
        """Which candidates keep it."""
        return np.asarray(self.values_P <= self.most)


def option(name: str) -> str:
    """A field of the budget as it is typed."""
    return f"--{name.replace('_', '-')}"


def limits(budget: Budget, candidates: Sequence[Candidate], latency_ms: Mapping[str, float]) -> tuple[Limit, ...]:
    """The limits that a budget sets; `latency_ms` are the candidates' by name, as far as they were measured."""
    values = {
        "train_flops": [budget.least_flops(one.cost) for one in candidates],
        "max_params": [one.cost.parameters for one in candidates],
        "max_memory": [budget.memory(one.cost) for one in candidates],
        "max_latency_ms": [latency_ms.get(one.name, math.nan) for one in candidates],
    }
    names = [field.name for field in fields(Budget) if field.name in values]
    given = [(name, most) for name in names if (most := getattr(budget, name)) is not None]
    return tuple(Limit(name, most, np.array(values[name], np.float64)) for name, most in given)


def keeping(limits: Sequence[Limit], candidates: Sequence[Candidate]) -> NDArray[np.bool_]:
    """Which candidates keep all limits. Raises `ConfigError` where none does, with what would let one."""
    kept = np.logical_and.reduce([limit.kept for limit in limits])
    if not kept.any():
        raise ConfigError(_nothing_left(limits, candidates))
    return np.asarray(kept)


def but_latency(budget: Budget, candidates: Sequence[Candidate]) -> list[Candidate]:
    """Those that keep all limits but that of latency, which is measured. Raises `ConfigError` where none does."""
    kept_P = keeping(limits(replace(budget, max_latency_ms=None), candidates, {}), candidates)
    return [one for one, kept in zip(candidates, kept_P, strict=True) if kept]


def _nothing_left(limits: Sequence[Limit], candidates: Sequence[Candidate]) -> str:
    """Which limit excludes the rest, and the nearest value at which it would not."""
    alone = [limit for limit in limits if not limit.kept.any()]
    for limit in alone:
        if np.isnan(limit.values_P).all():
            return f"none of the {len(candidates):,} shapes looked at was measured, as {option(limit.name)} needs."
    excluding = alone or [limit for limit in limits if not limit.kept.all()]
    ways = []
    for limit in excluding:
        others = [other.kept for other in limits if other is not limit and not alone]
        left_P = np.logical_and.reduce([~np.isnan(limit.values_P), *others])
        if left_P.any():
            nearest = int(np.argmin(np.where(left_P, limit.values_P, np.inf)))
            value = _rounded_up(float(limit.values_P[nearest]))
            ways.append(f"{option(limit.name)} would have to be {value} ({candidates[nearest].name})")
    named = " and ".join(f"{option(limit.name)} {limit.most:.4g}" for limit in excluding)
    said = (", and " if alone else ", or ").join(ways) or "it takes higher values of two or more of them"
    return f"none of the {len(candidates):,} shapes looked at keeps {named}{'' if alone else ' together'}: {said}."


def _rounded_up(value: float) -> str:
    """Four digits that are enough: the value itself, or a little more."""
    unit = 10.0 ** (math.floor(math.log10(value)) - 3)
    return f"{math.ceil(value / unit * (1 - 1e-12)) * unit:.4g}"
