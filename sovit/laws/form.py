"""The joint form of the shape law, equation 3 of "Getting ViT in Shape" (arXiv 2305.13035), and its optimum."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import ConfigDict

from sovit.errors import ConfigError
from sovit.jsonio import STRICT
from sovit.laws.solvers.powers import Floats

DIMENSIONS: Final = ("width", "depth", "mlp_dim")
_TINY: Final = 1e-300


@dataclass(frozen=True, kw_only=True)
class Term:
    """What one dimension x does to the error: alpha x^-a + beta x^b t^-c.

    A larger model leaves less error (alpha, a) and makes less of the same compute (beta, b). Where the points cannot
    tell the exponents, `identified` is false: alpha and beta then only let the law pass through the sizes seen.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    alpha: float
    a: float
    beta: float
    b: float
    identified: bool = True


@dataclass(frozen=True, kw_only=True)
class ShapeLaw:
    """f(x, t) = sum_k alpha_k x_k^-a_k + (sum_k beta_k x_k^b_k + xi) t^-c + eps, all parameters >= 0.

    f is an error, lower is better; t is the compute of the whole training in GFLOPs, forward passes only, as the
    paper counts it (a training step with its backward pass costs three times as much). Raises `ConfigError` for a
    parameter that is negative or no finite number.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    width: Term
    depth: Term
    mlp_dim: Term
    c: float
    xi: float
    eps: float

    def __post_init__(self) -> None:
        for name, value in self.parameters().items():
            if not 0 <= value < math.inf:
                raise ConfigError(f"{name} is {value}, every parameter of a shape law must be 0 or greater and finite.")

    @property
    def terms(self) -> tuple[Term, Term, Term]:
        """In the order of `DIMENSIONS`."""
        return self.width, self.depth, self.mlp_dim

    def parameters(self) -> dict[str, float]:
        """All parameters by name: `alpha_width`, `a_width`, ..., `c`, `xi`, `eps`."""
        found = {
            f"{letter}_{name}": value
            for name, term in zip(DIMENSIONS, self.terms, strict=True)
            for letter, value in (("alpha", term.alpha), ("a", term.a), ("beta", term.beta), ("b", term.b))
        }
        return found | {"c": self.c, "xi": self.xi, "eps": self.eps}

    def predict(self, shapes_PK: ArrayLike, compute_P: ArrayLike) -> Floats:
        """The error of shapes [..., 3] (width, depth, mlp_dim) after `compute` [...] GFLOPs; the two broadcast."""
        x_PK, t_P = np.asarray(shapes_PK, np.float64), np.asarray(compute_P, np.float64)
        alpha_K, a_K, beta_K, b_K = self._by_dimension()
        from_size_P = (alpha_K * x_PK**-a_K).sum(axis=-1)
        from_compute_P = ((beta_K * x_PK**b_K).sum(axis=-1) + self.xi) * t_P**-self.c
        return np.asarray(from_size_P + from_compute_P + self.eps)

    @property
    def exponents(self) -> Floats:
        """s_k = c / (a_k + b_k) [3]: the best x_k grows as t^s_k. NaN where the points do not tell."""
        alpha_K, a_K, beta_K, b_K = self._by_dimension()
        return np.where(self._has_optimum(alpha_K, beta_K), self.c / np.maximum(a_K + b_K, _TINY), np.nan)

    def optimum(self, compute: ArrayLike) -> Floats:
        """The best width, depth and mlp_dim [..., 3] for `compute` [...] GFLOPs (equation 4), not rounded.

        (alpha a t^c / (beta b))^(1 / (a + b)) in each dimension, NaN in one whose optimum the points do not tell.
        """
        alpha_K, a_K, beta_K, b_K = self._by_dimension()
        log_t = np.log(np.asarray(compute, np.float64))[..., None]
        known_K = self._has_optimum(alpha_K, beta_K)
        log_ratio_K = np.log(np.where(known_K, alpha_K * a_K, 1)) - np.log(np.where(known_K, beta_K * b_K, 1))
        return np.asarray(np.exp((log_ratio_K + self.c * log_t) / np.where(known_K, a_K + b_K, np.nan)))

    def _by_dimension(self) -> tuple[Floats, Floats, Floats, Floats]:
        rows = np.array([[term.alpha, term.a, term.beta, term.b] for term in self.terms])
        return rows[:, 0], rows[:, 1], rows[:, 2], rows[:, 3]

    def _has_optimum(self, alpha_K: Floats, beta_K: Floats) -> NDArray[np.bool_]:
        # Where alpha or beta is 0 the error only rises or only falls with size.
        identified = np.array([term.identified and term.a > 0 and term.b > 0 for term in self.terms])
        return np.asarray(identified & (alpha_K > 0) & (beta_K > 0))
