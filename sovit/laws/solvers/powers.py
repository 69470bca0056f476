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

    def features(self, exps_BQ: Floats) -> Floats:
        """The features over y, [B, J, P]."""
        # Link by link and not as one product of matrices: they are mostly zeros, and a product of this size would start
        # threads of BLAS's own, which wait for each other longer than they work where a machine has other things to do.
        logs_BJP = np.tile(self.offset_JP, (len(exps_BQ), 1, 1))
        for j, q in self.links:
            logs_BJP[:, j] += exps_BQ[:, q, None] * self.logs_JQP[j, q]
        return np.exp(logs_BJP, out=logs_BJP)

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
