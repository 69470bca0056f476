"""Fit a sum of powers from many starts, and say how well that went."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import ClassVar, Final, Literal

import numpy as np
from pydantic import ConfigDict
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from sovit.errors import ConfigError
from sovit.jsonio import STRICT
from sovit.laws.solvers.descent import descend
from sovit.laws.solvers.losses import Huber, Loss, Relative
from sovit.laws.solvers.newton import derivatives, free, refine
from sovit.laws.solvers.powers import Floats, PowerSum, Solutions
from sovit.laws.solvers.projection import coefficients, project

Method = Literal["relative", "huber"]

_START_EXPONENTS: Final = (0.05, 3.0)
_SAME: Final = 1e-6  # objectives this close, relative, are the same optimum
_ROUNDING: Final = 1e-20  # the objective per point of a perfect fit, at most
_TINY: Final = 1e-300


@dataclass(frozen=True, kw_only=True)
class Convergence:
    """How a fit ended.

    `objective` is the sum over points: squared relative errors, or Huber losses of the log. `reached` of the `starts`
    came within 1e-6 of it, relative. `gradient_norm` is the largest derivative of the objective by the logarithm of a
    parameter that is on no bound.

    `condition` is the condition number of the derivatives of the log predictions by the log parameters: of two equally
    large changes of the parameters, one may move the predictions that many times less than the other. `mixed` are the
    two parameters that the least visible change moves most, as indices of coefficients and then exponents.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    objective: float
    starts: int
    reached: int
    gradient_norm: float
    condition: float
    mixed: tuple[int, int]


@dataclass(frozen=True, eq=False)
class Optimum:
    """The best coefficients [J] and exponents [Q] of a sum of powers."""

    coefs_J: Floats
    exps_Q: Floats
    convergence: Convergence


def loss_of(method: Method, delta: float) -> Loss:
    """The loss that a method minimises; raises `ConfigError` for a delta that is none."""
    if not 0 < delta < np.inf:
        raise ConfigError(f"delta is {delta}, it must be greater than 0: beyond it the Huber loss grows linearly.")
    return Relative() if method == "relative" else Huber(delta)


def solve(model: PowerSum, loss: Loss, *, starts: int, seed: int) -> Optimum:
    """The best of many starts, the same for the same seed.

    The relative error is minimised by variable projection, a Huber loss by L-BFGS; Newton steps bring both to full
    precision.
    """
    if starts < 1:
        raise ConfigError(f"starts is {starts}, it must be at least 1.")
    low, high = np.log(_START_EXPONENTS)
    shape = (starts, model.logs_JQP.shape[1])
    exps_BQ = np.exp(np.random.default_rng(seed).uniform(low, high, shape))
    equal_BP = np.ones((starts, model.offset_JP.shape[1]))
    with one_blas_thread():
        if isinstance(loss, Huber):
            near = descend(model, loss, Solutions(coefficients(model, exps_BQ), exps_BQ, np.full(starts, np.inf)))
        else:
            near = project(model, equal_BP, exps_BQ)
        found = refine(model, loss, equal_BP, near)
    return Optimum(found.coefs_BJ[found.best], found.exps_BQ[found.best], _convergence(model, loss, found))


def refit(model: PowerSum, loss: Loss, weights_BP: Floats, start: Solutions) -> Solutions:
    """From an optimum to those of other weights of the points, one row of weights each."""
    if isinstance(loss, Huber):
        return refine(model, loss, weights_BP, start)
    return project(model, weights_BP, start.exps_BQ)


def one_blas_thread() -> AbstractContextManager[object]:
    """Keep BLAS to one thread: on matrices this small its threads wait for each other longer than they work.

    Where other processes want the cores too, L-BFGS takes twenty times as long without.
    """
    found: AbstractContextManager[object] = threadpool_limits(limits=1, user_api="blas")
    return found


def _convergence(model: PowerSum, loss: Loss, found: Solutions) -> Convergence:
    split, points = model.offset_JP.shape
    coefs_BJ, exps_BQ = found.coefs_BJ[[found.best]], found.exps_BQ[[found.best]]
    z_BZ = np.concatenate([coefs_BJ, exps_BQ], axis=1)
    at = derivatives(model, loss, np.ones((1, points)), z_BZ)
    objective = float(at.objective_B[0])
    may_move = free(z_BZ, at.gradient_BZ, split)[0]
    terms_BJP = model.features(exps_BQ) * coefs_BJ[:, :, None]
    by_log_ZP = np.concatenate([terms_BJP, model.slopes(terms_BJP) * exps_BQ[:, :, None]], axis=1)[0]
    by_log_ZP /= np.maximum(terms_BJP.sum(axis=1), _TINY)
    seen = np.flatnonzero(by_log_ZP.any(axis=1))
    directions, sizes, _ = np.linalg.svd(by_log_ZP[seen], full_matrices=False)
    worst = np.argsort(-np.abs(directions[:, len(sizes) - 1]))
    return Convergence(
        objective=objective,
        starts=len(found.objective_B),
        reached=int((found.objective_B <= objective * (1 + _SAME) + points * _ROUNDING).sum()),
        gradient_norm=float(np.abs(at.gradient_BZ * z_BZ)[0][may_move].max(initial=0.0)),
        condition=float(sizes[0] / max(sizes[-1], sizes[0] * np.finfo(np.float64).eps)),
        mixed=(int(seen[worst[0]]), int(seen[worst[min(1, len(worst) - 1)]])),
    )
