"""JPEG files: refuse by their markers what no decoder should be fed, then decode exactly or not at all.

libjpeg goes on where the data are corrupt and makes up the pixels. Here that is an error: `InvalidImage`, never a wrong
answer. Whole files give the pixels that Pillow gives.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, Literal

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from sovit.errors import InvalidImage

MAX_SCANS: Final = 100  # a progressive JPEG has about ten; each costs a pass over all pixels
REDUCTIONS: Final = (8, 4, 2)  # that libjpeg computes for less than a full decode

_SCAN: Final = b"\xff\xda"
_END: Final = 0xD9
_STANDALONE: Final = frozenset({0x01, *range(0xD0, 0xD8)})  # markers without a length
_FRAMES: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_DECODED_FRAMES: Final = frozenset({0xC0, 0xC1, 0xC2})  # baseline, extended and progressive, all Huffman coded
_MARKER_IN_DATA: Final = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # what ends a scan's data
# Complaints of libjpeg's about headers, which leave the pixels what they are.
_HARMLESS: Final = ("unknown JFIF revision", "Unknown Adobe color", "Invalid SOS", "Inconsistent progression")


def check_jpeg(content: bytes) -> None:
    """Raise `InvalidImage` for a coding that is not decoded here, and for more than `MAX_SCANS` scans."""
    # Counting bytes is fast and finds every scan; only a file with too many of these is taken apart to its end.
    to_the_end = content.count(_SCAN) > MAX_SCANS
    scans = 0
    for marker in _markers(content):
        if marker in _FRAMES and marker not in _DECODED_FRAMES:
            raise InvalidImage("the JPEG is arithmetic coded, lossless or hierarchical, which is not decoded here.")
        if marker == _SCAN[1]:
            scans += 1
            if not to_the_end:
                return
            if scans > MAX_SCANS:
                raise InvalidImage(f"the JPEG has more than {MAX_SCANS} scans.")


def decode_jpeg(
    content: bytes, colorspace: Literal["RGB", "GRAY", "CMYK"], least_yx: tuple[int, int] | None
) -> NDArray[np.uint8]:
    """Pixels [Y, X, C] of a JPEG, not turned upright. Raises `InvalidImage` where the data are truncated or corrupt.

    `least_yx` is a size that the file's height and width may be reduced to by one of `REDUCTIONS`.
    """
    height, width = least_yx or (0, 0)
    try:
        try:
            pixels = simplejpeg.decode_jpeg(content, colorspace, min_height=height, min_width=width)
        except ValueError as error:
            if not any(text in str(error) for text in _HARMLESS):
                raise
            pixels = simplejpeg.decode_jpeg(content, colorspace, min_height=height, min_width=width, strict=False)
    except Exception as error:
        raise InvalidImage("the JPEG data is truncated or corrupt.") from error
    return pixels  # type: ignore[no-any-return]


def reduced_size(height: int, width: int, least_yx: tuple[int, int]) -> tuple[int, int] | None:
    """The smallest size a JPEG can be decoded at that is no smaller than `least_yx`; None for its full size."""
    for factor in REDUCTIONS:
        size = -(-height // factor), -(-width // factor)
        if size[0] >= least_yx[0] and size[1] >= least_yx[1]:
            return size
    return None


def _markers(content: bytes) -> Iterator[int]:
    """The markers of the first image in the file, in order, up to where the file makes no sense."""
    at = 2
    while at + 4 <= len(content) and content[at] == 0xFF:
        marker = content[at + 1]
        if marker == 0xFF:  # fill bytes
            at += 1
            continue
        if marker == _END:
            return
        yield marker
        at += 2
        if marker not in _STANDALONE:
            at += int.from_bytes(content[at : at + 2], "big")
        if marker == _SCAN[1]:
            found = _MARKER_IN_DATA.search(content, at)
            if found is None:
                return
            at = found.start()
