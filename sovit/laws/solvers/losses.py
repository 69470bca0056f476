"""How far a prediction is off, as a function of s = log(prediction / measurement)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from sovit.laws.solvers.powers import Floats


class Expansion(NamedTuple):
    """A loss at s with its first two derivatives by s, and a curvature that is never negative."""

    value: Floats
    slope: Floats
    curvature: Floats
    safe_curvature: Floats


class Loss(Protocol):
    """A loss with its expansion; objectives are sums over points."""

    def __call__(self, s: Floats) -> Expansion: ...


class Relative:
    """(prediction / measurement - 1)^2: the relative error that the paper minimises."""

    def __call__(self, s: Floats) -> Expansion:
        ratio = np.exp(s)
        error = np.expm1(s)
        return Expansion(error**2, 2 * ratio * error, 2 * ratio * (2 * ratio - 1), 2 * ratio**2)


@dataclass(frozen=True)
class Huber:
    """s^2 / 2 up to `delta`, and delta * (|s| - delta / 2) beyond: far points pull no harder than near ones."""

    delta: float

    def __call__(self, s: Floats) -> Expansion:
        size = np.abs(s)
        inside = size <= self.delta
        return Expansion(
            np.where(inside, s**2 / 2, self.delta * (size - self.delta / 2)),
            np.clip(s, -self.delta, self.delta),
            inside.astype(np.float64),
            self.delta / np.maximum(size, self.delta),
        )
