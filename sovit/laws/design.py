"""What a table of points can tell: which terms of the law it carries, and the sum of powers they make.

The rule, by how many sizes a dimension has:

    1           no terms: what the dimension does is in xi and eps
    2           both terms with their exponents held at 2, so that the law passes through both sizes
    3 or more   both terms with exponents of their own

Everything is fitted over the geometric means of sizes, compute and errors: features are near 1 and coefficients
comparable, whatever the units.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from sovit.errors import ConfigError
from sovit.laws.form import DIMENSIONS, ShapeLaw, Term
from sovit.laws.solvers.powers import LEAST_EXPONENT, MOST_EXPONENT, Floats, PowerSum
from sovit.laws.table import Points

NEEDED_SIZES: Final = 3
_NEEDED_LEVELS: Final = 3
_HELD_EXPONENT: Final = 2.0  # any true exponent below it leaves xi and eps what they need to be no less than 0
_TOGETHER: Final = 0.995  # of the variance of a log size is explained by the others'


@dataclass(frozen=True, eq=False)
class Design:
    """How the parameters of a law are laid out for the solvers.

    Coefficients: alpha of `kept` dimensions, their beta, xi, eps. Exponents: a of the `free` ones, their b, c.
    """

    kept: tuple[int, ...]
    free: tuple[int, ...]
    size_K: Floats
    compute: float
    error: float

    @property
    def coefficients(self) -> int:
        """How many coefficients the law has."""
        return 2 * len(self.kept) + 2

    @property
    def exponents(self) -> int:
        """How many exponents the law has."""
        return 2 * len(self.free) + 1

    @property
    def shapes_needed(self) -> int:
        """How many different shapes it takes to tell what each dimension does."""
        return 1 + len(self.kept) + len(self.free)

    def names(self) -> tuple[str, ...]:
        """Names of the coefficients and, after them, of the exponents."""
        return (
            *(f"{letter}_{DIMENSIONS[k]}" for letter in ("alpha", "beta") for k in self.kept),
            "xi",
            "eps",
            *(f"{letter}_{DIMENSIONS[k]}" for letter in ("a", "b") for k in self.free),
            "c",
        )

    def model(self, points: Points) -> PowerSum:
        """The law as a sum of powers of these points."""
        log_x_KP = np.log(points.shapes_PK / self.size_K).T
        log_t_P = np.log(points.compute_P / self.compute)
        kept, free = len(self.kept), len(self.free)
        logs_JQP = np.zeros((self.coefficients, self.exponents, len(points)))
        offset_JP = np.tile(-np.log(points.error_P / self.error), (self.coefficients, 1))
        for j, k in enumerate(self.kept):
            if k in self.free:
                q = self.free.index(k)
                logs_JQP[j, q], logs_JQP[kept + j, free + q] = -log_x_KP[k], log_x_KP[k]
            else:
                offset_JP[j] -= _HELD_EXPONENT * log_x_KP[k]
                offset_JP[kept + j] += _HELD_EXPONENT * log_x_KP[k]
        logs_JQP[kept : 2 * kept + 1, -1] = -log_t_P
        return PowerSum(logs_JQP, offset_JP)

    def law(self, coefs_J: Floats, exps_Q: Floats) -> ShapeLaw:
        """The law in the units of the table."""
        c = float(exps_Q[-1])
        per_compute = self.error * self.compute**c
        return ShapeLaw(
            **{name: self._term(k, coefs_J, exps_Q, per_compute) for k, name in enumerate(DIMENSIONS)},
            c=c,
            xi=float(coefs_J[-2]) * per_compute,
            eps=float(coefs_J[-1]) * self.error,
        )

    def unknowns(self, law: ShapeLaw) -> tuple[Floats, Floats]:
        """The coefficients and exponents of a law: the way back."""
        per_compute = self.error * self.compute**law.c
        kept, free = [law.terms[k] for k in self.kept], [law.terms[k] for k in self.free]
        size = [float(self.size_K[k]) for k in self.kept]
        alpha = [term.alpha / (self.error * x**term.a) for x, term in zip(size, kept, strict=True)]
        beta = [term.beta / (per_compute * x**-term.b) for x, term in zip(size, kept, strict=True)]
        exps_Q = [*(term.a for term in free), *(term.b for term in free), law.c]
        return np.array([*alpha, *beta, law.xi / per_compute, law.eps / self.error]), np.array(exps_Q)

    def told(self, shapes_SK: Floats, counts_BS: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which rows of counts of the shapes [B, S] leave as many shapes, and sizes of each dimension, as it takes."""
        enough_B = _distinct(np.unique(shapes_SK, axis=0, return_inverse=True)[1], counts_BS) >= self.shapes_needed
        for k in self.kept:
            enough_B &= _distinct(shapes_SK[:, k], counts_BS) >= (NEEDED_SIZES if k in self.free else 2)
        return enough_B

    def _term(self, k: int, coefs_J: Floats, exps_Q: Floats, per_compute: float) -> Term:
        if k not in self.kept:
            return Term(alpha=0.0, a=_HELD_EXPONENT, beta=0.0, b=_HELD_EXPONENT, identified=False)
        j = self.kept.index(k)
        a = b = _HELD_EXPONENT
        if k in self.free:
            q = self.free.index(k)
            a, b = float(exps_Q[q]), float(exps_Q[len(self.free) + q])
        return Term(
            alpha=float(coefs_J[j] * self.error * self.size_K[k] ** a),
            a=a,
            beta=float(coefs_J[len(self.kept) + j] * per_compute * self.size_K[k] ** -b),
            b=b,
            # On its least bound a power is a constant, on its largest a wall: the points tell neither.
            identified=k in self.free and LEAST_EXPONENT < min(a, b) <= max(a, b) < MOST_EXPONENT,
        )


