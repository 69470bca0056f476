"""Towards the least Huber loss in log space: L-BFGS-B on coefficients and exponents, with an analytic gradient.

It goes the long way from a start. Near the optimum it crawls, because a sum of Huber losses is all kinks when delta is
smaller than the noise; there `sovit.laws.solvers.newton` takes over.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from scipy.optimize import minimize  # type: ignore[import-untyped]

from sovit.laws.solvers.losses import Huber
from sovit.laws.solvers.newton import bounds
from sovit.laws.solvers.powers import Floats, PowerSum, Solutions

# A prediction must not be 0 on the way, nor a coefficient that is 0 at the start be deaf to its gradient.
_LEAST_COEF: Final = 1e-9
_START_COEF: Final = 1e-3
_STEPS: Final = 150
_MEMORY: Final = 30  # twice the unknowns


def objective(model: PowerSum, huber: Huber, z_Z: Floats) -> tuple[float, Floats]:
    """The sum over points of Huber(log prediction / y), and its gradient by z = (coefficients, exponents)."""
    split = len(model.offset_JP)
    features_BJP = model.features(z_Z[None, split:])
    terms_BJP = features_BJP * z_Z[:split, None]
    sum_P = terms_BJP[0].sum(axis=0)
    loss = huber(np.log(sum_P))
    pull_P = loss.slope / sum_P
    gradient_Z = np.concatenate([features_BJP[0], model.slopes(terms_BJP)[0]]) @ pull_P
    return float(loss.value.sum()), gradient_Z


def descend(model: PowerSum, huber: Huber, starts: Solutions) -> Solutions:
    """Descend from each row of `starts`, one after the other, for 150 steps at most."""
    split, points = model.offset_JP.shape
    z_BZ = np.concatenate([np.maximum(starts.coefs_BJ, _START_COEF), starts.exps_BQ], axis=1)
    least, most = bounds(split, z_BZ.shape[1])
    least[:split] = _LEAST_COEF
    # L-BFGS-B ends when a step gains less than ftol * max(objective, 1), so tiny losses end it too early: what
    # Besiroglu et al. 2024 (arXiv 2404.10102) found in Hoffmann et al. Over delta^2 and points the objective is near 1.
    scale = 1 / (huber.delta**2 * points)

    def scaled(z_Z: Floats) -> tuple[float, Floats]:
        value, gradient_Z = objective(model, huber, z_Z)
        return value * scale, gradient_Z * scale

    found_BZ = np.empty_like(z_BZ)
    objective_B = np.empty(len(z_BZ))
    options = {"maxiter": _STEPS, "maxcor": _MEMORY, "ftol": 1e-13, "gtol": 1e-9}
    for row, z_Z in enumerate(z_BZ):
        result = minimize(
            scaled, z_Z, jac=True, method="L-BFGS-B", bounds=list(zip(least, most, strict=True)), options=options
        )
        found_BZ[row], objective_B[row] = result.x, result.fun / scale
    coefs_BJ = np.where(found_BZ[:, :split] <= 2 * _LEAST_COEF, 0.0, found_BZ[:, :split])
    return Solutions(coefs_BJ, found_BZ[:, split:], objective_B)
