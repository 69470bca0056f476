"""L(N, D) = E + A N^-alpha + B D^-beta, the law of Hoffmann et al. 2022 (arXiv 2203.15556), by the same solvers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np
from pydantic import ConfigDict

from sovit.errors import ConfigError
from sovit.jsonio import STRICT
from sovit.laws.fit import DELTA, STARTS
from sovit.laws.solvers.powers import Floats, PowerSum
from sovit.laws.solvers.solve import Convergence, Method, loss_of, solve

_PARAMETERS: Final = 5


@dataclass(frozen=True, kw_only=True)
class TokenLaw:
    """The loss of N parameters after D tokens: E + A N^-alpha + B D^-beta."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    E: float
    A: float
    alpha: float
    B: float
    beta: float
    convergence: Convergence

    def predict(self, size_P: Floats, tokens_P: Floats) -> Floats:
        """The loss [P]."""
        return np.asarray(self.E + self.A * size_P**-self.alpha + self.B * tokens_P**-self.beta)


def fit_tokens(
    size_P: Floats,
    tokens_P: Floats,
    loss_P: Floats,
    *,
    method: Method = "huber",
    delta: float = DELTA,
    starts: int = STARTS,
    seed: int = 0,
) -> TokenLaw:
    """Fit L(N, D) to P points of N parameters, D tokens and a loss.

    Besiroglu et al. 2024 (arXiv 2404.10102) read Hoffmann's points off a figure; on these, without the five of the
    highest loss, the optimum has alpha 0.3473, beta 0.3672, E exp(0.5973) and a sum of Huber losses of 0.0010182740.
    """
    columns = np.array([size_P, tokens_P, loss_P], np.float64)
    if not (np.isfinite(columns) & (columns > 0)).all():
        raise ConfigError("Sizes, tokens and losses must all be numbers above 0.")
    if columns.shape[1] <= _PARAMETERS:
        raise ConfigError(f"There are {columns.shape[1]} points for {_PARAMETERS} parameters: add runs.")
    means = np.exp(np.log(columns).mean(axis=1))
    log_size_P, log_tokens_P, log_loss_P = np.log(columns / means[:, None])
    logs_JQP = np.zeros((3, 2, columns.shape[1]))
    logs_JQP[0, 0], logs_JQP[1, 1] = -log_size_P, -log_tokens_P
    model = PowerSum(logs_JQP, np.tile(-log_loss_P, (3, 1)))
    found = solve(model, loss_of(method, delta), starts=starts, seed=seed)
    (a, b, constant), (alpha, beta) = found.coefs_J.tolist(), found.exps_Q.tolist()
    size, tokens, scale = means.tolist()
    return TokenLaw(
        E=constant * scale,
        A=a * scale * size**alpha,
        alpha=alpha,
        B=b * scale * tokens**beta,
        beta=beta,
        convergence=found.convergence,
    )
