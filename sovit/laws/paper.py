"""The named law `paper`: the published exponents, with a shape to scale.

Alabdulmohsin et al. 2023, "Getting ViT in Shape" (arXiv 2305.13035), section 4.1, image classification. Coefficients,
intervals and sweep points are not published, so this law knows how shapes grow, and neither errors nor an amount of
compute that belongs to a shape.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, NamedTuple

from sovit.errors import ConfigError
from sovit.variants import VARIANTS


class Sizes(NamedTuple):
    """Width, depth and MLP dimension, not rounded."""

    width: float
    depth: float
    mlp_dim: float


EXPONENTS: Final = Sizes(0.22, 0.45, 0.6)
_SO150M, _SO400M = VARIANTS["So150m"], VARIANTS["So400m"]
ANCHORS: Final[dict[str, Sizes]] = {
    "x0": Sizes(608, 10, 928),  # the best of the paper's grid sweep; its compute is not published
    "So150m": Sizes(_SO150M.width, _SO150M.depth, _SO150M.mlp_dim),
    "So400m": Sizes(_SO400M.width, _SO400M.depth, _SO400M.mlp_dim),
}
CAVEAT: Final = (
    "The published exponents do not lead from the paper's x0 to its own shapes: for So400m the width takes 6,092 "
    "times the compute, the depth 751 and the MLP dimension 2,146; for So150m 155, 50 and 98. Both shapes together are "
    "nearer to the exponents 0.25, 0.385 and 0.6. Take the published shapes as they are, the exponents as a "
    "description, and a shape scaled far from its anchor as a guess."
)


@dataclass(frozen=True, kw_only=True)
class PaperLaw:
    """Scales an anchor's shape with compute: x_k grows as tau^(s_k / 3).

    The paper splits a factor tau of compute evenly over the three dimensions, each of which would grow as tau^s_k if
    all compute went to it.
    """

    anchor: Sizes
    exponents: Sizes = EXPONENTS
    caveat: str = CAVEAT

    def shape(self, tau: float) -> Sizes:
        """The best shape for `tau` times the anchor's compute, not rounded; raises `ConfigError` unless tau > 0."""
        if not 0 < tau < math.inf:
            raise ConfigError(f"tau is {tau}, it must be above 0: the compute as a multiple of the anchor's.")
        return Sizes(*(x * tau ** (s / 3) for x, s in zip(self.anchor, self.exponents, strict=True)))


def paper_law(anchor: str = "x0") -> PaperLaw:
    """The paper's law from one of its `ANCHORS`."""
    if anchor not in ANCHORS:
        raise ConfigError(f"no anchor is called {anchor!r}: known are {', '.join(ANCHORS)}.")
    return PaperLaw(anchor=ANCHORS[anchor])