def design_of(points: Points) -> Design:
    """The terms that these points carry. Raises `ConfigError` where there are fewer points or runs than parameters."""
    sizes = [len(np.unique(sizes_P)) for sizes_P in points.shapes_PK.T]
    design = Design(
        kept=tuple(k for k, count in enumerate(sizes) if count > 1),
        free=tuple(k for k, count in enumerate(sizes) if count >= NEEDED_SIZES),
        size_K=np.exp(np.log(points.shapes_PK).mean(axis=0)),
        compute=float(np.exp(np.log(points.compute_P).mean())),
        error=float(np.exp(np.log(points.error_P).mean())),
    )
    parameters = design.coefficients + design.exponents
    if len(points) <= parameters:
        raise ConfigError(
            f"There are {len(points)} points for {parameters} parameters: add runs, or more moments of each, until "
            f"there are {parameters + 1} points or more."
        )
    shapes, needed = len(np.unique(points.shapes_PK, axis=0)), design.shapes_needed
    if shapes < needed:
        varied = ", ".join(DIMENSIONS[k] for k in design.kept)
        raise ConfigError(
            f"There are {shapes} shapes, and {varied} vary: telling what each does takes {needed} shapes or more."
        )
    return design


def _distinct(labels_S: NDArray[np.generic], counts_BS: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many different labels each row of counts has."""
    has_label_SX = (labels_S[:, None] == np.unique(labels_S)).astype(np.int64)
    return np.asarray((counts_BS @ has_label_SX > 0).sum(axis=1))


def unidentified(points: Points, design: Design) -> tuple[str, ...]:
    """In words, what the design of these points leaves open, whatever their errors are."""
    found = []
    for k, name in enumerate(DIMENSIONS):
        count = len(np.unique(points.shapes_PK[:, k]))
        if count < NEEDED_SIZES:
            distinct = f"{count} distinct {_PLURALS[k]}" if count > 1 else f"all runs have the same {name}"
            found.append(f"{name} exponent not identified: {distinct}; it takes {NEEDED_SIZES} or more.")
    for k in design.free:
        others = [other for other in design.kept if other != k]
        if _explained(points, k, others) > _TOGETHER:
            names = " and ".join(DIMENSIONS[other] for other in others)
            found.append(f"{DIMENSIONS[k]} exponent not identified: {DIMENSIONS[k]} moves together with {names}.")
    if points.compute_levels < _NEEDED_LEVELS:
        found.append(
            f"data exponent c hardly identified: {points.compute_levels} levels of compute; it takes "
            f"{_NEEDED_LEVELS} or more."
        )
    return tuple(found)


_PLURALS: Final = ("widths", "depths", "MLP dimensions")


def _explained(points: Points, k: int, others: list[int]) -> float:
    """The share of the variance of one log size that is a linear function of the others."""
    logs_PK = np.log(points.shapes_PK)
    logs_PK = logs_PK - logs_PK.mean(axis=0)
    if not others:
        return 0.0
    fitted, *_ = np.linalg.lstsq(logs_PK[:, others], logs_PK[:, k], rcond=None)
    rest_P = logs_PK[:, k] - logs_PK[:, others] @ fitted
    return float(1 - (rest_P**2).sum() / (logs_PK[:, k] ** 2).sum())
