"""The vision transformer of "Getting ViT in Shape" (Alabdulmohsin et al. 2023), as big_vision computes it.

Pre-LN blocks with biases everywhere; MAP head, GAP or class token; learned or sincos2d position embedding. Built for
exact agreement with big_vision, so layer names and initialisation follow its models/vit.py.

Shape suffixes, for the whole repo: B batch, C channels, Y X pixels, N tokens, D width, F mlp_dim, H heads, K head_dim,
L classes.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sovit.config import ViTConfig


class ViTOutput(NamedTuple):
    """`pre_logits` [B, D], `logits` [B, L] or None without a head, `tokens` [B, N, D] after the last norm."""

    pre_logits: Tensor
    logits: Tensor | None
    tokens: Tensor


class Mlp(nn.Module):
    """Two dense layers with a GELU between them."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.width, config.mlp_dim)
        self.fc2 = nn.Linear(config.mlp_dim, config.width)
        self.approximate = {"erf": "none", "tanh": "tanh"}[config.gelu]

    def forward(self, x_BND: Tensor) -> Tensor:
        """[B, N, D] to [B, N, D]."""
        return self.fc2(F.gelu(self.fc1(x_BND), approximate=self.approximate))  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.proj = nn.Linear(config.width, config.width)

    def forward(self, x_BND: Tensor) -> Tensor:
        """[B, N, D] to [B, N, D]."""
        q_BHNK, k_BHNK, v_BHNK = (_split_heads(x, self.num_heads) for x in self.qkv(x_BND).chunk(3, dim=-1))
        return self.proj(_merge_heads(F.scaled_dot_product_attention(q_BHNK, k_BHNK, v_BHNK)))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Pre-LN transformer block."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=config.layer_norm_eps)
        self.attn = Attention(config)
        self.norm2 = nn.LayerNorm(config.width, eps=config.layer_norm_eps)
        self.mlp = Mlp(config)

    def forward(self, x_BND: Tensor) -> Tensor:
        """[B, N, D] to [B, N, D]."""
        x_BND = x_BND + self.attn(self.norm1(x_BND))
        return x_BND + self.mlp(self.norm2(x_BND))  # type: ignore[no-any-return]


