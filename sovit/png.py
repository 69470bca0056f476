"""PNG files: every chunk is whole and has the checksum it announces, before a decoder sees it."""

from __future__ import annotations

import zlib
from typing import Final

from sovit.errors import InvalidImage

MAX_CHUNKS: Final = 100_000
_FIRST: Final = 8  # bytes of the signature
_FRAME: Final = 12  # of a chunk besides its data: length, type, checksum


def check_png(content: bytes) -> None:
    """Raise `InvalidImage` for a chunk that is truncated or has a wrong checksum, and for too many of them.

    What follows the last chunk is not looked at.
    """
    at, chunks = _FIRST, 0
    view = memoryview(content)
    while chunks < MAX_CHUNKS:
        length = int.from_bytes(view[at : at + 4], "big")
        end = at + _FRAME + length
        if len(view) < end:
            raise InvalidImage("the PNG data is truncated.")
        kind = bytes(view[at + 4 : at + 8])
        if zlib.crc32(view[at + 4 : end - 4]) != int.from_bytes(view[end - 4 : end], "big"):
            raise InvalidImage("a chunk of the PNG does not have its checksum.")
        if kind == b"IEND":
            return
        at, chunks = end, chunks + 1
    raise InvalidImage(f"the PNG has more than {MAX_CHUNKS:,} chunks.")
