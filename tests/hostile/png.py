"""PNG files, written here chunk by chunk: broken in every part, and unusual but whole."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.hostile.case import Case, Pixels, encode, exif, exif_bomb, noise, picture, upright

SIGNATURE = b"\x89PNG\r\n\x1a\n"
GREY, RGB, PALETTE, GREY_ALPHA, RGBA = 0, 2, 3, 4, 6
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def chunk(kind: bytes, data: bytes = b"", *, crc: int | None = None) -> bytes:
    """A chunk with its checksum, or with a wrong one."""
    right = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", right if crc is None else crc)


def header(
    width: int, height: int, depth: int = 8, colour: int = RGB, *, method: int = 0, filters: int = 0, interlace: int = 0
) -> bytes:
    """The IHDR chunk."""
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, method, filters, interlace))


def png(*chunks: bytes) -> bytes:
    """A whole file: signature, these chunks, end."""
    return SIGNATURE + b"".join(chunks) + chunk(b"IEND")


def scanlines(values: NDArray[Any], depth: int = 8, *, interlace: bool = False, filter_type: int = 0) -> bytes:
    """Samples [Y, X] or [Y, X, C] as PNG lines, before compression."""
    passes = [values[y::dy, x::dx] for x, y, dx, dy in _ADAM7] if interlace else [values]
    return b"".join(_lines(part, depth, filter_type) for part in passes if part.size)


def _lines(values: NDArray[Any], depth: int, filter_type: int) -> bytes:
    if depth == 16:
        packed = np.ascontiguousarray(values.astype(">u2")).view(np.uint8).reshape(len(values), -1)
    else:
        bits = np.unpackbits(values.astype(np.uint8)[..., None], axis=-1)[..., 8 - depth :]
        packed = np.packbits(bits.reshape(len(values), -1), axis=1)
    return np.insert(packed, 0, filter_type, axis=1).tobytes()


def image_data(values: NDArray[Any], depth: int = 8, *, interlace: bool = False) -> bytes:
    """The IDAT chunk of some samples."""
    return chunk(b"IDAT", zlib.compress(scanlines(values, depth, interlace=interlace)))


def deflated_zeros(mebibytes: int) -> bytes:
    """A zlib stream of zeros, made from one compressed block: a kilobyte for each mebibyte."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = compressor.compress(bytes(1 << 20)) + compressor.flush(zlib.Z_FULL_FLUSH)
    adler = (mebibytes << 20) % 65_521 << 16 | 1
    return b"\x78\x9c" + block * mebibytes + b"\x03\x00" + struct.pack(">I", adler)


SOURCE = picture(40, 56)
HEADER, DATA = header(56, 40), image_data(SOURCE)
TEXT = chunk(b"tEXt", b"Comment\0hello")


def cases() -> Iterator[Case]:
    """Every PNG case."""
    yield from _checksums()
    yield from _image_data()
    yield from _image_headers()
    yield from _structure()
    yield from _inflation_bombs()
    yield from _animations()
    yield from _accepted_modes()
    yield from _accepted_shapes()
    yield from _accepted_chunks()
    yield from _orientations()


def _invalid(kind: str, name: str, body: bytes) -> Case:
    return Case(kind, f"{kind}-{name}".replace(" ", "-"), 422, body, "image/png")


def _accepted(kind: str, name: str, body: bytes, pixels: Pixels = SOURCE) -> Case:
    return Case(kind, f"{kind}-{name}".replace(" ", "-"), 200, body, "image/png", pixels=pixels)


