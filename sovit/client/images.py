"""What is sent of an image: files and bytes as they are, pixels as PNG, which loses nothing."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from sovit.client.failures import Failure
from sovit.decode import DecodeOptions, ImageSource, decode
from sovit.errors import ConfigError, InvalidImage, SoViTError

Content = bytes | Failure  # what is sent of an image, or why it is not

_LEVEL: Final = 1  # of PNG's compression: the others take two to five times as long for a tenth less
_PIXELS: Final = DecodeOptions(max_pixels=89_478_485)  # Pillow's own limit: the service has one of its own
_ONE_IMAGE: Final = (str, bytes, bytearray, memoryview, os.PathLike, Image.Image, io.IOBase)
_BATCH_DIMENSIONS: Final = 4


def check_images(images: object) -> None:
    """Raise `ConfigError` for what is no collection of images, although Python would iterate over it."""
    one = isinstance(images, _ONE_IMAGE)
    if isinstance(images, np.ndarray) and images.dtype.kind not in "OSU":  # [Y, X, 3] is a list of rows to Python
        one = images.ndim < _BATCH_DIMENSIONS
    if one or not (hasattr(images, "__iter__") or hasattr(images, "__getitem__")):
        raise ConfigError("pass a list of images, even for one: client.classify([image]).")


def content_of(image: ImageSource) -> Content:
    """The bytes to send of an image: a path, bytes, a PIL image or a uint8 array [Y, X, 3] or [Y, X]."""
    try:
        content = image if isinstance(image, bytes) else _read(image)
        if not content:  # for which the service would refuse the whole request
            raise InvalidImage("the image is empty (0 bytes).")
        return content
    except SoViTError as error:
        return Failure(kind=type(error), detail=str(error).rstrip("."))


def _read(image: ImageSource) -> bytes:
    if isinstance(image, (str, os.PathLike)):
        try:
            return Path(image).read_bytes()
        except OSError as error:
            raise InvalidImage(f"{image} cannot be read: {error.strerror}.") from error
        except ValueError as error:  # a zero byte in the name
            raise InvalidImage(f"{str(image)!r} cannot be read: {error}.") from error
    if isinstance(image, (np.ndarray, Image.Image)):
        return _png(image)
    raise InvalidImage(
        f"an image must be a path, bytes, a PIL image or a uint8 array [Y, X, 3] or [Y, X], not {type(image).__name__}."
    )


def _png(image: np.ndarray | Image.Image) -> bytes:
    try:
        # As a `Predictor` reads it: upright, and of the same colours whatever its mode.
        pixels = decode(image, _PIXELS)
        if image.ndim == 2 if isinstance(image, np.ndarray) else image.mode == "L":
            pixels = pixels.getchannel(0)
        buffer = io.BytesIO()
        pixels.save(buffer, "PNG", compress_level=_LEVEL)
    except SoViTError:
        raise
    except Exception as error:  # Pillow raises anything, over what it reads only now
        raise InvalidImage(f"the {type(image).__name__} cannot be read: {error}.") from error
    return buffer.getvalue()
