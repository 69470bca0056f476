"""Outlier channels, which trained transformers have and random weights lack, planted into a model."""

from __future__ import annotations

from typing import Final

import torch

from sovit.model import Block, ViT

CHANNELS: Final = 3  # of each kind in each block
NORM_FACTOR: Final = 30
VALUE_FACTOR: Final = 60


@torch.no_grad()
def add_outliers(model: ViT, seed: int = 0) -> ViT:
    """Make three channels of every LayerNorm 30 times as large and three of the values of every attention 60 times.

    The weights that read a channel are divided to match, so in fp32 the function stays the same. (A channel of the
    residual stream itself cannot be scaled so: LayerNorm takes its mean and variance over all of them.)
    """
    generator = torch.Generator().manual_seed(seed)
    for block in model.blocks:
        assert isinstance(block, Block)
        width = len(block.norm1.weight)
        for norm, layer in ((block.norm1, block.attn.qkv), (block.norm2, block.mlp.fc1)):
            channels = torch.randperm(width, generator=generator)[:CHANNELS]
            norm.weight[channels] *= NORM_FACTOR
            norm.bias[channels] *= NORM_FACTOR
            layer.weight[:, channels] /= NORM_FACTOR
        channels = torch.randperm(width, generator=generator)[:CHANNELS]
        block.attn.qkv.weight[2 * width + channels] *= VALUE_FACTOR
        if block.attn.qkv.bias is not None:
            block.attn.qkv.bias[2 * width + channels] *= VALUE_FACTOR
        block.attn.proj.weight[:, channels] /= VALUE_FACTOR
    return model
