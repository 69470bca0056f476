"""Damped Newton steps on coefficients and exponents together, for any loss and many weightings at once.

Used where a start is near: to bring an optimum to full precision, and to refit under a Huber loss, whose many kinks
make L-BFGS crawl. The second derivatives are exact; where they curve down, their sign is turned (saddle-free), so that
every step descends.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from sovit.laws.solvers.losses import Loss
from sovit.laws.solvers.nonnegative import Flags
from sovit.laws.solvers.powers import LEAST_EXPONENT, MOST_EXPONENT, Floats, PowerSum, Solutions

_STEPS: Final = 400
_LONGEST_STEP: Final = 0.5
_STILL: Final = 1e-13  # a relative gain below is none
_ROUNDING: Final = 1e-14  # nor is a relative loss below: near the optimum the step is right and the sum is not
_NOTHING: Final = 1e-28  # an objective that is rounding
_STUCK: Final = 1e10
_DAMPING: Final = 1e-2
_LEAST_DAMPING: Final = 1e-12
_TINY: Final = 1e-300


class Derivatives(NamedTuple):
    """The objective by z = (coefficients, exponents), Z = J + Q, and a positive scale of each entry of its Hessian."""

    objective_B: Floats
    gradient_BZ: Floats
    hessian_BZZ: Floats
    scale_BZ: Floats


def derivatives(model: PowerSum, loss: Loss, weights_BP: Floats, z_BZ: Floats) -> Derivatives:
    """sum_p weights_p loss(log prediction_p / y_p) with its first and second derivatives."""
    split = len(model.offset_JP)
    features_BJP = model.features(z_BZ[:, split:])
    terms_BJP = features_BJP * z_BZ[:, :split, None]
    sum_BP = np.maximum(terms_BJP.sum(axis=1), _TINY)
    value, slope, curvature, safe = (weights_BP * part for part in loss(np.log(sum_BP)))
    jacobian_BZP = np.concatenate([features_BJP, model.slopes(terms_BJP)], axis=1) / sum_BP[:, None]
    # log f has the second derivatives f'' / f - (f' / f)(f' / f)'.
    hessian_BZZ = (jacobian_BZP * (curvature - slope)[:, None]) @ jacobian_BZP.transpose(0, 2, 1)
    pull_BJP = features_BJP * (slope / sum_BP)[:, None]
    for j, logs_QP in enumerate(model.logs_JQP):
        q = np.flatnonzero(logs_QP.any(axis=1))
        mixed_BQ = pull_BJP[:, j] @ logs_QP[q].T
        hessian_BZZ[:, j, split + q] += mixed_BQ
        hessian_BZZ[:, split + q, j] += mixed_BQ
        squares_BQQ = pull_BJP[:, j] @ (logs_QP[q, None] * logs_QP[q]).reshape(len(q) ** 2, sum_BP.shape[1]).T
        both = np.ix_(split + q, split + q)
        hessian_BZZ[:, both[0], both[1]] += z_BZ[:, j, None, None] * squares_BQQ.reshape(len(z_BZ), len(q), len(q))
    return Derivatives(
        value.sum(axis=1),
        (jacobian_BZP @ slope[:, :, None])[:, :, 0],
        hessian_BZZ,
        np.sqrt(((jacobian_BZP**2) @ safe[:, :, None])[:, :, 0]),
    )


def refine(model: PowerSum, loss: Loss, weights_BP: Floats, start: Solutions) -> Solutions:
    """Descend from each row of `start` under its row of weights, within the bounds."""
    split = len(model.offset_JP)
    z_BZ = np.concatenate([start.coefs_BJ, start.exps_BQ], axis=1)
    now = derivatives(model, loss, weights_BP, z_BZ)
    damping_B = np.full(len(z_BZ), _DAMPING)
    still_B = np.zeros(len(z_BZ), np.int64)
    moving = np.arange(len(z_BZ))
    for _ in range(_STEPS):
        near = Derivatives(*(part[moving] for part in now))
        trial_BZ = _step(z_BZ[moving], near, damping_B[moving], split)
        trial = derivatives(model, loss, weights_BP[moving], trial_BZ)
        gain = near.objective_B - trial.objective_B
        taken = gain >= -_ROUNDING * near.objective_B
        done = (taken & (gain <= _STILL * near.objective_B + _NOTHING)) | (damping_B[moving] > _STUCK)
        z_BZ[moving[taken]] = trial_BZ[taken]
        for old, new in zip(now, trial, strict=True):
            old[moving[taken]] = new[taken]
        damping_B[moving] = np.where(taken, np.maximum(damping_B[moving] / 4, _LEAST_DAMPING), damping_B[moving] * 5)
        still_B[moving] = np.where(done, still_B[moving] + 1, np.where(taken, 0, still_B[moving]))
        moving = moving[still_B[moving] < 2]  # twice: one short step may be the damping's
        if not len(moving):
            break
    return Solutions(z_BZ[:, :split], z_BZ[:, split:], now.objective_B)


def free(z_BZ: Floats, gradient_BZ: Floats, split: int) -> Flags:
    """Which unknowns may move: not those on a bound that want beyond it."""
    least, most = bounds(split, z_BZ.shape[1])
    return ~(((z_BZ <= least) & (gradient_BZ > 0)) | ((z_BZ >= most) & (gradient_BZ < 0)))


def bounds(split: int, size: int) -> tuple[Floats, Floats]:
    """The least and the most of every unknown: coefficients first, then exponents."""
    is_coef = np.arange(size) < split
    return np.where(is_coef, 0.0, LEAST_EXPONENT), np.where(is_coef, np.inf, MOST_EXPONENT)


def _step(z_BZ: Floats, at: Derivatives, damping_B: Floats, split: int) -> Floats:
    free_BZ = free(z_BZ, at.gradient_BZ, split) & (at.scale_BZ > _TINY)
    scale_BZ = np.where(free_BZ, at.scale_BZ, 1.0)
    both_free = free_BZ[:, :, None] & free_BZ[:, None]
    curve_BZ, axes_BZZ = np.linalg.eigh(
        np.where(both_free, at.hessian_BZZ / (scale_BZ[:, :, None] * scale_BZ[:, None]), 0.0)
    )
    along_BZ = axes_BZZ.transpose(0, 2, 1) @ np.where(free_BZ, at.gradient_BZ / scale_BZ, 0.0)[:, :, None]
    step_BZ = -(axes_BZZ @ (along_BZ / (np.abs(curve_BZ) + damping_B[:, None])[:, :, None]))[:, :, 0] / scale_BZ
    step_BZ[:, split:] = np.clip(step_BZ[:, split:], -_LONGEST_STEP, _LONGEST_STEP)
    return np.clip(z_BZ + np.where(free_BZ, step_BZ, 0.0), *bounds(split, z_BZ.shape[1]))
