"""A law fitted again, from where it was, to the same runs with other weights."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Final

import numpy as np
from numpy.typing import NDArray

from sovit.laws.design import design_of
from sovit.laws.fit import Fit
from sovit.laws.form import ShapeLaw
from sovit.laws.solvers.powers import Solutions
from sovit.laws.solvers.solve import loss_of, one_blas_thread, refit
from sovit.laws.table import Points

_BATCH_POINTS: Final = 25_000  # of the refits solved at a time: enough to hide Python, few enough for the cache
_THREADS: Final = 2


def refits(points: Points, fitted: Fit, counts_BR: NDArray[np.int64]) -> tuple[ShapeLaw, ...]:
    """The law of each row: how often it has each of the runs, [B, R], all points of a run together.

    They are solved in batches, in threads: numpy lets go of the interpreter's lock while it computes.
    """
    design = design_of(points)
    model, loss = design.model(points), loss_of(fitted.method, fitted.delta)
    coefs_J, exps_Q = design.unknowns(fitted.law)
    batch = max(1, _BATCH_POINTS // len(points))

    def refitted(first: int) -> list[ShapeLaw]:
        weights_BP = counts_BR[first : first + batch, points.run_P].astype(np.float64)
        rows = len(weights_BP)
        start = Solutions(np.tile(coefs_J, (rows, 1)), np.tile(exps_Q, (rows, 1)), np.full(rows, np.inf))
        found = refit(model, loss, weights_BP, start)
        return [design.law(*pair) for pair in zip(found.coefs_BJ, found.exps_BQ, strict=True)]

    with one_blas_thread(), ThreadPoolExecutor(_THREADS) as pool:
        return tuple(law for some in pool.map(refitted, range(0, len(counts_BR), batch)) for law in some)
