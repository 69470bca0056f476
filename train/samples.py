"""A sample: an image by its index, decoded, cropped and augmented, as the model's pixels.

What is drawn for a sample depends on the seed, the epoch and its index alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeGuard

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sovit.decode import ImageSource
from sovit.errors import InvalidImage, UnsupportedImage
from sovit.preprocess import Preprocess
from train.augment.crop import decode_for_crop, flip, pad_crop
from train.augment.randaugment import RandAugment
from train.config import TrainConfig
from train.data.dataset import Dataset
from train.data.order import sample_at
from train.randomness import generator
from train.signals import Interrupted

_BAD = (InvalidImage, UnsupportedImage, OSError)


class Batch(NamedTuple):
    """uint8 images [B, Y, X, C], targets [B], and the images that could not be used, by index with the reason."""

    image_BYXC: Tensor
    target_B: Tensor
    bad: dict[int, str]


@dataclass(frozen=True)
class TrainSamples:
    """Training samples by their position in the endless stream of shuffled epochs."""

    dataset: Dataset
    preprocess: Preprocess
    config: TrainConfig

    def __getitems__(self, positions: Sequence[int]) -> Batch:
        """A batch. For an image that cannot be used the next one of the data set stands in."""
        size = len(self.dataset)
        epochs, indices = sample_at(np.asarray(positions, np.int64), size, self.config.seed)
        bad: dict[int, str] = {}
        images, chosen = [], []
        for epoch, first in zip(epochs.tolist(), indices.tolist(), strict=True):
            for step in range(min(size, self.config.most_bad_images + 1)):
                index = (first + step) % size
                try:
                    images.append(self._image(epoch, index))
                except _BAD as error:
                    bad[index] = str(error)
                else:
                    chosen.append(index)
                    break
        if len(images) < len(positions):  # told by the loop: there are more bad images than it is to put up with
            images += [np.zeros((*self.preprocess.image_size, 3), np.uint8)] * (len(positions) - len(images))
            chosen += [0] * (len(positions) - len(chosen))
        return _batch(images, self.dataset.targets[np.array(chosen)], bad)

    def _image(self, epoch: int, index: int) -> NDArray[np.uint8]:
        config, source = self.config, self.dataset.images[index]
        rng = generator(config.seed, "augment", epoch, index)
        if config.crop == "inception":
            image_YXC = decode_for_crop(source, self.preprocess.image_size, rng, area=config.crop_area)
        else:
            image_YXC = source if self._is_ready(source) else self.preprocess(source)
            if config.crop == "pad":
                image_YXC = pad_crop(image_YXC, rng, padding=config.pad_pixels)
        if config.flip:
            image_YXC = flip(image_YXC, rng)
        if config.randaugment_count:
            augment = RandAugment(count=config.randaugment_count, magnitude=config.randaugment_magnitude)
            image_YXC = augment(image_YXC, rng)
        return image_YXC

    def _is_ready(self, source: ImageSource) -> TypeGuard[NDArray[np.uint8]]:
        """Whether `decoded` has made these pixels."""
        ready = self.config.keep_decoded and isinstance(source, np.ndarray)
        return ready and source.dtype == np.uint8 and source.shape == (*self.preprocess.image_size, 3)  # type: ignore[union-attr]


@dataclass(frozen=True)
class TestSamples:
    """Images for evaluation by index. One that cannot be used is all zeros, and named."""

    dataset: Dataset
    preprocess: Preprocess

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """A batch, in the order of the indices."""
        bad: dict[int, str] = {}
        images = []
        for index in indices:
            try:
                images.append(self.preprocess(self.dataset.images[index]))
            except _BAD as error:
                bad[index] = str(error)
                images.append(np.zeros((*self.preprocess.image_size, 3), np.uint8))
        return _batch(images, self.dataset.targets[np.asarray(indices)], bad)


def decoded(dataset: Dataset, preprocess: Preprocess, stop: Callable[[], bool] = lambda: False) -> Dataset:
    """The same data set with every image decoded and resized once. One that cannot be used stays as it was.

    `stop` is asked before each image. Raises `Interrupted`.
    """
    images: list[ImageSource] = []
    for index in range(len(dataset)):
        if stop():
            raise Interrupted
        source = dataset.images[index]
        try:
            images.append(preprocess(source))
        except _BAD:
            images.append(source)
    return Dataset(dataset.name, images, dataset.targets, dataset.classes)


def _batch(images: list[NDArray[np.uint8]], targets: NDArray[np.int64], bad: dict[int, str]) -> Batch:
    return Batch(torch.from_numpy(np.stack(images)), torch.from_numpy(targets), bad)
