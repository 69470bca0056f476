"""One hostile request, and the seeded pictures that the corpus is made of."""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Case:
    """A request body and the exact status it must be answered with.

    An empty `content_type` sends no such header. `route` matters only where an option belongs to one endpoint. `pixels`
    is the RGB picture [Y, X, 3] that an accepted image must decode to.
    """

    kind: str
    name: str
    status: int
    body: bytes
    content_type: str = "image/jpeg"
    query: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    chunked: bool = False
    pixels: Pixels | None = None
    route: str = "/classify"


def noise(*shape: int, seed: int = 0) -> Pixels:
    """Random bytes, the same ones for the same seed."""
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def picture(height: int, width: int, seed: int = 0) -> Pixels:
    """A colour gradient under noise [Y, X, 3]: codecs find in it what they find in a photograph."""
    y, x = np.mgrid[0:height, 0:width]
    gradient = np.stack([x * 200 / max(width, 2), y * 200 / max(height, 2), (x + y) * 200 / (height + width)], axis=-1)
    mixed: Pixels = (gradient + noise(height, width, 3, seed=seed) * 0.2).astype(np.uint8)
    return mixed


def encode(source: Pixels | Image.Image, image_format: str, **options: Any) -> bytes:
    """Encode with Pillow."""
    image = source if isinstance(source, Image.Image) else Image.fromarray(source)
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def reference(content: bytes) -> Pixels:
    """The upright RGB picture that plain Pillow makes of an image file."""
    image = Image.open(io.BytesIO(content))
    image.load()
    return np.array(ImageOps.exif_transpose(image).convert("RGB"))


def upright(stored: Pixels, orientation: int) -> Pixels:
    """What a viewer shows for a stored picture with an EXIF orientation (1 to 8)."""
    turned: dict[int, Pixels] = {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.swapaxes(0, 1),
        6: np.rot90(stored, -1),
        7: np.rot90(stored, 2).swapaxes(0, 1),
        8: np.rot90(stored),
    }
    return np.ascontiguousarray(turned[orientation])


def exif(orientation: int, *, big_endian: bool = False) -> bytes:
    """A TIFF block with one entry, the orientation."""
    order: Any = "big" if big_endian else "little"

    def number(value: int, size: int) -> bytes:
        return value.to_bytes(size, order)

    entry = number(0x0112, 2) + number(3, 2) + number(1, 4) + number(orientation, 2) + bytes(2)
    start = (b"MM" if big_endian else b"II") + number(42, 2) + number(8, 4)
    return start + number(1, 2) + entry + bytes(4)


def exif_bomb(tags: int, size: int) -> bytes:
    """A TIFF block whose tags all claim the same `size` bytes, so that a careless reader copies them for each."""
    entries = b"".join(struct.pack("<HHII", 0x9000 + number, 1, size, 0) for number in range(tags))
    return (b"II*\0\x08\0\0\0" + struct.pack("<H", tags) + entries + bytes(4)).ljust(size, b"\0")