def _checksums() -> Iterator[Case]:
    def wrong(whole: bytes) -> bytes:
        return whole[:-4] + bytes(byte ^ 0xFF for byte in whole[-4:])

    end = chunk(b"IEND")
    palette = [header(56, 40, 8, PALETTE), chunk(b"PLTE", noise(768).tobytes()), image_data(SOURCE[..., 0])]
    yield _invalid("wrong crc", "IHDR", png(wrong(HEADER), DATA))
    yield _invalid("wrong crc", "IDAT", png(HEADER, wrong(DATA)))
    yield _invalid("wrong crc", "IEND", SIGNATURE + HEADER + DATA + wrong(end))
    yield _invalid("wrong crc", "PLTE", png(palette[0], wrong(palette[1]), palette[2]))
    yield _invalid("wrong crc", "text before the data", png(HEADER, wrong(TEXT), DATA))
    yield _invalid("wrong crc", "text behind the data", png(HEADER, DATA, wrong(TEXT)))
    yield _invalid("wrong crc", "private chunk", png(HEADER, wrong(chunk(b"prVt", b"x")), DATA))
    yield _invalid("wrong crc", "of zero", png(HEADER, chunk(b"IDAT", DATA[8:-4], crc=0)))
    stream = DATA[8:-4]
    first, second = chunk(b"IDAT", stream[:500]), chunk(b"IDAT", stream[500:])
    yield _invalid("wrong crc", "first of two IDAT", png(HEADER, wrong(first), second))
    yield _invalid("wrong crc", "second of two IDAT", png(HEADER, first, wrong(second)))
    flipped = bytearray(DATA)
    flipped[len(DATA) // 2] ^= 0x10
    yield _invalid("wrong crc", "one bit of IDAT", png(HEADER, bytes(flipped)))


def _image_data() -> Iterator[Case]:
    stream = DATA[8:-4]
    lines = scanlines(SOURCE)
    for filter_type in (5, 128, 255):
        body = png(HEADER, chunk(b"IDAT", zlib.compress(scanlines(SOURCE, filter_type=filter_type))))
        yield _invalid("png data", f"filter type {filter_type}", body)
    streams = {
        "stream cut short": stream[: len(stream) // 2],
        "stream without its end": stream[:-20],
        "empty stream": b"",
        "no zlib stream": noise(2000).tobytes(),
        "zlib header only": stream[:2],
        "preset dictionary": b"\x78\xbb" + stream[2:],
        "reserved block type": stream[:2] + b"\x07" + stream[3:],
        "noise in the middle": stream[:900] + noise(300).tobytes() + stream[1200:],
        "lines missing": zlib.compress(lines[: len(lines) // 2]),
        "half a line missing": zlib.compress(lines[:-80]),
        "one line": zlib.compress(lines[:169]),
    }
    for name, content in streams.items():
        yield _invalid("png data", name, png(HEADER, chunk(b"IDAT", content)))
    yield _invalid("png data", "missing", png(HEADER))
    yield _invalid("png data", "text only", png(HEADER, TEXT))
    halves = chunk(b"IDAT", stream[:900]), chunk(b"IDAT", stream[900:])
    yield _invalid("png data", "interrupted by text", png(HEADER, halves[0], TEXT, halves[1]))
    yield _invalid("png data", "halves swapped", png(HEADER, halves[1], halves[0]))


def _image_headers() -> Iterator[Case]:
    headers = {
        "bit depth 0": header(56, 40, 0),
        "bit depth 3": header(56, 40, 3, GREY),
        "bit depth 255": header(56, 40, 255),
        "1 bit RGB": header(56, 40, 1, RGB),
        "16 bit palette": header(56, 40, 16, PALETTE),
        "colour type 1": header(56, 40, 8, 1),
        "colour type 5": header(56, 40, 8, 5),
        "colour type 255": header(56, 40, 8, 255),
        "compression method 1": header(56, 40, method=1),
        "filter method 1": header(56, 40, filters=1),
        "interlace method 2": header(56, 40, interlace=2),
        "interlaced but is not": header(56, 40, interlace=1),
        "wider than its data": header(560, 40),
        "higher than its data": header(56, 400),
        "cut short": chunk(b"IHDR", HEADER[8:20]),
        "empty": chunk(b"IHDR"),
        "missing": b"",
        "twice": HEADER * 2,
        "twice with other sides": header(5, 4) + HEADER,
        "2147483647 x 2147483647": header(2**31 - 1, 2**31 - 1),
        "4294967295 x 4294967295": header(2**32 - 1, 2**32 - 1),
        "65536 x 65536": header(65_536, 65_536),
        "50000001 x 1": header(50_000_001, 1, 1, GREY),
    }
    for name, content in headers.items():
        yield _invalid("png header", name, png(content, DATA))


def _structure() -> Iterator[Case]:
    indices = image_data(SOURCE[..., 0])
    yield _invalid("png structure", "signature only", SIGNATURE)
    yield _invalid("png structure", "end only", png())
    yield _invalid("png structure", "end missing", SIGNATURE + HEADER + DATA)
    yield _invalid("png structure", "end cut short", png(HEADER, DATA)[:-6])
    yield _invalid("png structure", "palette missing", png(header(56, 40, 8, PALETTE), indices))
    for size in (0, 100, 3 * 257):
        body = png(header(56, 40, 8, PALETTE), chunk(b"PLTE", bytes(size)), indices)
        yield _invalid("png structure", f"palette of {size} bytes", body)
    huge = struct.pack(">I", 2**32 - 1) + b"tEXt"
    yield _invalid("png structure", "chunk of 4 GB", SIGNATURE + HEADER + huge + DATA)
    yield _invalid("png structure", "IDAT of 2 GB", png(HEADER, struct.pack(">I", 2**31 - 1) + DATA[4:]))
    yield _invalid("png structure", "chunk with no letters", png(HEADER, chunk(b"\0\1\2\3"), DATA))
    yield _invalid("png structure", "150000 empty chunks", png(HEADER, chunk(b"prVt") * 150_000, DATA))
    yield _invalid("png structure", "zeros for chunks", SIGNATURE + HEADER + bytes(100_000))
    yield _invalid("png structure", "noise for chunks", SIGNATURE + HEADER + noise(5000).tobytes())


def _inflation_bombs() -> Iterator[Case]:
    # All pixels are there; what follows them is not inflated.
    black = np.zeros((40, 56, 3), np.uint8)
    for size, name in ((8, "8 MB"), (1024, "1 GB")):
        yield _accepted("inflation bomb", f"IDAT of {name}", png(HEADER, chunk(b"IDAT", deflated_zeros(size))), black)
    zeros = deflated_zeros(256)
    kinds = {
        b"iCCP": b"profile\0\0",
        b"zTXt": b"Comment\0\0",
        b"iTXt": b"Comment\0\1\0\0\0",
    }
    for kind, start in kinds.items():
        name = kind.decode()
        yield _invalid("inflation bomb", f"{name} of 256 MB", png(HEADER, chunk(kind, start + zeros), DATA))
        small = chunk(kind, start + deflated_zeros(2))
        yield _invalid("inflation bomb", f"{name} of 2 MB", png(HEADER, small, DATA))
    yield _invalid(
        "inflation bomb", "zTXt of 256 MB behind the data", png(HEADER, DATA, chunk(b"zTXt", b"Comment\0\0" + zeros))
    )
    # Each alone is under Pillow's limit for one chunk.
    text = chunk(b"zTXt", b"Comment\0\0" + deflated_zeros(1))
    yield _invalid("inflation bomb", "100 texts of 1 MB", png(HEADER, text * 100, DATA))
    yield _invalid("inflation bomb", "100 texts of 1 MB behind the data", png(HEADER, DATA, text * 100))


def _animations() -> Iterator[Case]:
    def animation(declared: int, frames: int) -> bytes:
        whole = struct.pack(">IIII", 56, 40, 0, 0)
        control = chunk(b"fcTL", struct.pack(">I", 0) + whole + struct.pack(">HHBB", 1, 10, 0, 0))
        chunks = [HEADER, chunk(b"acTL", struct.pack(">II", declared, 0)), control, DATA]
        dot = zlib.compress(b"\0\1\2\3")
        for frame in range(1, frames):
            one = struct.pack(">IIIII", 2 * frame - 1, 1, 1, 0, 0)
            chunks.append(chunk(b"fcTL", one + struct.pack(">HHBB", 1, 10, 0, 0)))
            chunks.append(chunk(b"fdAT", struct.pack(">I", 2 * frame) + dot))
        return png(*chunks)

    yield _invalid("animation", "apng 2 frames", animation(2, 2))
    yield _invalid("animation", "apng 20000 frames", animation(20_000, 20_000))
    yield _invalid("animation", "apng 100000 frames declared", animation(100_000, 1))
    yield _invalid("animation", "apng 2000000000 frames declared", animation(2_000_000_000, 2))


def _accepted_modes() -> Iterator[Case]:
    grey = SOURCE[..., 0]
    alpha = noise(40, 56, seed=2)
    wide = np.random.default_rng(3).integers(0, 65_536, (40, 56, 4), dtype=np.uint16)
    high = (wide >> 8).astype(np.uint8)
    palette = noise(256, 3, seed=4)
    files: dict[str, tuple[int, int, NDArray[Any], Pixels]] = {
        "rgb 8": (8, RGB, SOURCE, SOURCE),
        "rgb 16": (16, RGB, wide[..., :3], high[..., :3]),
        "rgba 8": (8, RGBA, np.dstack([SOURCE, alpha]), SOURCE),
        "rgba 16": (16, RGBA, wide, high[..., :3]),
        "la 8": (8, GREY_ALPHA, np.dstack([grey, alpha]), np.dstack([grey] * 3)),
        "la 16": (16, GREY_ALPHA, wide[..., :2], np.dstack([high[..., 0]] * 3)),
        "grey 16": (16, GREY, wide[..., 0], np.dstack([high[..., 0]] * 3)),
    }
    for depth in (1, 2, 4, 8):
        values = (grey >> (8 - depth)).astype(np.uint8)
        scaled = (values * (255 // (2**depth - 1))).astype(np.uint8)
        files[f"grey {depth}"] = (depth, GREY, values, np.dstack([scaled] * 3))
        files[f"palette {depth}"] = (depth, PALETTE, values, palette[values])
    for name, (depth, colour, values, pixels) in files.items():
        extra = chunk(b"PLTE", palette[: 2**depth].tobytes()) if colour == PALETTE else b""
        for interlaced in (False, True):
            data = image_data(values, depth, interlace=interlaced)
            body = png(header(56, 40, depth, colour, interlace=int(interlaced)), extra, data)
            yield _accepted("png mode", f"{name} interlaced" if interlaced else name, body, pixels)
    transparent = {"all": bytes(256), "one": b"\xff" * 7 + b"\0", "noise": noise(100, seed=6).tobytes()}
    for name, table in transparent.items():
        extra = chunk(b"PLTE", palette.tobytes()) + chunk(b"tRNS", table)
        body = png(header(56, 40, 8, PALETTE), extra, image_data(grey))
        yield _accepted("png mode", f"palette with {name} transparent", body, palette[grey])
    keyed = chunk(b"tRNS", struct.pack(">HHH", *SOURCE[0, 0].tolist()))
    yield _accepted("png mode", "rgb with a transparent colour", png(HEADER, keyed, DATA))
    keyed = chunk(b"tRNS", struct.pack(">H", int(grey[0, 0])))
    body = png(header(56, 40, 8, GREY), keyed, image_data(grey))
    yield _accepted("png mode", "grey with a transparent value", body, np.dstack([grey] * 3))


def _accepted_shapes() -> Iterator[Case]:
    for height, width in ((1, 1), (1, 100), (100, 1), (3, 5)):
        source = picture(height, width)
        for interlaced in (False, True):
            body = png(header(width, height, interlace=int(interlaced)), image_data(source, interlace=interlaced))
            yield _accepted("size", f"png {width}x{height}{' interlaced' * interlaced}", body, source)
    for height, width in ((60_000, 1), (1, 60_000), (65_535, 1), (1, 65_535)):
        column = noise(height, width)
        body = png(header(width, height, 8, GREY), image_data(column))
        yield _accepted("size", f"png grey {width}x{height}", body, np.dstack([column] * 3))
    # As large as may be: 49,999,041 pixels of one bit, without a picture to compare, which would be 150 MB.
    lines = zlib.compress(bytes(7071 * (1 + 884)))
    yield Case("size", "size-png-7071x7071", 200, png(header(7071, 7071, 1, GREY), chunk(b"IDAT", lines)), "image/png")
    lines = zlib.compress(bytes(7072 * (1 + 884)))
    yield _invalid("too many pixels", "png 7072x7072 whole", png(header(7072, 7072, 1, GREY), chunk(b"IDAT", lines)))


def _accepted_chunks() -> Iterator[Case]:
    stream = DATA[8:-4]
    bytewise = b"".join(chunk(b"IDAT", stream[i : i + 1]) for i in range(len(stream)))
    yield _accepted("png chunks", "IDAT of one byte each", png(HEADER, bytewise))
    yield _accepted("png chunks", "1000 empty IDAT", png(HEADER, chunk(b"IDAT") * 1000, DATA))
    yield _accepted("png chunks", "10000 texts", png(HEADER, TEXT * 10_000, DATA))
    yield _accepted("png chunks", "10000 texts behind the data", png(HEADER, DATA, TEXT * 10_000))
    yield _accepted("png chunks", "private chunk", png(HEADER, chunk(b"prVt", noise(5000).tobytes()), DATA))
    yield _accepted("png chunks", "text without a key", png(HEADER, chunk(b"tEXt", b"\0"), DATA))
    yield _accepted("png chunks", "text with code", png(HEADER, chunk(b"tEXt", b"x\0<script>${jndi:ldap://x}"), DATA))
    yield _accepted(
        "png chunks", "stored not deflated", png(HEADER, chunk(b"IDAT", zlib.compress(scanlines(SOURCE), 0)))
    )
    yield _accepted("png chunks", "encoded by Pillow", encode(SOURCE, "PNG", optimize=True))
    profile = chunk(b"iCCP", b"profile\0\0" + zlib.compress(noise(3000).tobytes()))
    yield _accepted("icc", "png noise", png(HEADER, profile, DATA))
    yield _accepted(
        "icc", "png no zlib stream", png(HEADER, chunk(b"iCCP", b"profile\0\0" + noise(99).tobytes()), DATA)
    )


def _orientations() -> Iterator[Case]:
    for orientation in range(1, 9):
        block = chunk(b"eXIf", exif(orientation, big_endian=orientation % 2 == 1))
        pixels = upright(SOURCE, orientation)
        yield _accepted("orientation", f"png {orientation}", png(HEADER, block, DATA), pixels)
    yield _accepted("broken exif", "png noise", png(HEADER, chunk(b"eXIf", noise(200).tobytes()), DATA))
    block = chunk(b"eXIf", exif_bomb(10_000, 120_000))
    yield _accepted("broken exif", "png 10000 tags of one place", png(HEADER, block, DATA))
