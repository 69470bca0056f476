"""Labelled images.

Torch-free, so that an artifact can be evaluated where torch is not installed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from sovit.decode import ImageSource
from train.data.images import LazyImages

Split = Literal["train", "test"]

DIGITS: Final = "digits"
HUB: Final = "hf:"


@dataclass(frozen=True)
class Dataset:
    """Images with the index of their class in `classes`: `targets` is int64 [N]."""

    name: str
    images: Sequence[ImageSource]
    targets: NDArray[np.int64]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images)

    def image_name(self, index: int) -> str:
        """What to call an image in a message: its path, its place in a shard, or `image 17 of NAME`."""
        if isinstance(self.images, LazyImages):
            name = self.images.image_name(index)
        else:
            image = self.images[index]
            name = str(image) if isinstance(image, (str, Path)) else ""
        return name or f"image {index} of {self.name}"
