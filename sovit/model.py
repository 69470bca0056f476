"""The vision transformer of "Getting ViT in Shape" (Alabdulmohsin et al. 2023) and of its public checkpoints.

Pre-LN blocks; MAP head, GAP or class token; learned or sincos2d position embedding; register tokens, LayerScale and
NaFlex input where a checkpoint has them. It agrees with big_vision, timm and transformers to 1e-5 relative; layer names
and initialisation follow big_vision's models/vit.py.

Shape suffixes, for the whole repo: B batch, C channels, Y X pixels, N tokens, D width, F mlp_dim, H heads, K head_dim,
L classes, P values of one patch.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sovit.config import ViTConfig
from sovit.errors import ConfigError
from sovit.position import resample_position_embedding, sincos2d

_LAYER_SCALE_INIT = 1e-5  # LayerScale at the start of training (Touvron et al. 2021, and timm's So150m2)


class ViTOutput(NamedTuple):
    """`pre_logits` [B, D], `logits` [B, L] or None without a head, `tokens` [B, N, D] that enter the pooling."""

    pre_logits: Tensor
    logits: Tensor | None
    tokens: Tensor


class Patches(NamedTuple):
    """NaFlex input: images of different aspect ratios in one batch.

    `patches_BNP`: normalised float32, the pixels of a patch in the order (y, x, channel), padded to N patches.
    `mask_BN`: bool, False where padded. `grid_B2`: rows and columns of each image.
    """

    patches_BNP: Tensor
    mask_BN: Tensor
    grid_B2: Tensor


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
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=config.qkv_bias)
        self.proj = nn.Linear(config.width, config.width)

    def forward(self, x_BND: Tensor, mask_B11N: Tensor | None) -> Tensor:
        """[B, N, D] to [B, N, D]; no token sees those where the mask is False."""
        q_BHNK, k_BHNK, v_BHNK = (_split_heads(x, self.num_heads) for x in self.qkv(x_BND).chunk(3, dim=-1))
        y_BHNK = F.scaled_dot_product_attention(q_BHNK, k_BHNK, v_BHNK, attn_mask=mask_B11N)
        return self.proj(_merge_heads(y_BHNK))  # type: ignore[no-any-return]


class LayerScale(nn.Module):
    """A learned factor per channel."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((config.width,), _LAYER_SCALE_INIT))

    def forward(self, x_BND: Tensor) -> Tensor:
        """[B, N, D] to [B, N, D]."""
        return x_BND * self.gamma.to(x_BND.dtype)


