"""Augmentation on a whole batch at once."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def random_affine(
    image_BCYX: Tensor, *, degrees: float, shift: float, scale: float, generator: torch.Generator
) -> Tensor:
    """Rotate, shift and scale every image by its own random amount.

    Angles are uniform in +-`degrees`, shifts in +-`shift` of a side, scale factors in 1 +- `scale`. What comes in from
    outside is the border pixel repeated.
    """

    def uniform(bound: float) -> Tensor:
        return (torch.rand(len(image_BCYX), generator=generator) * 2 - 1) * bound

    angle, factor = uniform(math.radians(degrees)), 1 + uniform(scale)
    cos, sin = angle.cos() * factor, angle.sin() * factor
    # The grid spans -1..1, so a shift of a whole side is 2.
    rows = [torch.stack([cos, -sin, uniform(2 * shift)], dim=1), torch.stack([sin, cos, uniform(2 * shift)], dim=1)]
    grid = F.affine_grid(torch.stack(rows, dim=1), list(image_BCYX.shape), align_corners=False)
    return F.grid_sample(image_BCYX, grid, padding_mode="border", align_corners=False)