class MapHead(nn.Module):
    """Multihead attention pooling: one learned probe attends to all tokens, then an MLP with a residual.

    There is no residual around the attention itself.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.probe = nn.Parameter(torch.empty(1, 1, config.width))
        self.q = nn.Linear(config.width, config.width)
        self.kv = nn.Linear(config.width, 2 * config.width)
        self.proj = nn.Linear(config.width, config.width)
        self.norm = nn.LayerNorm(config.width, eps=config.layer_norm_eps)
        self.mlp = Mlp(config)

    def forward(self, x_BND: Tensor) -> Tensor:
        """[B, N, D] to [B, D]."""
        q_BHNK = _split_heads(self.q(self.probe).expand(x_BND.shape[0], -1, -1), self.num_heads)
        k_BHNK, v_BHNK = (_split_heads(x, self.num_heads) for x in self.kv(x_BND).chunk(2, dim=-1))
        y_BND = self.proj(_merge_heads(F.scaled_dot_product_attention(q_BHNK, k_BHNK, v_BHNK)))
        return (y_BND + self.mlp(self.norm(y_BND)))[:, 0]  # type: ignore[no-any-return]


class ViT(nn.Module):
    """Image [B, C, Y, X], normalised float32, to pooled features and class scores."""

    pos_embed: Tensor

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        width, grid = config.width, config.grid
        self.patch_embed = nn.Conv2d(3, width, config.patch_size, stride=config.patch_size)
        if config.position_embedding == "learn":
            self.pos_embed = nn.Parameter(torch.empty(1, grid[0] * grid[1], width))
        else:
            # Computed, so it is no weight: it follows the grid and stays out of the checkpoint.
            self.register_buffer("pos_embed", sincos2d(grid, width), persistent=False)
        self.cls = nn.Parameter(torch.empty(1, 1, width)) if config.pool == "tok" else None
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.map_head = MapHead(config) if config.pool == "map" else None
        self.head = nn.Linear(width, config.num_classes) if config.num_classes else None
        self.init_weights()

    def forward(self, image_BCYX: Tensor) -> ViTOutput:
        """Run the model on normalised float32 images of exactly `config.image_size`."""
        x_BND = self.patch_embed(image_BCYX).flatten(2).transpose(1, 2) + self.pos_embed
        if self.cls is not None:
            x_BND = torch.cat([self.cls.expand(x_BND.shape[0], -1, -1), x_BND], dim=1)
        for block in self.blocks:
            x_BND = block(x_BND)
        tokens_BND = self.norm(x_BND)
        if self.map_head is not None:
            pre_logits_BD = self.map_head(tokens_BND)
        elif self.cls is not None:
            pre_logits_BD = tokens_BND[:, 0]
        else:
            pre_logits_BD = tokens_BND.mean(dim=1)
        logits_BL = self.head(pre_logits_BD) if self.head is not None else None
        return ViTOutput(pre_logits_BD, logits_BL, tokens_BND)

    @torch.no_grad()
    def init_weights(self) -> None:
        """big_vision's initialisation; a model built on the meta device is left as it is."""
        if self.patch_embed.weight.is_meta:
            return
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                # q, k and v are one matrix here and three in the paper's code: each part has its own fan-out.
                parts = {"qkv": 3, "kv": 2}.get(name.rsplit(".", 1)[-1], 1)
                for part in module.weight.chunk(parts):
                    nn.init.xavier_uniform_(part)
                in_mlp = name.endswith(("fc1", "fc2"))
                nn.init.normal_(module.bias, std=1e-6) if in_mlp else nn.init.zeros_(module.bias)
        fan_in = 3 * self.config.patch_size**2
        nn.init.trunc_normal_(self.patch_embed.weight, std=math.sqrt(1 / fan_in))
        nn.init.zeros_(self.patch_embed.bias)  # type: ignore[arg-type]
        if isinstance(self.pos_embed, nn.Parameter):
            nn.init.normal_(self.pos_embed, std=1 / math.sqrt(self.config.width))
        if self.cls is not None:
            nn.init.zeros_(self.cls)
        if self.map_head is not None:
            nn.init.xavier_uniform_(self.map_head.probe[0])
        if self.head is not None:
            nn.init.zeros_(self.head.weight)


def _split_heads(x_BND: Tensor, num_heads: int) -> Tensor:
    return x_BND.unflatten(-1, (num_heads, -1)).transpose(1, 2)  # type: ignore[no-any-return,no-untyped-call]


def _merge_heads(x_BHNK: Tensor) -> Tensor:
    return x_BHNK.transpose(1, 2).flatten(2)


def sincos2d(grid: tuple[int, int], width: int, temperature: float = 10_000.0) -> Tensor:
    """Fixed position embedding [1, N, D] as in MoCo v3 and big_vision: sin x, cos x, sin y, cos y."""
    y_N, x_N = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    omega = temperature ** -(torch.arange(width // 4) / (width // 4 - 1))
    y = y_N.flatten()[:, None] * omega
    x = x_N.flatten()[:, None] * omega
    return torch.cat([x.sin(), x.cos(), y.sin(), y.cos()], dim=1)[None]


def resample_position_embedding(pos_1ND: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Learned position embedding of another grid, by big_vision's rule: bilinear, corners aligned, no antialias."""
    if old == new:
        return pos_1ND
    grid_1DYX = pos_1ND.unflatten(1, old).permute(0, 3, 1, 2)  # type: ignore[no-untyped-call]
    resized = F.interpolate(grid_1DYX.float(), size=new, mode="bilinear", align_corners=True)
    return resized.flatten(2).transpose(1, 2).to(pos_1ND.dtype)