class Block(nn.Module):
    """Pre-LN transformer block."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=config.layer_norm_eps)
        self.attn = Attention(config)
        self.ls1 = LayerScale(config) if config.layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(config.width, eps=config.layer_norm_eps)
        self.mlp = Mlp(config)
        self.ls2 = LayerScale(config) if config.layer_scale else nn.Identity()

    def forward(self, x_BND: Tensor, mask_B11N: Tensor | None = None, keep_2B11: Tensor | None = None) -> Tensor:
        """[B, N, D] to [B, N, D]. `keep_2B11` scales the attention and the MLP of each image (stochastic depth)."""
        attended_BND = self.ls1(self.attn(self.norm1(x_BND), mask_B11N))
        x_BND = x_BND + (attended_BND if keep_2B11 is None else attended_BND * keep_2B11[0])
        mixed_BND = self.ls2(self.mlp(self.norm2(x_BND)))
        return x_BND + (mixed_BND if keep_2B11 is None else mixed_BND * keep_2B11[1])  # type: ignore[no-any-return]


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

    def forward(self, x_BND: Tensor, mask_B11N: Tensor | None = None) -> Tensor:
        """[B, N, D] to [B, D]."""
        q_BHNK = _split_heads(self.q(self.probe).expand(x_BND.shape[0], -1, -1), self.num_heads)
        k_BHNK, v_BHNK = (_split_heads(x, self.num_heads) for x in self.kv(x_BND).chunk(2, dim=-1))
        y_BHNK = F.scaled_dot_product_attention(q_BHNK, k_BHNK, v_BHNK, attn_mask=mask_B11N)
        y_BND = self.proj(_merge_heads(y_BHNK))
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
        self.registers = nn.Parameter(torch.empty(1, config.registers, width)) if config.registers else None
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.map_head = MapHead(config) if config.pool == "map" else None
        self.head = nn.Linear(width, config.num_classes) if config.num_classes else None
        self.init_weights()

    def forward(self, image: Tensor | Patches, keep_E2B: Tensor | None = None) -> ViTOutput:
        """Run the model on images [B, C, Y, X] of exactly `config.image_size`, or on images of any grid as `Patches`.

        `keep_E2B` is for training alone: for each of the E blocks the factors of its two branches per image, 0 where
        stochastic depth drops one. `Patches` are for NaFlex models. Raises `ConfigError` for others, and where grid and
        mask do not fit each other.
        """
        mask_B11N = None
        if isinstance(image, Patches):
            x_BND = self._embed_patches(image)
            mask_B11N = image.mask_BN[:, None, None]
        else:
            # Contiguous: for one that is transposed, blocks compiled for bfloat16 on a CPU give NaN (torch 2.13).
            x_BND = self.patch_embed(image).flatten(2).transpose(1, 2).contiguous()
            # Under autocast tokens stay in bfloat16 from here to the last norm, as with big_vision's dtype_mm.
            x_BND = x_BND + self.pos_embed.to(x_BND.dtype)
        for prefix in (self.registers, self.cls):
            if prefix is not None:
                x_BND = torch.cat([prefix.to(x_BND.dtype).expand(x_BND.shape[0], -1, -1), x_BND], dim=1)
        if keep_E2B is not None:
            keep_E2B = keep_E2B.to(x_BND.dtype)
        for index, block in enumerate(self.blocks):
            x_BND = block(x_BND, mask_B11N, None if keep_E2B is None else keep_E2B[index, :, :, None, None])
        tokens_BND = x_BND if self.config.fc_norm else self.norm(x_BND)
        pre_logits_BD = self._pool(tokens_BND, mask_B11N)
        if self.config.fc_norm:
            pre_logits_BD = self.norm(pre_logits_BD)
        logits_BL = self.head(pre_logits_BD) if self.head is not None else None
        return ViTOutput(pre_logits_BD, logits_BL, tokens_BND)

    def _pool(self, tokens_BND: Tensor, mask_B11N: Tensor | None) -> Tensor:
        if self.cls is not None:
            return tokens_BND[:, 0]
        patches_BND = tokens_BND[:, self.config.num_prefix_tokens :]
        if self.map_head is not None:
            return self.map_head(patches_BND, mask_B11N)  # type: ignore[no-any-return]
        if mask_B11N is not None:
            mask_BN1 = mask_B11N[:, 0, 0, :, None].to(patches_BND.dtype)
            return (patches_BND * mask_BN1).sum(dim=1) / mask_BN1.sum(dim=1)
        return patches_BND.mean(dim=1)

    def _embed_patches(self, image: Patches) -> Tensor:
        config = self.config
        if not config.naflex:
            raise ConfigError("this model takes images of one size; patches are for NaFlex models.")
        if image.grid_B2.prod(dim=1).tolist() != image.mask_BN.sum(dim=1).tolist():
            raise ConfigError("grid and mask disagree: rows x columns must be the number of patches of each image.")
        # The convolution's kernel as a matrix over the patch's values in their order (y, x, channel).
        kernel_DP = self.patch_embed.weight.permute(0, 2, 3, 1).flatten(1)
        x_BND = F.linear(image.patches_BNP, kernel_DP, self.patch_embed.bias)
        tables = {
            grid: resample_position_embedding(self.pos_embed, config.grid, grid, config.position_resampling)[0]
            for grid in {(rows, columns) for rows, columns in image.grid_B2.tolist()}
        }
        length = x_BND.shape[1]
        return x_BND + torch.stack(
            [
                F.pad(tables[rows, columns], (0, 0, 0, length - rows * columns))
                for rows, columns in image.grid_B2.tolist()
            ]
        )

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
                if module.bias is not None:
                    in_mlp = name.endswith(("fc1", "fc2"))
                    nn.init.normal_(module.bias, std=1e-6) if in_mlp else nn.init.zeros_(module.bias)
        fan_in = 3 * self.config.patch_size**2
        nn.init.trunc_normal_(self.patch_embed.weight, std=math.sqrt(1 / fan_in))
        nn.init.zeros_(self.patch_embed.bias)  # type: ignore[arg-type]
        if isinstance(self.pos_embed, nn.Parameter):
            nn.init.normal_(self.pos_embed, std=1 / math.sqrt(self.config.width))
        if self.cls is not None:
            nn.init.zeros_(self.cls)
        if self.registers is not None:
            # Not zero, unlike the class token: registers that start alike would stay alike.
            nn.init.normal_(self.registers, std=1e-6)
        if self.map_head is not None:
            nn.init.xavier_uniform_(self.map_head.probe[0])
        if self.head is not None:
            nn.init.zeros_(self.head.weight)


def _split_heads(x_BND: Tensor, num_heads: int) -> Tensor:
    return x_BND.unflatten(-1, (num_heads, -1)).transpose(1, 2)  # type: ignore[no-any-return,no-untyped-call]


def _merge_heads(x_BHNK: Tensor) -> Tensor:
    return x_BHNK.transpose(1, 2).flatten(2)
