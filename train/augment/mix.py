"""Mixup, CutMix and random erasing of a batch on its device, after normalising.

What is drawn depends on the seed, the step and an image's place in the whole batch, so a batch gives the same however
it is split over processes or parts. The numbers are drawn on the CPU and go to the device as one small array.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ConfigDict
from torch import Tensor

from sovit.errors import ConfigError
from sovit.jsonio import STRICT
from train.randomness import generator

_ERASE: Final = 1  # makes an image's stream another one than a pair's
_ERASED_AREA: Final = (0.02, 1 / 3)  # of the image
_LOG_ASPECT: Final = -math.log(0.3)  # of height over width, either way
_TRIES: Final = 10
_NOWHERE: Final = (0, 0, 0, 0)


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


class PairMix(NamedTuple):
    """How two images become two others.

    Inside the box (top, bottom, left, right) each shows the other; outside, the part `blend` of it is its own. `share`
    is the part of its own in all of its pixels.
    """

    blend: float
    share: float
    box: tuple[int, int, int, int]


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
        boxes = [erased_box(mix, height, width, seed=seed, step=step, index=first + row) for row in range(batch)]
        inside_B1YX = _inside(_on_device(boxes, image_BCYX), height, width)
        image_BCYX = image_BCYX.masked_fill(inside_B1YX, 0)
    if pairing:
        pairs = [pair_mix(mix, height, width, seed=seed, step=step, pair=first // 2 + row) for row in range(batch // 2)]
        # Edges are exact in float32, far beyond the size of an image.
        rows = _on_device([(blend, share, *box) for blend, share, box in pairs], image_BCYX)
        inside_P1YX = _inside(rows[:, 2:], height, width)
        own_P1YX = torch.where(inside_P1YX, 0.0, rows[:, 0].view(-1, 1, 1, 1))
        image_BCYX = _blended(image_BCYX, own_P1YX)
        target_BL = _blended(target_BL, rows[:, 1:2])
    return image_BCYX, target_BL


def pair_mix(mix: Mix, height: int, width: int, *, seed: int, step: int, pair: int) -> PairMix:
    """What is drawn for a pair of images, by its number in the whole batch."""
    rng = generator(seed, "mix", step, pair)
    if mix.mixup and (not mix.cutmix or rng.random() < 0.5):
        share = rng.beta(mix.mixup, mix.mixup)
        return PairMix(share, share, _NOWHERE)
    side = math.sqrt(1 - rng.beta(mix.cutmix, mix.cutmix))
    top, bottom = _clipped(rng.integers(height), side * height, height)
    left, right = _clipped(rng.integers(width), side * width, width)
    return PairMix(1.0, 1 - (bottom - top) * (right - left) / (height * width), (top, bottom, left, right))


def erased_box(mix: Mix, height: int, width: int, *, seed: int, step: int, index: int) -> tuple[int, int, int, int]:
    """The box (top, bottom, left, right) to erase in an image, by its number in the whole batch; empty for none.

    Its area is uniform in 0.02..1/3 of the image's, its aspect ratio log-uniform in 0.3..1/0.3, which makes upright and
    lying boxes equally frequent; the paper's is uniform. After ten boxes that do not fit there is none.
    """
    rng = generator(seed, "mix", step, index, _ERASE)
    if rng.random() >= mix.erase:
        return _NOWHERE
    for _ in range(_TRIES):
        pixels = rng.uniform(*_ERASED_AREA) * height * width
        ratio = math.exp(rng.uniform(-_LOG_ASPECT, _LOG_ASPECT))
        box_y, box_x = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
        if 1 <= box_y <= height and 1 <= box_x <= width:
            top, left = int(rng.integers(height - box_y + 1)), int(rng.integers(width - box_x + 1))
            return top, top + box_y, left, left + box_x
    return _NOWHERE


def _clipped(centre: np.int64, extent: float, side: int) -> tuple[int, int]:
    begin = int(centre) - round(extent) // 2
    return max(0, begin), min(side, begin + round(extent))


def _on_device(rows: Sequence[tuple[float, ...]], like: Tensor) -> Tensor:
    values: NDArray[np.float32] = np.array(rows, np.float32)
    return torch.from_numpy(values).to(like.device, non_blocking=True)


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
