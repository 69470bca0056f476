"""PNG files: every chunk is whole, has the checksum it announces, and there are as many pixels as the header says.

Pillow leaves pixels black for which there are no data, and does not look at every checksum.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import Final, NamedTuple

from sovit.errors import InvalidImage

MAX_CHUNKS: Final = 100_000
_FIRST: Final = 8  # bytes of the signature
_FRAME: Final = 12  # of a chunk besides its data: length, type, checksum
_CHANNELS: Final = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
_DEPTHS: Final = {0: {1, 2, 4, 8, 16}, 2: {8, 16}, 3: {1, 2, 4, 8}, 4: {8, 16}, 6: {8, 16}}
_PALETTE: Final = 3
_MOST_PALETTE: Final = 3 * 256
# Interlacing: first column and row, and distance of columns and rows, of each of its seven passes.
_PASSES: Final = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_PIECE: Final = 1 << 16


class PngHeader(NamedTuple):
    """What the first chunk says."""

    width: int
    height: int
    depth: int
    colour: int
    compression: int
    filtering: int
    interlace: int


def check_png(content: bytes, max_pixels: int) -> None:
    """Raise `InvalidImage` for a file that does not hold what it announces, and for more than `MAX_CHUNKS` chunks.

    Pixels are inflated to be counted, in small pieces, unless there are more than `max_pixels`: those get their error
    elsewhere. What follows the last chunk, or the last pixel, is not looked at.
    """
    header: PngHeader | None = None
    palette = b""
    inflating = zlib.decompressobj()
    missing = 0
    for kind, data in _chunks(content):
        if header is None:
            if kind != b"IHDR" or len(data) != struct.calcsize(">IIBBBBB"):
                raise InvalidImage("the PNG header cannot be read.")
            header = PngHeader(*struct.unpack(">IIBBBBB", data))
            _check_header(header)
            missing = _size(header) if header.width * header.height <= max_pixels else 0
        elif kind == b"IHDR":
            raise InvalidImage("the PNG has two headers.")
        elif kind == b"PLTE":
            palette = bytes(data)
        elif kind == b"IDAT":
            if header.colour == _PALETTE and not (0 < len(palette) <= _MOST_PALETTE and len(palette) % 3 == 0):
                raise InvalidImage("the PNG's palette is missing or of a wrong size.")
            missing = _inflate(inflating, data, missing)
    if missing > 0:
        raise InvalidImage("the PNG holds fewer pixels than its header says.")


def _chunks(content: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """Type and data of each chunk up to the last, checked."""
    view = memoryview(content)
    at = _FIRST
    for _ in range(MAX_CHUNKS):
        end = at + _FRAME + int.from_bytes(view[at : at + 4], "big")
        if len(view) < end:
            raise InvalidImage("the PNG data is truncated.")
        if zlib.crc32(view[at + 4 : end - 4]) != int.from_bytes(view[end - 4 : end], "big"):
            raise InvalidImage("a chunk of the PNG does not have its checksum.")
        kind = bytes(view[at + 4 : at + 8])
        yield kind, view[at + 8 : end - 4]
        if kind == b"IEND":
            return
        at = end
    raise InvalidImage(f"the PNG has more than {MAX_CHUNKS:,} chunks.")


def _check_header(header: PngHeader) -> None:
    known = header.depth in _DEPTHS.get(header.colour, ()) and header.interlace in (0, 1)
    if not known or header.compression or header.filtering:
        raise InvalidImage("the PNG header names a coding that PNG does not have.")
    if not header.width or not header.height:
        raise InvalidImage("the image has no pixels.")


def _size(header: PngHeader) -> int:
    """Bytes that the pixels inflate to: each row with a byte before it that names its filter."""
    passes = _PASSES if header.interlace else ((0, 0, 1, 1),)
    bits = header.depth * _CHANNELS[header.colour]
    total = 0
    for left, top, right, down in passes:
        columns, rows = -(-(header.width - left) // right), -(-(header.height - top) // down)
        if columns > 0 and rows > 0:
            total += rows * (1 + -(-columns * bits // 8))
    return total


def _inflate(inflating: zlib._Decompress, data: memoryview, missing: int) -> int:
    """Inflate data until nothing is missing: what then still is."""
    try:
        for start in range(0, len(data), _PIECE):
            piece: bytes | memoryview = data[start : start + _PIECE]
            while missing > 0 and piece and not inflating.eof:
                missing -= len(inflating.decompress(piece, _PIECE))
                piece = inflating.unconsumed_tail
            if missing <= 0:
                break
    except zlib.error as error:
        raise InvalidImage("the PNG data is truncated or corrupt.") from error
    return missing
