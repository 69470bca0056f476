"""Image bytes to the model's input: decode under limits, EXIF orientation, RGB, resize, crop; uint8 [Y, X, C].

Casting and normalising are the graph's work: `mean` and `std` are carried here and applied there. Resizing is
Pillow's, as in timm and transformers, so published accuracies are reproduced to the pixel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import ClassVar, Final, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from pydantic import ConfigDict

from sovit.errors import ConfigError, InvalidImage, UnsupportedImage
from sovit.jsonio import STRICT

ImageSource = str | Path | bytes | Image.Image | NDArray[np.uint8]

# Formats are told by their first bytes, never by a file name or a content type.
_SIGNATURES: Final = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"BM", "BMP"),
)
FORMATS: Final = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
SUFFIXES: Final = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")  # of files to look for in a folder
_PILLOW_LIMIT: Final = 89_478_485
_FILTERS: Final = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@dataclass(frozen=True, kw_only=True)
class DecodeLimits:
    """What a decoder may be asked to do. `max_pixels` is checked against the header, before any pixel is decoded."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    max_pixels: int = 50_000_000

    def __post_init__(self) -> None:
        if not 1 <= self.max_pixels <= _PILLOW_LIMIT:
            raise ConfigError(
                f"max_pixels is {self.max_pixels:,}, it must lie in 1..{_PILLOW_LIMIT:,} (Pillow's limit)."
            )


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """How an image becomes the model's input.

    `squash` resizes to `image_size` whatever the aspect ratio (SigLIP). `crop` resizes the shorter side to
    `image_size / crop_fraction` and cuts the centre out (timm's evaluation transform). `mean` and `std` are per
    channel, for pixel values in 0..1.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    image_size: tuple[int, int]
    resize: Literal["squash", "crop"] = "squash"
    crop_fraction: float = 1.0
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    def __post_init__(self) -> None:
        if min(self.image_size) < 1:
            raise ConfigError(f"image_size is {self.image_size}, both sides must be at least 1.")
        if not 0 < self.crop_fraction <= 1:
            raise ConfigError(f"crop_fraction is {self.crop_fraction}, it must lie in 0..1.")
        if self.resize == "squash" and self.crop_fraction != 1.0:
            raise ConfigError("crop_fraction means nothing to the resize rule 'squash'.")
        if self.resize == "crop" and self.image_size[0] != self.image_size[1]:
            raise ConfigError(f"the resize rule 'crop' needs a square image_size, not {self.image_size}.")
        if min(self.std) <= 0:
            raise ConfigError(f"std is {self.std}, every channel must be above 0.")

    def __call__(self, source: ImageSource, limits: DecodeLimits | None = None) -> NDArray[np.uint8]:
        """One image to uint8 [Y, X, 3] of `image_size`. Raises `UnsupportedImage` or `InvalidImage`."""
        return self.resized(decode(source, limits or DecodeLimits()))

    def resized(self, image: Image.Image) -> NDArray[np.uint8]:
        """Resize and crop a decoded RGB image."""
        size_yx = self.image_size
        if self.resize == "crop":
            short = math.floor(size_yx[0] / self.crop_fraction)
            size_yx = _shorter_side_to(short, image.height, image.width)
        if (image.height, image.width) != size_yx:
            image = image.resize((size_yx[1], size_yx[0]), _FILTERS[self.interpolation])
        if size_yx != self.image_size:
            top = round((size_yx[0] - self.image_size[0]) / 2)
            left = round((size_yx[1] - self.image_size[1]) / 2)
            image = image.crop((left, top, left + self.image_size[1], top + self.image_size[0]))
        return np.asarray(image)


def decode(source: ImageSource, limits: DecodeLimits) -> Image.Image:
    """Decode any image source to an upright RGB image.

    Raises `UnsupportedImage` when the bytes are none of `FORMATS`, `InvalidImage` when they are but cannot be decoded
    or exceed the limits. Transparency is dropped, as the peers' `convert("RGB")` does.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source, limits)
    if isinstance(source, Image.Image):
        _check_header(source, limits)
        return _to_rgb(source.copy())
    if isinstance(source, bytes):
        return _from_bytes(source, limits)
    try:
        content = Path(source).read_bytes()
    except OSError as error:
        raise InvalidImage(f"{source} cannot be read: {error.strerror}.") from error
    return _from_bytes(content, limits)


def sniff(content: bytes) -> str | None:
    """The image format that the first bytes announce, or None."""
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "WEBP"
    return next((name for signature, name in _SIGNATURES if content.startswith(signature)), None)


def _from_bytes(content: bytes, limits: DecodeLimits) -> Image.Image:
    if not content:
        raise InvalidImage("the image is empty (0 bytes).")
    image_format = sniff(content)
    if image_format is None:
        raise UnsupportedImage(f"the bytes are no image of a format we take ({', '.join(FORMATS)}).")
    # A decoder fed hostile bytes may raise nearly anything, and its text may leak addresses: it is never passed on.
    try:
        image = Image.open(BytesIO(content), formats=[image_format])
    except Image.DecompressionBombError as error:
        raise InvalidImage(f"the {image_format} header asks for more than {limits.max_pixels:,} pixels.") from error
    except Exception as error:
        raise InvalidImage(f"the {image_format} header cannot be read.") from error
    _check_header(image, limits)
    try:
        image.load()
        return _to_rgb(image)
    except Exception as error:
        raise InvalidImage(f"the {image_format} data is truncated or corrupt.") from error


def _check_header(image: Image.Image, limits: DecodeLimits) -> None:
    if image.width * image.height > limits.max_pixels:
        raise InvalidImage(
            f"the image is {image.width} x {image.height}, over the limit of {limits.max_pixels:,} pixels."
        )
    if min(image.size) < 1:
        raise InvalidImage("the image has no pixels.")
    if getattr(image, "is_animated", False):
        raise InvalidImage("the image has more than one frame; send a single frame.")


def _to_rgb(image: Image.Image) -> Image.Image:
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except Exception:  # a broken EXIF block says nothing about the pixels, which are fine
        image.getexif().clear()
    if image.mode.startswith("I"):
        # 16-bit grey: Pillow's own conversion clips to 255 instead of scaling.
        values = np.asarray(image)
        image = Image.fromarray((values >> 8).clip(0, 255).astype(np.uint8))
    return image.convert("RGB")


def _from_array(array: NDArray[np.uint8], limits: DecodeLimits) -> Image.Image:
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] != 3):
        raise InvalidImage(
            f"an image array must be uint8 [Y, X, 3] or [Y, X], not {array.dtype} with shape {list(array.shape)}."
        )
    if 0 in array.shape:
        raise InvalidImage("the image has no pixels.")
    image = Image.fromarray(array)
    _check_header(image, limits)
    return image.convert("RGB")


def _shorter_side_to(short: int, height: int, width: int) -> tuple[int, int]:
    # The longer side is cut, not rounded: torchvision's rule, which timm's transform inherits.
    if height <= width:
        return short, int(short * width / height)
    return int(short * height / width), short
