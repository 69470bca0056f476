"""Mixup, CutMix and random erasing of a batch on its device, after normalising.

What is drawn depends on the seed, the step and an image's place in the whole batch, so a batch gives the same however
it is split over processes or parts. The numbers are drawn on the CPU and go to the device as one small array.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ConfigDict
from torch import Tensor

from sovit.errors import ConfigError
from sovit.jsonio import STRICT
from train.randomness import generator

_ERASED_AREA: Final = (0.02, 1 / 3)  # of the image
_LOG_ASPECT: Final = -math.log(0.3)  # of height over width, either way
_TRIES: Final = 10
# What is drawn has a stream each: its first numbers are the same however many are drawn.
_Stream = Literal["way", "mixup", "cutmix", "centre", "erase"]
_STREAMS: Final[tuple[_Stream, ...]] = get_args(_Stream)


@dataclass(frozen=True, kw_only=True)
class Mix:
    """What is done to a batch; 0 is off.

    `mixup` (Zhang et al. 2018, arXiv:1710.09412) and `cutmix` (Yun et al. 2019, arXiv:1905.04899) are alphas of
    Beta(alpha, alpha), from which the part of an image's own in the result is drawn; with both on, each pair of images
    gets one or the other. `erase` (Zhong et al. 2017, arXiv:1708.04896) is a probability.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    mixup: float = 0.0
    cutmix: float = 0.0
    erase: float = 0.0

    def __post_init__(self) -> None:
        for name, alpha in (("mixup", self.mixup), ("cutmix", self.cutmix)):
            if not 0 <= alpha < math.inf:
                raise ConfigError(f"{name} is {alpha}, it must be a number of at least 0.")
        if not 0 <= self.erase <= 1:
            raise ConfigError(f"erase is {self.erase}, it must lie in 0..1.")


class PairMixes(NamedTuple):
    """How the two images of each pair become two others.

    Inside the box (top, bottom, left, right) each shows the other; outside, the part `blend` of it is its own. `share`
    is the part of its own in all of its pixels.
    """

    blend_P: NDArray[np.float64]
    share_P: NDArray[np.float64]
    box_P4: NDArray[np.int64]


