"""JPEG files: read the header, refuse what no decoder should be fed, then decode exactly or not at all.

libjpeg goes on where the data are corrupt and makes up the pixels. Here that is an error: `InvalidImage`, never a wrong
answer. Whole files give the pixels that Pillow gives.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from io import BytesIO
from typing import Final, Literal, NamedTuple

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from sovit.errors import InvalidImage

MAX_SCANS: Final = 100  # a progressive JPEG has about ten; each costs a pass over all pixels
MAX_SEGMENTS: Final = 10_000  # before the first scan; a large profile or description takes some hundred
REDUCTIONS: Final = (8, 4, 2)  # that libjpeg computes for less than a full decode

_SCAN: Final = 0xDA
_END: Final = 0xD9
_EXIF: Final = 0xE1
_EXIF_NAME: Final = b"Exif\x00\x00"
_ORIENTATION: Final = 0x0112
_STANDALONE: Final = frozenset({0x01, *range(0xD0, 0xD8)})  # markers without a length
_FRAMES: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE: Final = 0xC2
_DECODED_FRAMES: Final = frozenset({0xC0, 0xC1, _PROGRESSIVE})  # baseline, extended and progressive, all Huffman coded
_MARKER: Final = re.compile(rb"\xff{1,1000}([^\x00\xff])")  # the standard allows any number of fill bytes
_MARKER_IN_DATA: Final = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # what ends a scan's data
# Complaints of libjpeg's about headers, which leave the pixels what they are: Pillow is less strict.
_HARMLESS: Final = ("unknown JFIF revision", "Unknown Adobe color", "Invalid SOS", "ICC")
_COLORSPACES: Final[dict[int, Literal["GRAY", "RGB", "CMYK"]]] = {1: "GRAY", 3: "RGB", 4: "CMYK"}


class JpegHeader(NamedTuple):
    """What a JPEG says of itself.

    `components` are 1, 3 or 4; `scans` are those that a decoder reads; `exif` are the EXIF segments.
    """

    height: int
    width: int
    components: int
    scans: int = 1
    exif: tuple[bytes, ...] = ()

    @property
    def orientation(self) -> int:
        """EXIF's, 1 to 8."""
        return next((found for found in map(_orientation, self.exif) if found != 1), 1)


class _Segment(NamedTuple):
    marker: int
    content: bytes


def read_jpeg_header(content: bytes) -> JpegHeader:
    """The header of a JPEG.

    Raises `InvalidImage` where there is none, for a coding that is not decoded here, and for more than `MAX_SCANS`
    scans.
    """
    frame: _Segment | None = None
    exif: list[bytes] = []
    scans = 0
    for number, (marker, segment) in enumerate(_segments(content)):
        if number > MAX_SEGMENTS:
            raise InvalidImage(f"the JPEG has more than {MAX_SEGMENTS:,} segments.")
        if marker in _FRAMES and frame is None:
            if marker not in _DECODED_FRAMES:
                raise InvalidImage("the JPEG is arithmetic coded, lossless or hierarchical, which is not decoded here.")
            frame = _Segment(marker, segment)
        elif marker == _EXIF and segment.startswith(_EXIF_NAME):
            exif.append(segment)
        elif marker == _SCAN:
            scans += 1
            if scans > MAX_SCANS:
                raise InvalidImage(f"the JPEG has more than {MAX_SCANS} scans.")
            if frame is None or _is_one_scan(frame, segment):
                break
    if frame is None or len(frame.content) < 6 or frame.content[5] not in _COLORSPACES:
        raise InvalidImage("the JPEG header cannot be read.")
    _, height, width, components = struct.unpack_from(">BHHB", frame.content)
    return JpegHeader(height, width, components, scans, tuple(exif))


def decode_jpeg(content: bytes, header: JpegHeader, least_yx: tuple[int, int] | None) -> NDArray[np.uint8]:
    """Pixels [Y, X, C] of a JPEG, not turned upright. Raises `InvalidImage` where the data are truncated or corrupt.

    `least_yx` is a size that `reduced_size` gave for it.
    """
    height, width = least_yx or (0, 0)
    colorspace = _COLORSPACES[header.components]
    try:
        try:
            return simplejpeg.decode_jpeg(  # type: ignore[no-any-return]
                content, colorspace, min_height=height, min_width=width
            )
        except ValueError as error:
            if not any(text in str(error) for text in _HARMLESS):
                raise
        image = Image.open(BytesIO(content), formats=["JPEG"])
        image.load()
        return np.atleast_3d(np.asarray(image))
    except Exception as error:
        raise InvalidImage("the JPEG data is truncated or corrupt.") from error


def reduced_size(height: int, width: int, least_yx: tuple[int, int]) -> tuple[int, int] | None:
    """The smallest size a JPEG can be decoded at that is no smaller than `least_yx`; None for its full size."""
    for factor in REDUCTIONS:
        size = -(-height // factor), -(-width // factor)
        if size[0] >= least_yx[0] and size[1] >= least_yx[1]:
            return size
    return None


def _is_one_scan(frame: _Segment, first_scan: bytes) -> bool:
    """Not progressive, and all components in the first scan: the decoder reads no second one."""
    return frame.marker != _PROGRESSIVE and first_scan[:1] == frame.content[5:6]


def _orientation(segment: bytes) -> int:
    exif = Image.Exif()
    try:
        exif.load(segment)
        return int(exif.get(_ORIENTATION, 1))
    except Exception:  # a broken EXIF block says nothing about the pixels, which are fine
        return 1


def _segments(content: bytes) -> Iterator[_Segment]:
    """The segments of the first image in the file, in order, up to where the file makes no sense."""
    at = 2
    while found := _MARKER.match(content, at):
        marker, at = found.group(1)[0], found.end()
        if marker == _END:
            return
        length = 0 if marker in _STANDALONE else int.from_bytes(content[at : at + 2], "big")
        yield _Segment(marker, content[at + 2 : at + length])
        at += length
        if marker == _SCAN:
            after = _MARKER_IN_DATA.search(content, at)
            if after is None:
                return
            at = after.start()
