"""Position embeddings: the fixed sincos2d table, and learned tables resampled for another grid.

Every code base resamples by its own rule, and the numbers depend on it, so the rule travels with the weights:

    big_vision    bilinear, corners aligned, no antialias (vit.load: scipy.ndimage.zoom, order 1)
    timm          bicubic, antialias (resample_abs_pos_embed)
    transformers  bicubic, no antialias (SiglipVisionEmbeddings.interpolate_pos_encoding)
    naflex        bilinear, antialias (Siglip2VisionEmbeddings.resize_positional_embeddings, big_vision's naflex)
"""

from __future__ import annotations

from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor

from sovit.config import PositionResampling

_INTERPOLATION: Final[dict[PositionResampling, dict[str, Any]]] = {
    "big_vision": {"mode": "bilinear", "align_corners": True},
    "timm": {"mode": "bicubic", "align_corners": False, "antialias": True},
    "transformers": {"mode": "bicubic", "align_corners": False},
    "naflex": {"mode": "bilinear", "align_corners": False, "antialias": True},
}


def resample_position_embedding(
    pos_1ND: Tensor, old: tuple[int, int], new: tuple[int, int], rule: PositionResampling
) -> Tensor:
    """A learned position embedding [1, N, D] of the grid `old` for the grid `new` (rows, columns).

    A resampled table is float32, whatever the type of the old one; timm alone rounds it to that type.
    """
    if old == new:
        return pos_1ND
    grid_1DYX = pos_1ND.unflatten(1, old).permute(0, 3, 1, 2)  # type: ignore[no-untyped-call]
    resized = F.interpolate(grid_1DYX.float(), size=new, **_INTERPOLATION[rule])
    resized_1ND = resized.flatten(2).transpose(1, 2)
    return resized_1ND.to(pos_1ND.dtype) if rule == "timm" else resized_1ND


def sincos2d(grid: tuple[int, int], width: int, temperature: float = 10_000.0) -> Tensor:
    """Fixed position embedding [1, N, D] as in MoCo v3 and big_vision: sin x, cos x, sin y, cos y."""
    y_N, x_N = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    omega = temperature ** -(torch.arange(width // 4) / (width // 4 - 1))
    y = y_N.flatten()[:, None] * omega
    x = x_N.flatten()[:, None] * omega
    return torch.cat([x.sin(), x.cos(), y.sin(), y.cos()], dim=1)[None]
