"""Which shapes lie among those that were run.

A star's runs differ from its centre in one dimension each, so a shape may lie between the least and the largest of
every dimension and still be far from all runs: small in several at once. That the terms of the law add up there is an
assumption. What lies inside the convex hull of the runs, over the logarithms of sizes, is between runs.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import Delaunay  # type: ignore[import-untyped]

from sovit.laws.solvers.powers import Floats

_NEAR: Final = 1e-6  # of a logarithm: rounding


def among(shapes_RK: Floats, asked_PK: Floats) -> NDArray[np.bool_]:
    """Which of the shapes [P, 3] lie in the hull of the runs' [R, 3]."""
    logs_RK, asked_PK = np.log(shapes_RK), np.log(asked_PK)
    middle_K = logs_RK.mean(axis=0)
    # The runs may span fewer than three dimensions: what is off their plane is not among them.
    _, extents, axes_JK = np.linalg.svd(logs_RK - middle_K, full_matrices=False)
    axes_JK = axes_JK[extents > _NEAR]
    runs_RJ, asked_PJ = (logs_RK - middle_K) @ axes_JK.T, (asked_PK - middle_K) @ axes_JK.T
    on_plane_P = np.abs(asked_PK - middle_K - asked_PJ @ axes_JK).max(axis=1) <= _NEAR
    if not len(axes_JK):
        return np.asarray(on_plane_P)
    if len(axes_JK) == 1:
        within_PJ = (asked_PJ >= runs_RJ.min(axis=0) - _NEAR) & (asked_PJ <= runs_RJ.max(axis=0) + _NEAR)
        return np.asarray(on_plane_P & within_PJ[:, 0])
    return np.asarray(on_plane_P & (Delaunay(runs_RJ).find_simplex(asked_PJ, tol=_NEAR) >= 0))
