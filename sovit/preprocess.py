"""A decoded image to the model's input: resize, crop or pad; uint8 [Y, X, C].

Casting and normalising are the graph's work: `mean` and `std` are carried here and applied there. Resizing is
Pillow's, as in timm and transformers, so published accuracies are reproduced to the pixel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import ConfigDict

from sovit.decode import DecodeOptions, ImageSource, decode
from sovit.errors import ConfigError, InvalidImage
from sovit.jsonio import STRICT

ResizeRule = Literal["squash", "crop", "border", "naflex"]
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]
Images = NDArray[np.uint8] | Sequence[NDArray[np.uint8]]  # [B, Y, X, C], or [Y, X, C] of different sizes
_LEAST_CROP: Final = 0.1
_MOST_RESIZED: Final = 32_000_000  # pixels of an image before its centre is cut out
_FILTERS: Final = {name: Image.Resampling[name.upper()] for name in Interpolation.__args__}  # type: ignore[attr-defined]


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """How an image becomes the model's input.

    The first three rules give images of `image_size` (Y, X); they resize to a frame of `image_size / crop_fraction`
    and cut the centre out:

    - `squash` fills the frame whatever the aspect ratio (SigLIP; timm's crop_mode squash).
    - `crop` keeps the aspect ratio and covers the frame (timm's crop_mode center).
    - `border` keeps the aspect ratio and fits into the frame; the rest is filled with the mean colour (timm's border).
    - `naflex` keeps the aspect ratio as nearly as whole patches allow: sides are the multiples of `patch_size` that
      give the most patches up to `max_patches` (SigLIP 2 NaFlex). `image_size` is that of the position embedding.

    `mean` and `std` are per channel, for pixel values in 0..1.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    image_size: tuple[int, int]
    resize: ResizeRule = "squash"
    crop_fraction: float = 1.0
    interpolation: Interpolation = "bicubic"
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    patch_size: int | None = None
    max_patches: int | None = None

    def __post_init__(self) -> None:
        if min(self.image_size) < 1:
            raise ConfigError(f"image_size is {self.image_size}, both sides must be at least 1.")
        if not _LEAST_CROP <= self.crop_fraction <= 1:
            raise ConfigError(f"crop_fraction is {self.crop_fraction}, it must lie in {_LEAST_CROP}..1.")
        # Of pixels in 0..1; the bounds keep typing errors from becoming numbers that are not finite.
        if not all(abs(value) <= 1e3 for value in self.mean) or not all(1e-3 <= value <= 1e3 for value in self.std):
            raise ConfigError(f"mean {self.mean} and std {self.std} must lie in -1000..1000 and 0.001..1000.")
        if self.resize == "naflex":
            if not (self.patch_size and self.max_patches and self.patch_size >= 1 and self.max_patches >= 1):
                raise ConfigError("the resize rule 'naflex' needs a patch_size and max_patches of at least 1.")
            if self.crop_fraction != 1.0:
                raise ConfigError("crop_fraction means nothing to the resize rule 'naflex'.")
        elif self.patch_size is not None or self.max_patches is not None:
            raise ConfigError(f"patch_size and max_patches mean nothing to the resize rule {self.resize!r}.")

    def __call__(self, source: ImageSource, options: DecodeOptions | None = None) -> NDArray[np.uint8]:
        """One image to uint8 [Y, X, 3]. Raises `UnsupportedImage` or `InvalidImage`."""
        try:
            return self.resized(decode(source, options or DecodeOptions(), self._resized_size))
        except MemoryError as error:
            raise InvalidImage("the image takes more memory than there is.") from error

    def resized(self, image: Image.Image) -> NDArray[np.uint8]:
        """Resize, and crop or pad, a decoded RGB image."""
        size_yx = self._resized_size(image.height, image.width)
        if size_yx[0] * size_yx[1] > _MOST_RESIZED:
            raise InvalidImage(f"the image is {image.width} x {image.height}: too long and thin to be resized.")
        if (image.height, image.width) != size_yx:
            image = image.resize((size_yx[1], size_yx[0]), _FILTERS[self.interpolation])
        if self.resize != "naflex" and size_yx != self.image_size:
            image = _centre(image, self.image_size, self.mean)
        return np.asarray(image)

    @property
    def summary(self) -> str:
        """All of it in one line."""
        values = f"{self.interpolation}, mean {list(self.mean)}, std {list(self.std)}"
        if self.resize == "naflex":
            return f"naflex, at most {self.max_patches} patches of {self.patch_size} px, {values}"
        fraction = f" {self.crop_fraction:g}" if self.crop_fraction != 1 else ""
        return f"{self.resize}{fraction} to {self.image_size[0]} x {self.image_size[1]} px, {values}"

    def _resized_size(self, height: int, width: int) -> tuple[int, int]:
        if self.resize == "naflex":
            assert self.patch_size is not None
            assert self.max_patches is not None
            return naflex_size(height, width, self.patch_size, self.max_patches)
        frame_y, frame_x = (math.floor(side / self.crop_fraction) for side in self.image_size)
        if self.resize == "squash":
            return frame_y, frame_x
        if self.resize == "crop" and frame_y == frame_x:
            return _shorter_side_to(frame_y, height, width)
        choose = min if self.resize == "crop" else max
        ratio = choose(height / frame_y, width / frame_x)
        return max(1, round(height / ratio)), max(1, round(width / ratio))


class PatchBatch(NamedTuple):
    """Images of different sizes as one batch of patches, padded to the longest of them.

    `patches_BNP` uint8 with the pixels of a patch in the order (y, x, channel), `mask_BN` bool, False where padded,
    `grid_B2` int64: rows and columns of patches.
    """

    patches_BNP: NDArray[np.uint8]
    mask_BN: NDArray[np.bool_]
    grid_B2: NDArray[np.int64]


def to_patches(images: Images, patch_size: int) -> PatchBatch:
    """Images [Y, X, C] whose sides are multiples of `patch_size` to a batch of patches."""
    grid_B2 = np.array([(image.shape[0] // patch_size, image.shape[1] // patch_size) for image in images], np.int64)
    length = int(grid_B2.prod(axis=1).max())
    patches_BNP = np.zeros((len(images), length, 3 * patch_size**2), np.uint8)
    mask_BN = np.zeros((len(images), length), np.bool_)
    for row, (image, (rows, columns)) in enumerate(zip(images, grid_B2, strict=True)):
        tiles = image.reshape(rows, patch_size, columns, patch_size, 3).swapaxes(1, 2)
        patches_BNP[row, : rows * columns] = tiles.reshape(rows * columns, -1)
        mask_BN[row, : rows * columns] = True
    return PatchBatch(patches_BNP, mask_BN, grid_B2)


def naflex_size(height: int, width: int, patch_size: int, max_patches: int) -> tuple[int, int]:
    """The size (Y, X) that an image of this height and width gets under NaFlex.

    The scale is found by bisection in 1e-6..100 to 1e-5, as big_vision and transformers do: a closed form would differ
    where the last step decides.
    """

    def patches(extent: int, scale: float) -> int:
        return max(1, math.ceil(extent * scale / patch_size))

    tolerance = 1e-5
    low, high = tolerance / 10, 100.0
    while high - low >= tolerance:
        scale = (low + high) / 2
        if patches(height, scale) * patches(width, scale) <= max_patches:
            low = scale
        else:
            high = scale
    return patches(height, low) * patch_size, patches(width, low) * patch_size


def _shorter_side_to(short: int, height: int, width: int) -> tuple[int, int]:
    # The longer side is cut, not rounded: torchvision's rule, which timm's transform inherits.
    if height <= width:
        return short, int(short * width / height)
    return int(short * height / width), short


def _centre(image: Image.Image, size_yx: tuple[int, int], mean: tuple[float, float, float]) -> Image.Image:
    """Cut the centre out; where the image is smaller than that, the mean colour surrounds it."""
    height, width = size_yx
    top, left = _offset(image.height, height), _offset(image.width, width)
    if image.height >= height and image.width >= width:
        return image.crop((left, top, left + width, top + height))
    red, green, blue = (round(255 * value) for value in mean)
    canvas = Image.new("RGB", (width, height), (red, green, blue))
    canvas.paste(image, (-left, -top))
    return canvas


def _offset(extent: int, frame: int) -> int:
    """Where the frame begins in the image. timm puts the odd pixel of a border after the image."""
    return round((extent - frame) / 2) if extent >= frame else -((frame - extent) // 2)
