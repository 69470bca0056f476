"""Sums of powers with coefficients that are not negative: what every law here is to its solvers.

    y_p ~ sum_j coefs_j * exp(offset_jp + sum_q exps_q * logs_jqp)

A feature x^-a t^-c has the logs -log x for a and -log t for c. All is kept relative to the measured y, in logarithms:
the offset holds -log y, so a perfect fit is 1 at every point.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# Below, a power is a constant to all purposes, and shares its coefficient with the constant; above, it is a wall.
LEAST_EXPONENT: Final = 0.01
MOST_EXPONENT: Final = 10.0


@dataclass(frozen=True, eq=False)
class PowerSum:
    """The features of P points: `logs_JQP` [J, Q, P] and `offset_JP` [J, P], which holds -log y."""

    logs_JQP: Floats
    offset_JP: Floats

    @cached_property
    def links(self) -> tuple[tuple[int, int], ...]:
        """Which features depend on which exponents: few of J x Q."""
        return tuple((int(j), int(q)) for j, q in np.argwhere(self.logs_JQP.any(axis=2)))

    @cached_property
    def flat(self) -> Floats:
        """The logs as one matrix, X = J * P."""
        coefs, exps, points = self.logs_JQP.shape
        return np.ascontiguousarray(self.logs_JQP.transpose(1, 0, 2)).reshape(exps, coefs * points)

    def features(self, exps_BQ: Floats) -> Floats:
        """The features over y, [B, J, P]."""
        product_BX = exps_BQ @ self.flat
        return np.exp(product_BX.reshape(len(exps_BQ), *self.offset_JP.shape) + self.offset_JP)

    def slopes(self, terms_BJP: Floats) -> Floats:
        """Derivatives of the sum of the terms by the exponents, [B, Q, P]."""
        slopes_BQP = np.zeros((len(terms_BJP), *self.logs_JQP.shape[1:]))
        for j, q in self.links:
            slopes_BQP[:, q] += terms_BJP[:, j] * self.logs_JQP[j, q]
        return slopes_BQP


@dataclass(frozen=True, eq=False)
class Solutions:
    """What a solver found, one row for each start or replicate: `coefs_BJ`, `exps_BQ`, `objective_B`."""

    coefs_BJ: Floats
    exps_BQ: Floats
    objective_B: Floats

    @property
    def best(self) -> int:
        """The row of the least objective."""
        return int(np.argmin(self.objective_B))
