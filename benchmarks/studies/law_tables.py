"""Simulated tables of runs, of a shape law that is known."""

from __future__ import annotations

from typing import Final

import numpy as np

from sovit.laws.form import DIMENSIONS, ShapeLaw, Term
from sovit.laws.solvers.powers import Floats
from sovit.laws.table import Points

CENTRE: Final = (1968.0, 40.0, 6144.0)
ARMS: Final = (
    (608, 768, 928, 1088, 1328, 1648),
    (8, 10, 12, 16, 20, 24),
    (1088, 1360, 1728, 2160, 2592, 3072),
)


def star() -> Floats:
    """The paper's 18 shapes: one dimension at a time, without the centre."""
    shapes = np.tile(np.array(CENTRE), (18, 1))
    for k, arm in enumerate(ARMS):
        shapes[6 * k : 6 * k + 6, k] = arm
    return shapes


def scattered(count: int, seed: int = 0) -> Floats:
    """Shapes anywhere between 0.15 of the centre and the centre, the star's 18 among them."""
    drawn = np.random.default_rng(seed).uniform(np.log(0.15), 0, (count - 18, 3))
    return np.concatenate([star(), np.round(np.array(CENTRE) * np.exp(drawn))])


def gflops(shapes_RK: Floats) -> Floats:
    """Forward GFLOPs of one image of 256 tokens."""
    width, depth, mlp_dim = shapes_RK.T
    flops: Floats = 2 * 256e-9 * depth * (4 * width**2 + 2 * width * mlp_dim)
    return flops


def law_of(
    a: tuple[float, ...] = (1.4, 0.7, 0.5),
    b: tuple[float, ...] = (1.55, 0.74, 0.58),
    c: float = 0.65,
    alpha: tuple[float, ...] = (0.03, 0.03, 0.04),
    beta: tuple[float, ...] = (0.02, 0.02, 0.03),
    xi: float = 0.05,
    eps: float = 0.2,
) -> ShapeLaw:
    """A law whose coefficients are what the terms are worth at a shape and a compute in the middle."""
    size, compute = (1100.0, 20.0, 3000.0), 1e10
    terms = {
        name: Term(alpha=alpha[k] * size[k] ** a[k], a=a[k], beta=beta[k] * size[k] ** -b[k] * compute**c, b=b[k])
        for k, name in enumerate(DIMENSIONS)
    }
    return ShapeLaw(**terms, c=c, xi=xi * compute**c, eps=eps)


def points_of(law: ShapeLaw, shapes_RK: Floats, *, noise: float = 0.0, seed: int = 0) -> Points:
    """Three moments of each run. The noise of a point is half as large again as that which all of its run share."""
    rng = np.random.default_rng(seed)
    runs = len(shapes_RK)
    compute = (gflops(shapes_RK)[:, None] * np.array([64e6, 128e6, 256e6])).ravel()
    shapes, run = np.repeat(shapes_RK, 3, axis=0), np.repeat(np.arange(runs), 3)
    luck = noise * (rng.normal(size=runs)[run] + 1.5 * rng.normal(size=3 * runs))
    return Points(
        shapes_PK=shapes,
        compute_P=compute,
        error_P=law.predict(shapes, compute) * np.exp(luck),
        run_P=run,
        runs=tuple(f"run-{index}" for index in range(runs)),
    )
