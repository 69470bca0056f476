"""Non-negative least squares, many small problems at once.

Block principal pivoting (Kim and Park 2011, "Fast nonnegative matrix factorization"): guess which coefficients are
positive, solve for them, and exchange all that contradict the guess. Where exchanging all makes no progress, the last
alone is exchanged (Murty's rule), which ends after finitely many steps.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from sovit.laws.solvers.powers import Floats

Flags = NDArray[np.bool_]

_ROUNDS: Final = 100
_PATIENCE: Final = 3
_TOLERANCE: Final = 1e-11
_RIDGE: Final = 1e-13  # of a unit diagonal: two equal columns still have an answer
_TINY: Final = 1e-300


def nonnegative(gram_BJJ: Floats, moment_BJ: Floats, positive_BJ: Flags) -> tuple[Floats, Flags]:
    """The coefficients c >= 0 with the least c'Gc / 2 - m'c, and which of them are free of the bound.

    `positive_BJ` is the first guess; a guess that was right for a problem nearby costs one solve.
    """
    scale_BJ = np.sqrt(np.maximum(np.einsum("bjj->bj", gram_BJJ), _TINY))
    gram_BJJ = gram_BJJ / (scale_BJ[:, :, None] * scale_BJ[:, None])
    moment_BJ = moment_BJ / scale_BJ
    positive_BJ = positive_BJ.copy()
    coefs_BJ = np.zeros_like(moment_BJ)
    fewest_B = np.full(len(moment_BJ), moment_BJ.shape[1] + 1)
    patience_B = np.full(len(moment_BJ), _PATIENCE)
    open_B = np.arange(len(moment_BJ))
    for _ in range(_ROUNDS):
        guess = positive_BJ[open_B]
        found = solve_free(gram_BJJ[open_B], moment_BJ[open_B][:, :, None], guess)[:, :, 0]
        coefs_BJ[open_B] = found
        dual = (gram_BJJ[open_B] @ found[:, :, None])[:, :, 0] - moment_BJ[open_B]
        wrong = np.where(guess, found, dual) < -_TOLERANCE
        count = wrong.sum(axis=1)
        unsolved = count > 0
        if not unsolved.any():
            break
        open_B, wrong, count = open_B[unsolved], wrong[unsolved], count[unsolved]
        patience_B[open_B] = np.where(count < fewest_B[open_B], _PATIENCE, patience_B[open_B] - 1)
        fewest_B[open_B] = np.minimum(fewest_B[open_B], count)
        after = np.cumsum(wrong[:, ::-1], axis=1)[:, ::-1]  # how many are wrong from here on: 1 at the last
        positive_BJ[open_B] ^= wrong & ((patience_B[open_B] >= 0)[:, None] | (after == 1))
    return np.maximum(coefs_BJ, 0) / scale_BJ, positive_BJ


def solve_free(matrix_BJJ: Floats, right_BJR: Floats, free_BJ: Flags) -> Floats:
    """Solve each system for its free unknowns [B, J, R], the others being 0. The diagonal should be about 1."""
    system_BJJ = np.where(free_BJ[:, :, None] & free_BJ[:, None], matrix_BJJ, 0.0)
    diagonal = np.arange(matrix_BJJ.shape[1])
    system_BJJ[:, diagonal, diagonal] += np.where(free_BJ, _RIDGE, 1.0)
    solved: Floats = np.linalg.solve(system_BJJ, np.where(free_BJ[:, :, None], right_BJR, 0.0))
    return solved
