"""Augmentation on a whole batch at once."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from train.randomness import generator


def random_affine(
    image_BCYX: Tensor, *, degrees: float, shift: float, scale: float, seed: int, step: int, first: int
) -> Tensor:
    """Rotate, shift and scale every image by its own random amount.

    Angles are uniform in +-`degrees`, shifts in +-`shift` of a side, scale factors in 1 +- `scale`. What comes in from
    outside is the border pixel repeated. `first` is where these images begin in the step's whole batch: an image is
    moved alike however the batch is split.
    """
    drawn_B4 = generator(seed, "augment", step).uniform(-1, 1, (first + len(image_BCYX), 4))[first:]
    angle, factor, down, right = torch.from_numpy(drawn_B4).to(image_BCYX).unbind(dim=1)
    angle, factor = angle * math.radians(degrees), 1 + factor * scale
    cos, sin = angle.cos() * factor, angle.sin() * factor
    # The grid spans -1..1, so a shift of a whole side is 2.
    rows = [torch.stack([cos, -sin, right * 2 * shift], dim=1), torch.stack([sin, cos, down * 2 * shift], dim=1)]
    grid = F.affine_grid(torch.stack(rows, dim=1), list(image_BCYX.shape), align_corners=False)
    return F.grid_sample(image_BCYX, grid, padding_mode="border", align_corners=False)
