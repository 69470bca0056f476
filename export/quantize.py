"""Post-training quantisation: where outlier channels go, and the range of every activation.

One scale serves all channels of an activation, so a few large channels would leave the others a handful of steps. Half
of a channel's size therefore moves into the weights (SmoothQuant, Xiao et al. 2023): it is divided by
s = max|x|^0.5 / max|w|^0.5 where it is made, in the gain of a LayerNorm or the rows of a value projection, and
multiplied by s where it is used. The fp32 function stays the same. Ranges then reach to the largest value seen.

What else was tried, and what it measured, is in `benchmarks/studies/quantization.py` and its result file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from export.builder import Array
from sovit.config import ViTConfig

STRENGTH: Final = 0.5
_TINY: Final = 1e-5


@dataclass(frozen=True)
class Quantization:
    """Weights of the same fp32 function, with their outliers moved, and the largest |x| of each activation."""

    weights: dict[str, Array]
    ranges: dict[str, float]


def quantization(
    config: ViTConfig,
    weights: Mapping[str, Array],
    largest: Mapping[str, Array],
    strength: float = STRENGTH,
    *,
    tokens: bool = False,
) -> Quantization:
    """Smooth a model's weights and set its ranges, from what `export.calibrate` found.

    With `tokens` among the outputs the last LayerNorm stays as it is: they are what it makes.
    """
    smooth = _Smoother(dict(weights), largest, strength)
    for index in range(config.depth):
        block = f"blocks.{index}"
        smooth.after_norm(f"{block}.norm1", f"{block}.attn.qkv")
        smooth.after_attention(f"{block}.attn", "qkv")
        smooth.after_norm(f"{block}.norm2", f"{block}.mlp.fc1")
        smooth.alone(f"{block}.mlp.fc2")
    if config.pool == "map":
        if config.fc_norm or tokens:  # with fc_norm the tokens reach the head without a norm
            smooth.alone("map_head.kv")
        else:
            smooth.after_norm("norm", "map_head.kv")
        smooth.after_attention("map_head", "kv")
        smooth.after_norm("map_head.norm", "map_head.mlp.fc1")
        smooth.alone("map_head.mlp.fc2")
    return Quantization(smooth.weights, smooth.ranges)


class _Smoother:
    def __init__(self, weights: dict[str, Array], largest: Mapping[str, Array], strength: float) -> None:
        self.weights = weights
        self.ranges: dict[str, float] = {}
        self._largest = largest
        self._strength = strength

    def after_norm(self, norm: str, layer: str) -> None:
        """A layer whose input a LayerNorm makes: its gain and shift take the factors."""
        scale_D = self._move(layer)
        for kind in ("weight", "bias"):
            self.weights[f"{norm}.{kind}"] = self.weights[f"{norm}.{kind}"] / scale_D

    def after_attention(self, name: str, letters: str) -> None:
        """The projection of attention's output, whose channels are averages of the value's: its rows take them."""
        scale_D = self._move(f"{name}.proj")
        for kind in ("weight", "bias"):
            array = self.weights.get(f"{name}.{letters}.{kind}")
            if array is not None:
                value = array[-len(scale_D) :] / (scale_D[:, None] if kind == "weight" else scale_D)
                self.weights[f"{name}.{letters}.{kind}"] = np.concatenate([array[: -len(scale_D)], value])
        for letter in "qkv":
            seen_D = self._largest[f"{name}.{letter}"]
            self.ranges[f"{name}.{letter}"] = float((seen_D / scale_D if letter == "v" else seen_D).max())

    def alone(self, layer: str) -> None:
        """A layer whose input nothing linear makes."""
        self.ranges[layer] = float(self._largest[layer].max())

    def _move(self, layer: str) -> Array:
        """Multiply the factors into a layer's weight and return them."""
        weight_FD, seen_D = self.weights[f"{layer}.weight"], self._largest[layer]
        used_D = np.abs(weight_FD).max(axis=0)
        ratio_D = np.maximum(seen_D, _TINY) ** self._strength / np.maximum(used_D, _TINY) ** (1 - self._strength)
        # A factor common to all channels changes nothing: their mean is kept at one.
        scale_D: Array = np.asarray(ratio_D / np.exp(np.log(ratio_D).mean()), np.float32)
        self.weights[f"{layer}.weight"] = weight_FD * scale_D
        self.ranges[layer] = float((seen_D / scale_D).max())
        return scale_D
