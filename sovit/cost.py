"""What a shape costs, by formula: parameters, FLOPs, bytes. No model is built.

1 MAC = 2 FLOPs. Counted are the matrix products (patch embedding, projections, attention, MLP, pooling, head), as in
the paper's own tables; norms, softmax and GELU are left out. XLA's count for So400m/14 at 224 px is 221 GFLOPs, the
formula gives 220.4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sovit.config import ViTConfig

TRAINING: Final = 3  # forward and backward, in forward passes: a backward pass costs two


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Cost of one configuration. FLOPs are for one image's forward pass; bytes are for float32."""

    parameters: int
    tokens: int
    flops: int
    weight_bytes: int
    activation_bytes: int


def cost(config: ViTConfig) -> Cost:
    """Parameters, tokens, FLOPs and bytes of a configuration."""
    count = parameters(config)
    return Cost(
        parameters=count,
        tokens=config.num_tokens,
        flops=2 * macs(config),
        weight_bytes=4 * count,
        activation_bytes=4 * activation_floats(config),
    )


def parameters(config: ViTConfig) -> int:
    """Trainable parameters, equal to the built module's exactly."""
    width, mlp_dim = config.width, config.mlp_dim
    norm = 2 * width
    attention = 4 * (width * width + width)
    mlp = 2 * width * mlp_dim + mlp_dim + width
    block = 2 * norm + attention + mlp
    if not config.qkv_bias:
        block -= 3 * width
    if config.layer_scale:
        block += 2 * width
    total = 3 * config.patch_size**2 * width + width
    if config.position_embedding == "learn":
        total += config.grid[0] * config.grid[1] * width
    total += config.num_prefix_tokens * width
    total += config.depth * block + norm
    if config.pool == "map":
        total += width + attention + norm + mlp
    if config.num_classes:
        total += width * config.num_classes + config.num_classes
    return total


def macs(config: ViTConfig) -> int:
    """Multiply-accumulates of one image's forward pass."""
    width, mlp_dim, tokens = config.width, config.mlp_dim, config.num_tokens
    patches = config.grid[0] * config.grid[1]
    total = patches * 3 * config.patch_size**2 * width
    total += config.depth * (tokens * (4 * width**2 + 2 * width * mlp_dim) + 2 * tokens**2 * width)
    if config.pool == "map":
        total += 2 * patches * width**2 + 2 * width**2 + 2 * patches * width + 2 * width * mlp_dim
    return total + width * config.num_classes


def activation_floats(config: ViTConfig) -> int:
    """Most floats alive at one moment of one image's forward pass, weights not counted.

    The moment is inside a block: the residual stream, and beside it either q, k, v and the attention output (fused
    attention, so no score matrix), or the MLP's hidden layer before and after GELU.
    """
    return config.num_tokens * (config.width + max(4 * config.width, 2 * config.mlp_dim))
