"""Named shapes: one table of integers.

Sources. mu to G-opt and e: `decode_variant` in big_vision's models/vit.py (google-research/big_vision @0127fb6).
So400m and So150m: Alabdulmohsin et al. 2023, "Getting ViT in Shape" (arXiv 2305.13035): width, depth and MLP dimension
of SoViT-400m/14 and SoViT-150m/14. The paper fixes 16 heads in its sweeps and does not state the head count of
SoViT-150m; 16 gives a head dimension of 55. So150m-896 and So150m2: timm's `vit_so150m_*` and `vit_so150m2_*`
(models/vision_transformer.py, timm 1.0.31), which are other shapes than the paper's.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple


class Shape(NamedTuple):
    """Size of a vision transformer, without patch size or resolution."""

    width: int
    depth: int
    mlp_dim: int
    num_heads: int


VARIANTS: Final[dict[str, Shape]] = {
    "mu": Shape(32, 1, 128, 2),
    "Ti": Shape(192, 12, 768, 3),
    "S": Shape(384, 12, 1536, 6),
    "M": Shape(512, 12, 2048, 8),
    "B": Shape(768, 12, 3072, 12),
    "L": Shape(1024, 24, 4096, 16),
    "So150m": Shape(880, 18, 2320, 16),
    "So150m-896": Shape(896, 18, 2304, 14),
    "So150m2": Shape(832, 21, 2176, 13),
    "So400m": Shape(1152, 27, 4304, 16),
    "H": Shape(1280, 32, 5120, 16),
    "g": Shape(1408, 40, 6144, 16),
    "g-opt": Shape(1536, 40, 6144, 16),
    "G": Shape(1664, 48, 8192, 16),
    "G-opt": Shape(1536, 48, 8192, 16),
    "e": Shape(1792, 56, 15360, 16),
}

# What a variant has beside its shape, as fields of `ViTConfig`; the others follow big_vision's conventions.
TRAITS: Final[dict[str, dict[str, Any]]] = {
    "So150m-896": {"pool": "gap", "gelu": "erf", "registers": 4},
    "So150m2": {
        "pool": "gap", "gelu": "erf", "registers": 1, "fc_norm": True, "layer_scale": True, "qkv_bias": False,
    },
}  # fmt: skip
