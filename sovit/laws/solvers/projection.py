"""The least relative error by variable projection, for many starts or many weightings at once.

For given exponents the best coefficients are a non-negative least-squares problem, so that only the exponents are
searched for: Levenberg-Marquardt steps on what is left when the coefficients follow (Golub and Pereyra 1973, with
Kaufman's 1975 approximation of the Jacobian). The search is free of valleys in which a coefficient and its exponent
trade places, along which a joint descent creeps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from sovit.laws.solvers.nonnegative import Flags, nonnegative, solve_free
from sovit.laws.solvers.powers import LEAST_EXPONENT, MOST_EXPONENT, Floats, PowerSum, Solutions

_STEPS: Final = 300
_LONGEST_STEP: Final = 0.5  # of an exponent: farther, the linear model is no guide
_STILL: Final = 1e-13  # a relative gain below is none
_NOTHING: Final = 1e-28  # squared relative error that is rounding
_STUCK: Final = 1e10
_DAMPING: Final = 1e-3
_LEAST_DAMPING: Final = 1e-14
_TINY: Final = 1e-300


@dataclass(eq=False)
class _Reduced:
    """The problem in the exponents alone: the best coefficients there, gradient and approximate Hessian (halved)."""

    objective_B: Floats
    coefs_BJ: Floats
    positive_BJ: Flags
    gradient_BQ: Floats
    hessian_BQQ: Floats

    def put(self, rows: NDArray[np.intp], other: _Reduced, taken: Flags) -> None:
        """Replace `rows` by the taken rows of another."""
        for name in ("objective_B", "coefs_BJ", "positive_BJ", "gradient_BQ", "hessian_BQQ"):
            getattr(self, name)[rows] = getattr(other, name)[taken]


def project(model: PowerSum, weights_BP: Floats, starts_BQ: Floats) -> Solutions:
    """Minimise sum_p weights_p (prediction_p / y_p - 1)^2, from each start with its row of weights.

    `starts_BQ` are exponents; whoever starts at an optimum of similar weights is done in a few steps.
    """
    exps_BQ = np.clip(starts_BQ, LEAST_EXPONENT, MOST_EXPONENT)
    now = _reduce(model, weights_BP, exps_BQ, np.ones((len(exps_BQ), len(model.offset_JP)), np.bool_))
    damping_B = np.full(len(exps_BQ), _DAMPING)
    still_B = np.zeros(len(exps_BQ), np.int64)
    moving = np.arange(len(exps_BQ))
    for _ in range(_STEPS):
        trial_BQ = _step(exps_BQ[moving], now.gradient_BQ[moving], now.hessian_BQQ[moving], damping_B[moving])
        trial = _reduce(model, weights_BP[moving], trial_BQ, now.positive_BJ[moving])
        gain = now.objective_B[moving] - trial.objective_B
        taken = gain >= 0
        done = (taken & (gain <= _STILL * now.objective_B[moving] + _NOTHING)) | (damping_B[moving] > _STUCK)
        exps_BQ[moving[taken]] = trial_BQ[taken]
        now.put(moving[taken], trial, taken)
        damping_B[moving] = np.where(taken, np.maximum(damping_B[moving] / 5, _LEAST_DAMPING), damping_B[moving] * 4)
        still_B[moving] = np.where(done, still_B[moving] + 1, np.where(taken, 0, still_B[moving]))
        moving = moving[still_B[moving] < 2]  # twice: one short step may be the damping's
        if not len(moving):
            break
    return Solutions(now.coefs_BJ, exps_BQ, now.objective_B)


def coefficients(model: PowerSum, exps_BQ: Floats) -> Floats:
    """The coefficients [B, J] with the least relative error for given exponents."""
    weights_BP = np.ones((len(exps_BQ), model.offset_JP.shape[1]))
    return _reduce(model, weights_BP, exps_BQ, np.ones((len(exps_BQ), len(model.offset_JP)), np.bool_)).coefs_BJ


def _reduce(model: PowerSum, weights_BP: Floats, exps_BQ: Floats, positive_BJ: Flags) -> _Reduced:
    features_BJP = model.features(exps_BQ)
    weighted_BJP = features_BJP * weights_BP[:, None]
    gram_BJJ = weighted_BJP @ features_BJP.transpose(0, 2, 1)
    coefs_BJ, positive_BJ = nonnegative(gram_BJJ, weighted_BJP.sum(axis=2), positive_BJ)
    terms_BJP = features_BJP * coefs_BJ[:, :, None]
    error_BP = terms_BJP.sum(axis=1) - 1
    slopes_BQP = model.slopes(terms_BJP)
    weighted_BQP = slopes_BQP * weights_BP[:, None]
    scale_BJ = np.sqrt(np.maximum(np.einsum("bjj->bj", gram_BJJ), _TINY))
    gram_BJJ = gram_BJJ / (scale_BJ[:, :, None] * scale_BJ[:, None])
    cross_BJQ = (weighted_BJP @ slopes_BQP.transpose(0, 2, 1)) / scale_BJ[:, :, None]
    # What a change of exponents does beyond what the coefficients make good.
    followed_BJQ = solve_free(gram_BJJ, cross_BJQ, positive_BJ)
    return _Reduced(
        (weights_BP * error_BP**2).sum(axis=1),
        coefs_BJ,
        positive_BJ,
        (weighted_BQP @ error_BP[:, :, None])[:, :, 0],
        weighted_BQP @ slopes_BQP.transpose(0, 2, 1) - cross_BJQ.transpose(0, 2, 1) @ followed_BJQ,
    )


def _step(exps_BQ: Floats, gradient_BQ: Floats, hessian_BQQ: Floats, damping_B: Floats) -> Floats:
    """The damped step within the bounds, as new exponents."""
    diagonal_BQ = np.maximum(np.einsum("bqq->bq", hessian_BQQ), 0)
    # An exponent whose coefficient is 0 has no slope; one on a bound that wants beyond stays there.
    beyond = ((exps_BQ <= LEAST_EXPONENT) & (gradient_BQ > 0)) | ((exps_BQ >= MOST_EXPONENT) & (gradient_BQ < 0))
    free_BQ = (diagonal_BQ > _TINY) & ~beyond
    scale_BQ = np.sqrt(np.where(free_BQ, diagonal_BQ, 1))
    system_BQQ = hessian_BQQ / (scale_BQ[:, :, None] * scale_BQ[:, None])
    q = np.arange(exps_BQ.shape[1])
    system_BQQ[:, q, q] = 1 + damping_B[:, None]
    step_BQ = -solve_free(system_BQQ, (gradient_BQ / scale_BQ)[:, :, None], free_BQ)[:, :, 0] / scale_BQ
    return np.clip(exps_BQ + np.clip(step_BQ, -_LONGEST_STEP, _LONGEST_STEP), LEAST_EXPONENT, MOST_EXPONENT)
