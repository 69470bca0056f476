"""Any image source to an upright RGB image, under limits: a path, bytes, a PIL image or an array."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import ClassVar, Final

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
    # Phone cameras store a depth map or a second view behind a JPEG (MPO): the first frame is the photograph.
    if getattr(image, "is_animated", False) and image.format != "MPO":
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
