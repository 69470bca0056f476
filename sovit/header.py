"""What an image's header says of the pixels behind it, read without a decoder, and what decoding them will take.

A header is believed: `decode` refuses an image whose decoder finds more pixels than were read here.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from sovit.errors import InvalidImage
from sovit.jpeg import read_jpeg_header

# Formats are told by their first bytes, never by a file name or a content type.
_SIGNATURES: Final = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"BM", "BMP"),
)
# Bytes for a pixel at the peak of decoding, turning upright and converting to RGB, as measured: the decoder's own, and
# Pillow's four for each copy.
_BYTES_PER_PIXEL: Final = {"JPEG": 12, "PNG": 12, "WEBP": 20, "GIF": 12, "BMP": 12}
_BYTES_PER_CMYK_PIXEL: Final = 16
_USUAL_SCANS: Final = 10  # of a progressive JPEG; each costs a pass over all pixels
_MAX_GIF_BLOCKS: Final = 1_000_000  # before the first frame, those within extensions counted
_PNG_TEXT_BYTES: Final = 1 << 20  # that Pillow inflates of each compressed text
_MAX_PNG_TEXTS: Final = 64
_BMP_CORE_HEADER: Final = 12
_CMYK: Final = 4


class ImageHeader(NamedTuple):
    """Format and size of an image.

    `scans` are passes over its pixels, more than one in a progressive JPEG; `texts` compressed texts beside them.
    """

    format: str
    width: int
    height: int
    scans: int = 1
    components: int = 3
    texts: int = 0

    @property
    def decoded_bytes(self) -> int:
        """What decoding takes: memory at its peak, times the passes beyond those that are usual."""
        passes = max(1, -(-self.scans // _USUAL_SCANS))
        is_cmyk = self.components == _CMYK
        per_pixel = _BYTES_PER_CMYK_PIXEL if is_cmyk else _BYTES_PER_PIXEL[self.format]
        return self.width * self.height * per_pixel * passes + self.texts * _PNG_TEXT_BYTES


def sniff(content: bytes) -> str | None:
    """The image format that the first bytes announce, or None."""
    for signature, name in _SIGNATURES:
        if content.startswith(signature):
            return name
    return "WEBP" if content[:4] == b"RIFF" and content[8:12] == b"WEBP" else None


def read_header(content: bytes) -> ImageHeader | None:
    """The header of an image file; None for bytes of no format we take, and for a header that cannot be read."""
    image_format = sniff(content)
    try:
        if image_format == "JPEG":
            jpeg = read_jpeg_header(content)
            return ImageHeader("JPEG", jpeg.width, jpeg.height, jpeg.scans, jpeg.components)
        if image_format == "PNG":
            width, height = struct.unpack_from(">II", content, 16)
            texts = min(_MAX_PNG_TEXTS, content.count(b"zTXt") + content.count(b"iTXt"))
            return ImageHeader("PNG", width, height, texts=texts)
        if image_format == "WEBP":
            return ImageHeader("WEBP", *_webp_size(content))
        if image_format == "GIF":
            return ImageHeader("GIF", *_gif_size(content))
        if image_format == "BMP":
            return ImageHeader("BMP", *_bmp_size(content))
    except (InvalidImage, struct.error, IndexError, ValueError):  # the last three: it ends within its header
        pass
    return None


def _webp_size(content: bytes) -> tuple[int, int]:
    chunk = content[12:16]
    if chunk == b"VP8X":
        return 1 + int.from_bytes(content[24:27], "little"), 1 + int.from_bytes(content[27:30], "little")
    if chunk == b"VP8L":
        (bits,) = struct.unpack_from("<I", content, 21)
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if chunk == b"VP8 ":
        width, height = struct.unpack_from("<HH", content, 26)
        return width & 0x3FFF, height & 0x3FFF
    raise ValueError("no WebP chunk that begins an image")


def _gif_size(content: bytes) -> tuple[int, int]:
    """The size of the screen, or more where its first frame reaches beyond it, as Pillow enlarges it."""
    width, height = struct.unpack_from("<HH", content, 6)
    flags = content[10]
    at = 13 + (3 << 1 + (flags & 7) if flags & 0x80 else 0)
    blocks = 0
    while blocks < _MAX_GIF_BLOCKS:
        kind = content[at]
        if kind == 0x2C:
            left, top, frame_width, frame_height = struct.unpack_from("<HHHH", content, at + 1)
            return max(width, left + frame_width), max(height, top + frame_height)
        if kind == 0x3B:
            break
        at += 1
        blocks += 1
        if kind == 0x21:
            at += 1
            while (size := content[at]) and blocks < _MAX_GIF_BLOCKS:
                at += 1 + size
                blocks += 1
            at += 1
    raise ValueError("no frame")


def _bmp_size(content: bytes) -> tuple[int, int]:
    (header_size,) = struct.unpack_from("<I", content, 14)
    width, height = struct.unpack_from("<HH" if header_size == _BMP_CORE_HEADER else "<ii", content, 18)
    return abs(width), abs(height)
