"""Random crops and flips of one image, as it is loaded: uint8 [Y, X, 3] and NumPy's generator.

Resizing is PyTorch's, of uint8 with channels last: bilinear with antialiasing, within 1/255 of Pillow's, in less than
half the time. It has no state, so threads and worker processes give the same pixels.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from sovit.decode import DecodeOptions, ImageSource, check_size, decode, read_source
from sovit.errors import ConfigError
from sovit.header import sniff
from sovit.jpeg import REDUCTIONS, JpegHeader, decode_jpeg, read_jpeg_header

AREA: Final = (0.05, 1.0)  # of the image
ASPECT: Final = (3 / 4, 4 / 3)  # width over height
_TRIES: Final = 10
_RGB: Final = 3
_OPTIONS: Final = DecodeOptions(reduced_scale=True)


class CropBox(NamedTuple):
    """Pixels `top` to `top + height` and `left` to `left + width` of an image."""

    top: int
    left: int
    height: int
    width: int


def crop_box(
    height: int,
    width: int,
    rng: np.random.Generator,
    *,
    area: tuple[float, float] = AREA,
    aspect: tuple[float, float] = ASPECT,
) -> CropBox:
    """A random part of an image (Szegedy et al. 2015, "Going deeper with convolutions", section 6).

    Its area is uniform in `area`, as a fraction of the image's, its aspect ratio log-uniform in `aspect`. After ten
    boxes that do not fit, the largest centred one within `aspect`. Raises `ConfigError` for ranges that are none.
    """
    if not 0 < area[0] <= area[1] <= 1:
        raise ConfigError(f"the crop's area is {area}, it must be two rising fractions above 0 and at most 1.")
    if not 0 < aspect[0] <= aspect[1] < math.inf:
        raise ConfigError(f"the crop's aspect is {aspect}, it must be two rising numbers above 0.")
    for _ in range(_TRIES):
        pixels = rng.uniform(*area) * height * width
        ratio = math.exp(rng.uniform(math.log(aspect[0]), math.log(aspect[1])))
        crop_y, crop_x = round(math.sqrt(pixels / ratio)), round(math.sqrt(pixels * ratio))
        if 1 <= crop_y <= height and 1 <= crop_x <= width:
            top, left = rng.integers(height - crop_y + 1), rng.integers(width - crop_x + 1)
            return CropBox(int(top), int(left), crop_y, crop_x)
    crop_y = min(height, max(1, round(width / aspect[0])))
    crop_x = min(width, max(1, round(height * aspect[1])))
    return CropBox((height - crop_y) // 2, (width - crop_x) // 2, crop_y, crop_x)


def scaled_box(box: CropBox, factor: int) -> CropBox:
    """The box in an image of 1/`factor` of the size, to the nearest pixel; its sides are never below side // factor."""

    def nearest(edge: int) -> int:
        return (2 * edge + factor) // (2 * factor)

    top, left = nearest(box.top), nearest(box.left)
    return CropBox(top, left, nearest(box.top + box.height) - top, nearest(box.left + box.width) - left)


def inception_crop(
    image_YXC: NDArray[np.uint8],
    size_yx: tuple[int, int],
    rng: np.random.Generator,
    *,
    area: tuple[float, float] = AREA,
    aspect: tuple[float, float] = ASPECT,
) -> NDArray[np.uint8]:
    """A random part of an image, see `crop_box`, resized to uint8 [Y, X, 3] of `size_yx`."""
    box = crop_box(image_YXC.shape[0], image_YXC.shape[1], rng, area=area, aspect=aspect)
    return resized(_cut(image_YXC, box), size_yx)


