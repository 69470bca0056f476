"""Any image source to an upright RGB image, under limits: a path, bytes, a PIL image or an array."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import ClassVar, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import ConfigDict

from sovit.errors import ConfigError, InvalidImage, UnsupportedImage
from sovit.header import read_header, sniff
from sovit.jpeg import decode_jpeg, read_jpeg_header, reduced_size
from sovit.jsonio import STRICT
from sovit.png import check_png

ImageSource = str | Path | bytes | Image.Image | NDArray[np.uint8]
SizeOf = Callable[[int, int], tuple[int, int]]  # height and width of an image to those it will be resized to

FORMATS: Final = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
SUFFIXES: Final = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")  # of files to look for in a folder
MAX_SIDE: Final = 65_535  # JPEG's own
_PILLOW_LIMIT: Final = 89_478_485
_BMP_RUN_LENGTHS: Final = (1, 2)  # compressions that Pillow decodes in Python, one run at a time
_ORIENTATION: Final = 0x0112
_UPRIGHT: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_CMYK: Final = 4
_LYING: Final = frozenset({5, 6, 7, 8})  # orientations that exchange height and width


@dataclass(frozen=True, kw_only=True)
class DecodeOptions:
    """What a decoder may be asked to do. `max_pixels` is checked against the header, before any pixel is decoded.

    With `reduced_scale` a JPEG is decoded at 1/2, 1/4 or 1/8 of its size where that is still at least twice the size
    it will be resized to: large photographs cost a third, and embeddings change a little.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    max_pixels: int = 50_000_000
    reduced_scale: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.max_pixels <= _PILLOW_LIMIT:
            raise ConfigError(
                f"max_pixels is {self.max_pixels:,}, it must lie in 1..{_PILLOW_LIMIT:,} (Pillow's limit)."
            )


def decode(source: ImageSource, options: DecodeOptions, size_of: SizeOf | None = None) -> Image.Image:
    """Decode any image source to an upright RGB image.

    Raises `UnsupportedImage` when the bytes are none of `FORMATS`, `InvalidImage` when they are but cannot be decoded
    or exceed the limits. Transparency is dropped, as the peers' `convert("RGB")` does. `size_of` says what size the
    image will be resized to, for `options.reduced_scale`.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source, options)
    if isinstance(source, Image.Image):
        _check_header(source, options)
        return _to_rgb(source.copy(), _orientation(source))
    return _from_bytes(read_source(source), options, size_of)


def read_source(source: str | Path | bytes) -> bytes:
    """The bytes of an image file. Raises `InvalidImage` where there is none to read."""
    if isinstance(source, bytes):
        return source
    try:
        return Path(source).read_bytes()
    except OSError as error:
        raise InvalidImage(f"{source} cannot be read: {error.strerror}.") from error


def check_size(width: int, height: int, options: DecodeOptions) -> None:
    """Raises `InvalidImage` for an image whose header asks for too many pixels or for none."""
    if width * height > options.max_pixels:
        raise InvalidImage(f"the image is {width} x {height}, over the limit of {options.max_pixels:,} pixels.")
    if max(width, height) > MAX_SIDE:  # resizing takes memory by the longer side
        raise InvalidImage(f"the image is {width} x {height}, over the limit of {MAX_SIDE:,} pixels for a side.")
    if min(width, height) < 1:
        raise InvalidImage("the image has no pixels.")


def _from_bytes(content: bytes, options: DecodeOptions, size_of: SizeOf | None) -> Image.Image:
    if not content:
        raise InvalidImage("the image is empty (0 bytes).")
    image_format = sniff(content)
    if image_format is None:
        raise UnsupportedImage(f"the bytes are no image of a format we take ({', '.join(FORMATS)}).")
    if image_format == "JPEG":
        return _from_jpeg(content, options, size_of)
    announced = read_header(content)
    if announced is None:
        raise InvalidImage(f"the {image_format} header cannot be read.")
    check_size(announced.width, announced.height, options)
    if image_format == "PNG":
        check_png(content, options.max_pixels)
    if image_format == "BMP" and int.from_bytes(content[30:34], "little") in _BMP_RUN_LENGTHS:
        raise InvalidImage("the BMP is run-length coded, which is not decoded here.")
    # A decoder fed hostile bytes may raise nearly anything, and its text may leak addresses: it is never passed on.
    try:
        image = Image.open(BytesIO(content), formats=[image_format])
    except Exception as error:
        raise InvalidImage(f"the {image_format} header cannot be read.") from error
    _check_header(image, options)
    if image.width * image.height > announced.width * announced.height:
        raise InvalidImage(f"the {image_format} has more pixels than its header says.")
    try:
        image.load()
        return _to_rgb(image, _orientation(image))
    except Exception as error:
        raise InvalidImage(f"the {image_format} data is truncated or corrupt.") from error


def _from_jpeg(content: bytes, options: DecodeOptions, size_of: SizeOf | None) -> Image.Image:
    """A JPEG without Pillow's reading of it, which takes long over many small segments.

    Phone cameras store a depth map or a second view behind the photograph (MPO): only the photograph is decoded.
    """
    header = read_jpeg_header(content)
    check_size(header.width, header.height, options)
    orientation = header.orientation
    least_yx = None
    if options.reduced_scale and size_of is not None:
        lying = orientation in _LYING
        height, width = size_of(*((header.width, header.height) if lying else (header.height, header.width)))
        least_yx = (2 * width, 2 * height) if lying else (2 * height, 2 * width)
        least_yx = reduced_size(header.height, header.width, least_yx)
    pixels = decode_jpeg(content, header, least_yx)
    try:
        if header.components == _CMYK:
            # What the four channels mean is Pillow's to know.
            image: Image.Image = Image.open(BytesIO(content), formats=["JPEG"])
            image.load()
        else:
            image = Image.fromarray(pixels[:, :, 0] if header.components == 1 else pixels)
        return _to_rgb(image, orientation)
    except Exception as error:
        raise InvalidImage("the JPEG data is truncated or corrupt.") from error


def _check_header(image: Image.Image, options: DecodeOptions) -> None:
    check_size(image.width, image.height, options)
    if getattr(image, "is_animated", False) and image.format != "MPO":
        raise InvalidImage("the image has more than one frame; send a single frame.")


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # a broken EXIF block says nothing about the pixels, which are fine
        return 1


def _to_rgb(image: Image.Image, orientation: int) -> Image.Image:
    if orientation in _UPRIGHT:
        image = image.transpose(_UPRIGHT[orientation])
    if image.mode.startswith("I"):
        # 16-bit grey: Pillow's own conversion clips to 255 instead of scaling.
        values = np.asarray(image)
        image = Image.fromarray((values >> 8).clip(0, 255).astype(np.uint8))
    return image if image.mode == "RGB" else image.convert("RGB")  # which would copy


def _from_array(array: NDArray[np.uint8], options: DecodeOptions) -> Image.Image:
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] != 3):
        raise InvalidImage(
            f"an image array must be uint8 [Y, X, 3] or [Y, X], not {array.dtype} with shape {list(array.shape)}."
        )
    if 0 in array.shape:
        raise InvalidImage("the image has no pixels.")
    image = Image.fromarray(array)
    _check_header(image, options)
    return image.convert("RGB")
