"""Depth-aware maximal update parametrisation: one learning rate for shapes of any width, depth and MLP size.

The rules are those of CompleteP (Dey et al. 2025, arXiv 2505.01618, table 1, alpha = 1) for Adam. With m = size over
base size for width, mlp_dim and depth: a matrix that reads from m times as many numbers learns at 1/m of the rate, and
a residual branch counts 1/m of itself in a model m times as deep. A branch's factor is absorbed in its last layer, in
its first weights and its learning rate, which is the same for Adam, so the trained model needs none. Of the table two
things are left out: Adam's epsilon is the same for all, and a learned position embedding begins as it always does.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import NamedTuple

import torch

from sovit.config import ViTConfig
from sovit.model import ViT

_LAST_OF_A_BRANCH = re.compile(r"blocks\.\d+\.(attn\.proj|mlp\.fc2)\.")
_READS_WIDTH = re.compile(r".*\b(qkv|q|kv|proj|fc1|head)\.weight$")
_READS_MLP = re.compile(r".*\bfc2\.weight$")


class BaseShape(NamedTuple):
    """The shape whose learning rate is given."""

    width: int
    depth: int
    mlp_dim: int


def rate_factors(model: ViTConfig, base: BaseShape) -> Callable[[str], float]:
    """The factor of the learning rate of a parameter, by its name."""

    def factor(name: str) -> float:
        found = 1.0
        if _READS_WIDTH.match(name):
            found *= base.width / model.width
        if _READS_MLP.match(name):
            found *= base.mlp_dim / model.mlp_dim
        if _LAST_OF_A_BRANCH.match(name):
            found *= base.depth / model.depth
        return found

    return factor


@torch.no_grad()
def scale_weights(model: ViT, base: BaseShape) -> None:
    """Give a new model's first weights the sizes that go with those of the base shape, which are left as they are.

    The variance of a matrix has to fall with what it reads. Xavier's does so for square ones; those of the MLP take
    their ratio of reading to writing from the base shape here.
    """
    config = model.config
    written, read = config.width + config.mlp_dim, base.width + base.mlp_dim
    for name, parameter in model.named_parameters():
        if _LAST_OF_A_BRANCH.match(name):
            parameter.mul_(base.depth / config.depth)
        if name.endswith("fc1.weight"):
            parameter.mul_(math.sqrt(base.width / config.width * written / read))
        if name.endswith("fc2.weight"):
            parameter.mul_(math.sqrt(base.mlp_dim / config.mlp_dim * written / read))