def decode_for_crop(
    source: ImageSource,
    size_yx: tuple[int, int],
    rng: np.random.Generator,
    *,
    area: tuple[float, float] = AREA,
    aspect: tuple[float, float] = ASPECT,
    options: DecodeOptions = _OPTIONS,
) -> NDArray[np.uint8]:
    """Decode an image as far as a random part of it needs, see `crop_box`; resized to uint8 [Y, X, 3] of `size_yx`.

    The box depends on the generator and the size of the upright image alone, not on the format. With
    `options.reduced_scale` a JPEG is decoded at the smallest of 1/2, 1/4 and 1/8 at which the part is still no smaller
    than `size_yx`. Raises `UnsupportedImage` or `InvalidImage`, as `sovit.decode.decode` does.
    """
    if not isinstance(source, np.ndarray | Image.Image):
        source = read_source(source)
        if sniff(source) == "JPEG":
            header = read_jpeg_header(source)
            check_size(header.width, header.height, options)
            # A turned image is rare, and the meaning of four channels is Pillow's to know: both take the plain road.
            if header.orientation == 1 and header.components in (1, _RGB):
                box = crop_box(header.height, header.width, rng, area=area, aspect=aspect)
                return _jpeg_part(source, header, box, size_yx, reduce=options.reduced_scale)
    image = decode(source, options)
    box = crop_box(image.height, image.width, rng, area=area, aspect=aspect)
    edges = (box.left, box.top, box.left + box.width, box.top + box.height)
    return resized(np.asarray(image.crop(edges)), size_yx)


def pad_crop(image_YXC: NDArray[np.uint8], rng: np.random.Generator, *, padding: int) -> NDArray[np.uint8]:
    """Shift an image by up to `padding` pixels each way; uint8 [Y, X, 3] of the same size.

    What comes in from outside is the image reflected. Raises `ConfigError` for a padding that is negative, or larger
    than there are pixels to reflect.
    """
    height, width, _ = image_YXC.shape
    if not 0 <= padding < min(height, width):
        raise ConfigError(f"padding is {padding}, it must be at least 0 and less than the sides of {height} x {width}.")
    down, right = rng.integers(-padding, padding + 1, size=2)
    return image_YXC.take(_reflected(height, down), axis=0).take(_reflected(width, right), axis=1)


def _reflected(length: int, shift: int) -> NDArray[np.int64]:
    """Where the pixels of a shifted line come from; half as long as padding it and cutting."""
    index = np.abs(np.arange(shift, shift + length))
    mirrored: NDArray[np.int64] = np.minimum(index, 2 * (length - 1) - index)
    return mirrored


def flip(image_YXC: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Exchange left and right in one image of two; uint8 [Y, X, 3]."""
    if rng.random() < 0.5:
        return image_YXC
    return _tensor(image_YXC).flip(1).numpy()  # ten times as fast as NumPy's


def resized(image_YXC: NDArray[np.uint8], size_yx: tuple[int, int]) -> NDArray[np.uint8]:
    """Resize to uint8 [Y, X, 3] of `size_yx`: bilinear, antialiased where the image gets smaller."""
    if image_YXC.shape[:2] == size_yx:
        return np.ascontiguousarray(image_YXC)
    # In this order the strides are those of a batch with channels last, which has a kernel of its own.
    image_BCYX = _tensor(image_YXC)[None].permute(0, 3, 1, 2)
    image_BCYX = F.interpolate(image_BCYX, size_yx, mode="bilinear", align_corners=False, antialias=True)
    return np.ascontiguousarray(image_BCYX[0].permute(1, 2, 0).numpy())


def _jpeg_part(
    content: bytes, header: JpegHeader, box: CropBox, size_yx: tuple[int, int], *, reduce: bool
) -> NDArray[np.uint8]:
    factors = [by for by in REDUCTIONS if box.height >= by * size_yx[0] and box.width >= by * size_yx[1]]
    factor = max(factors, default=1) if reduce else 1
    reduced_yx = -(-header.height // factor), -(-header.width // factor)
    pixels_YXC = decode_jpeg(content, header, reduced_yx if factor > 1 else None)
    if pixels_YXC.shape[:2] != (header.height, header.width):  # odd headers are Pillow's, which does not reduce
        box = scaled_box(box, factor)
    part_YXC = _cut(pixels_YXC, box)
    if header.components == 1:
        part_YXC = np.broadcast_to(part_YXC, (*part_YXC.shape[:2], _RGB))
    return resized(part_YXC, size_yx)


def _cut(image_YXC: NDArray[np.uint8], box: CropBox) -> NDArray[np.uint8]:
    return image_YXC[box.top : box.top + box.height, box.left : box.left + box.width]


def _tensor(image_YXC: NDArray[np.uint8]) -> Tensor:
    """Without a copy where PyTorch takes the array as it is; it wants one that can be written to."""
    return torch.from_numpy(image_YXC if image_YXC.flags.writeable else image_YXC.copy())