def mixed(
    image_BCYX: Tensor, target_BL: Tensor, mix: Mix, *, seed: int, step: int, first: int
) -> tuple[Tensor, Tensor]:
    """Erase and mix the images of a batch, or of a part of one whose first image is the `first` of the whole batch.

    Images 2j and 2j + 1 of the whole batch are mixed with each other; targets are distributions over classes, mixed
    alike. An erased box is filled with zeros, the mean colour: unlike noise, they are the same on every device. Types
    are kept, sums are in float32. Raises `ConfigError` where a part does not begin and end between two pairs, and for
    targets that are class numbers.
    """
    pairing = bool(mix.mixup or mix.cutmix)
    batch, _, height, width = image_BCYX.shape
    if pairing and (first % 2 or batch % 2):
        raise ConfigError(f"mixup and cutmix need whole pairs, not {batch} images from the {first}th of a batch.")
    if pairing and not target_BL.is_floating_point():
        raise ConfigError(f"mixed targets are distributions over classes, not {target_BL.dtype}.")
    if mix.erase:
        boxes = erased_boxes(mix, height, width, seed=seed, step=step, first=first, count=batch)
        inside_B1YX = _inside(_on_device(boxes, image_BCYX), height, width)
        image_BCYX = image_BCYX.masked_fill(inside_B1YX, 0)
    if pairing:
        pairs = pair_mixes(mix, height, width, seed=seed, step=step, first=first // 2, count=batch // 2)
        # Edges are exact in float32, far beyond the size of an image.
        rows = _on_device(np.column_stack(pairs), image_BCYX)
        inside_P1YX = _inside(rows[:, 2:], height, width)
        own_P1YX = torch.where(inside_P1YX, 0.0, rows[:, 0].view(-1, 1, 1, 1))
        image_BCYX = _blended(image_BCYX, own_P1YX)
        target_BL = _blended(target_BL, rows[:, 1:2])
    return image_BCYX, target_BL


def pair_mixes(mix: Mix, height: int, width: int, *, seed: int, step: int, first: int, count: int) -> PairMixes:
    """What is drawn for `count` pairs of images, from the `first` of the whole batch on."""
    end = first + count
    is_cut_P = np.full(count, not mix.mixup)
    if mix.mixup and mix.cutmix:
        is_cut_P = _stream("way", seed, step).random(end)[first:] >= 0.5
    share_P = np.ones(count)
    if mix.mixup:
        share_P = _stream("mixup", seed, step).beta(mix.mixup, mix.mixup, end)[first:]
    if not mix.cutmix:
        return PairMixes(share_P, share_P, np.zeros((count, 4), np.int64))
    side_P = np.sqrt(1 - _stream("cutmix", seed, step).beta(mix.cutmix, mix.cutmix, end)[first:])
    centre_P2 = _stream("centre", seed, step).random((end, 2))[first:]
    edges = [_clipped(centre_P2[:, axis], side_P, extent) for axis, extent in enumerate((height, width))]
    box_P4 = np.stack([edge for pair in edges for edge in pair], axis=1) * is_cut_P[:, None]
    top, bottom, left, right = box_P4.T
    cut_share_P = 1 - (bottom - top) * (right - left) / (height * width)
    return PairMixes(np.where(is_cut_P, 1.0, share_P), np.where(is_cut_P, cut_share_P, share_P), box_P4)


def erased_boxes(
    mix: Mix, height: int, width: int, *, seed: int, step: int, first: int, count: int
) -> NDArray[np.int64]:
    """The boxes (top, bottom, left, right) to erase in `count` images, from the `first` on; empty for none.

    A box's area is uniform in 0.02..1/3 of the image's, its aspect ratio log-uniform in 0.3..1/0.3, which makes upright
    and lying boxes equally frequent; the paper's is uniform. After ten boxes that do not fit there is none.
    """
    drawn = _stream("erase", seed, step).random((first + count, 1 + 4 * _TRIES))[first:]
    area, aspect, down, right = drawn[:, 1:].reshape(count, _TRIES, 4).transpose(2, 0, 1)
    pixels = (_ERASED_AREA[0] + area * (_ERASED_AREA[1] - _ERASED_AREA[0])) * height * width
    ratio = np.exp((2 * aspect - 1) * _LOG_ASPECT)
    box_y, box_x = np.rint(np.sqrt(pixels * ratio)), np.rint(np.sqrt(pixels / ratio))
    fits = (box_y >= 1) & (box_y <= height) & (box_x >= 1) & (box_x <= width)
    top, left = np.floor(down * (height - box_y + 1)), np.floor(right * (width - box_x + 1))
    boxes = np.stack([top, top + box_y, left, left + box_x], axis=-1)[np.arange(count), fits.argmax(axis=1)]
    wanted = (drawn[:, 0] < mix.erase) & fits.any(axis=1)
    found: NDArray[np.int64] = np.where(wanted[:, None], boxes, 0).astype(np.int64)
    return found


def _stream(name: _Stream, seed: int, step: int) -> np.random.Generator:
    return generator(seed, "mix", step, _STREAMS.index(name))


def _clipped(
    centre: NDArray[np.float64], side: NDArray[np.float64], extent: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    length = np.rint(side * extent).astype(np.int64)
    begin = np.floor(centre * extent).astype(np.int64) - length // 2
    return np.maximum(0, begin), np.minimum(extent, begin + length)


def _on_device(rows: NDArray[Any], like: Tensor) -> Tensor:
    return torch.from_numpy(rows.astype(np.float32)).to(like.device, non_blocking=True)


def _inside(box_B4: Tensor, height: int, width: int) -> Tensor:
    """Whether a pixel lies in its image's box (top, bottom, left, right): bool [B, 1, Y, X]."""
    top, bottom, left, right = box_B4.view(-1, 4, 1, 1, 1).unbind(dim=1)
    row_Y1 = torch.arange(height, device=box_B4.device)[:, None]
    column_X = torch.arange(width, device=box_B4.device)
    return (row_Y1 >= top) & (row_Y1 < bottom) & (column_X >= left) & (column_X < right)


def _blended(value_B: Tensor, own_P: Tensor) -> Tensor:
    """Neighbours blended with each other: `own_P` is float32, a pair's weights of its own values."""
    first, second = value_B.view(-1, 2, *value_B.shape[1:]).unbind(dim=1)
    # Three roundings for each number: a fused operation may round otherwise at the end of an array.
    pairs = torch.stack([first * own_P + second * (1 - own_P), second * own_P + first * (1 - own_P)], dim=1)
    return pairs.flatten(0, 1).to(value_B.dtype)
