"""What all formats share, then WebP, GIF and BMP, and the many formats we do not take."""

from __future__ import annotations

import gzip
import io
import struct
import zipfile
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

from tests.hostile import jpeg
from tests.hostile.case import Case, Pixels, encode, exif, noise, picture, reference, upright
from tests.hostile.png import GREY, chunk, header, image_data, png

_SOURCE = picture(72, 88)
# A GIF can hold 256 colours, and these are exact.
_PALETTE = noise(256, 3, seed=8)
_INDICES = noise(72, 88, seed=9)


def _indexed() -> Image.Image:
    image = Image.fromarray(_INDICES)
    image.putpalette(_PALETTE.tobytes())
    return image


def samples() -> dict[str, bytes]:
    """One good file of each kind."""
    return {
        "jpeg": jpeg.BASELINE,
        "jpeg-progressive": jpeg.PROGRESSIVE,
        "png": encode(_SOURCE, "PNG"),
        "webp": encode(_SOURCE, "WEBP", quality=80),
        "webp-lossless": encode(_SOURCE, "WEBP", lossless=True),
        "gif": encode(_indexed(), "GIF"),
        "bmp": encode(_SOURCE, "BMP"),
    }


def cases() -> Iterator[Case]:
    """Every case of this module."""
    files = samples()
    yield from _truncated(files)
    yield from _header_only(files)
    yield from _no_pixels(files)
    yield from _too_many_pixels(files)
    yield from _accepted_with_a_tail(files)
    yield from _gif()
    yield from _webp(files)
    yield from _bmp()
    yield from _almost_an_image(files)
    yield from _other_formats(files)


def _invalid(kind: str, name: str, body: bytes) -> Case:
    return Case(kind, f"{kind}-{name}".replace(" ", "-"), 422, body, "application/octet-stream")


def _accepted(kind: str, name: str, body: bytes, pixels: Pixels | None = None) -> Case:
    name = f"{kind}-{name}".replace(" ", "-")
    found = reference(body) if pixels is None else pixels
    return Case(kind, name, 200, body, "application/octet-stream", pixels=found)


def _truncated(files: dict[str, bytes]) -> Iterator[Case]:
    for name, content in files.items():
        for percent in (10, 50, 90, 99):
            yield _invalid("truncated", f"{name} {percent}", content[: len(content) * percent // 100])


def _header_only(files: dict[str, bytes]) -> Iterator[Case]:
    for name in ("jpeg", "jpeg-progressive"):
        pieces = jpeg.split(files[name])
        scan = next(index for index, piece in enumerate(pieces) if piece[1] == jpeg.SOS)
        yield _invalid("header only", name, b"".join(pieces[:scan]))
    for name, size in (("png", 33), ("webp", 30), ("webp-lossless", 25), ("gif", 13), ("bmp", 54)):
        yield _invalid("header only", name, files[name][:size])
    for name in ("png", "webp", "gif", "bmp"):
        yield _invalid("header only", f"{name} 12 bytes", files[name][:12])


def _with_sides(name: str, content: bytes, width: int, height: int) -> bytes:
    """The same file with other sides in its header."""
    if name.startswith("jpeg"):
        return jpeg.with_size(content, width, height)
    if name == "png":
        return content[:8] + header(width, height) + content[33:]
    if name == "gif":
        frame = content.index(b",\0\0\0\0") + 5
        sides = struct.pack("<HH", width, height)
        return content[:6] + sides + content[10:frame] + sides + content[frame + 4 :]
    if name == "bmp":
        return content[:18] + struct.pack("<ii", width, height) + content[26:]
    if name == "webp":
        return content[:26] + struct.pack("<HH", width, height) + content[30:]
    bits = (width - 1) | (height - 1) << 14 | int.from_bytes(content[21:25], "little") >> 28 << 28
    return content[:21] + struct.pack("<I", bits) + content[25:]


def _no_pixels(files: dict[str, bytes]) -> Iterator[Case]:
    for name, content in files.items():
        if name == "webp-lossless":  # stores its sides less one: it has no zero
            continue
        for width, height in ((0, 72), (88, 0), (0, 0)):
            yield _invalid("no pixels", f"{name} {width}x{height}", _with_sides(name, content, width, height))


def _too_many_pixels(files: dict[str, bytes]) -> Iterator[Case]:
    for name, content in files.items():
        side = 16_383 if name.startswith("webp") else 60_000
        yield _invalid("too many pixels", f"{name} {side}x{side}", _with_sides(name, content, side, side))
        yield _invalid("too many pixels", f"{name} 7072x7072", _with_sides(name, content, 7072, 7072))
    yield _invalid("too many pixels", "gif 65535x65535", _with_sides("gif", files["gif"], 65_535, 65_535))
    for width, height in ((2**31 - 1, 2**31 - 1), (60_000, -60_000), (-1, 72), (88, -(2**31))):
        yield _invalid("too many pixels", f"bmp {width}x{height}", _with_sides("bmp", files["bmp"], width, height))
    extended = b"\0\0\0\0" + (60_000 - 1).to_bytes(3, "little") * 2
    body = _riff(_part(b"VP8X", extended), files["webp"][12:])
    yield _invalid("too many pixels", "webp canvas 60000x60000", body)
    # Long and thin under the limit, but with no data for it.
    for name in ("png", "gif", "bmp"):
        yield _invalid("missing data", f"{name} 1x65535", _with_sides(name, files[name], 1, 65_535))
        yield _invalid("missing data", f"{name} 65535x1", _with_sides(name, files[name], 65_535, 1))


def _accepted_with_a_tail(files: dict[str, bytes]) -> Iterator[Case]:
    tail = noise(3000, seed=4).tobytes()
    exact = {"png": _SOURCE, "webp-lossless": _SOURCE, "bmp": _SOURCE, "gif": _PALETTE[_INDICES]}
    for name, content in files.items():
        yield _accepted("whole", name, content, exact.get(name))
        yield _accepted("trailing garbage", f"{name} noise", content + tail, exact.get(name))
        yield _accepted("trailing garbage", f"{name} itself", content * 2, exact.get(name))


def gif(width: int, height: int, frames: bytes, flags: int = 0x80) -> bytes:
    """A GIF of black and white; `frames` is everything between palette and trailer."""
    palette = b"\0\0\0\xff\xff\xff" if flags & 0x80 else b""
    return b"GIF89a" + struct.pack("<HHBBB", width, height, flags, 0, 0) + palette + frames + b";"


# One white pixel: descriptor, code size, one block, end.
_DOT = b",\0\0\0\0\x01\0\x01\0\0" + b"\x02\x02\x4c\x01\x00"


def _gif() -> Iterator[Case]:
    white = np.full((1, 1, 3), 255, np.uint8)
    frames = [Image.fromarray(noise(30, 40, seed=seed)) for seed in range(2)]
    yield _invalid("animation", "gif 2 frames", encode(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    yield _invalid("animation", "gif 2 dots", gif(1, 1, _DOT * 2))
    yield _invalid("animation", "gif 100000 dots", gif(1, 1, _DOT * 100_000))
    yield _accepted("gif", "one dot", gif(1, 1, _DOT), white)
    yield _accepted("gif", "GIF87a", gif(1, 1, _DOT).replace(b"89a", b"87a"), white)
    yield _accepted("gif", "interlaced", encode(_indexed(), "GIF", interlace=1), _PALETTE[_INDICES])
    yield _accepted("gif", "transparent", encode(_indexed(), "GIF", transparency=3), _PALETTE[_INDICES])
    one = encode(frames[0], "GIF", save_all=True, loop=0)
    yield _accepted("gif", "one frame of a loop", one, np.dstack([np.asarray(frames[0])] * 3))
    grey = noise(40, 50)
    yield _accepted("gif", "grey", encode(grey, "GIF"), np.dstack([grey] * 3))
    comment = b"!\xfe" + (b"\xff" + bytes(255)) * 2000 + b"\0"
    yield _accepted("gif", "comment of half a megabyte", gif(1, 1, comment + _DOT), white)
    comment = b"!\xfe" + b"\x01x" * 500_000 + b"\0"
    yield _accepted("gif", "comment of 500000 blocks", gif(1, 1, comment + _DOT), white)
    column = noise(65_535, 1)
    yield _accepted("size", "gif 1x65535", encode(column, "GIF"), np.dstack([column] * 3))
    start = _DOT[:10]
    data = {
        "no frame": b"",
        "extension only": b"!\xf9\x04\0\0\0\0\0",
        "frame without data": start,
        "code size 13": start + b"\x0d\x02\x4c\x01\x00",
        "empty data": start + b"\x02\x00",
        "end code only": start + b"\x02\x01\x05\x00",
        "code past the table": start + b"\x02\x02\xff\xff\x00",
        "block past the end": start + b"\x02\xff\x4c",
        "unknown block": b"\x99" + noise(100).tobytes(),
    }
    for name, content in data.items():
        yield _invalid("corrupt gif", name, gif(1, 1, content))
    whole = bytearray(encode(_indexed(), "GIF"))
    whole[2000:2100] = b"\xff" * 100
    yield _invalid("corrupt gif", "ones in the middle", bytes(whole))


def _part(kind: bytes, data: bytes) -> bytes:
    return kind + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)


def _riff(*parts: bytes) -> bytes:
    return _part(b"RIFF", b"WEBP" + b"".join(parts))


def _webp(files: dict[str, bytes]) -> Iterator[Case]:
    lossy, lossless = files["webp"], files["webp-lossless"]
    frames = [Image.fromarray(picture(30, 40, seed=seed)) for seed in range(12)]
    for count in (2, 12):
        body = encode(frames[0], "WEBP", save_all=True, append_images=frames[1:count])
        yield _invalid("animation", f"webp {count} frames", body)
    canvas = b"\x02\0\0\0" + bytes(6)
    dot = encode(np.zeros((1, 1, 3), np.uint8), "WEBP", lossless=True)[12:]
    frame = _part(b"ANMF", bytes(12) + b"\x01\0\0\0" + dot)
    body = _riff(_part(b"VP8X", canvas), _part(b"ANIM", bytes(6)), frame * 20_000)
    yield _invalid("animation", "webp 20000 frames", body)

    alpha = np.dstack([_SOURCE, np.full((72, 88), 255, np.uint8)])
    rgba = Image.fromarray(alpha)
    yield _accepted("webp", "lossless alpha", encode(rgba, "WEBP", lossless=True, exact=True), _SOURCE)
    yield _accepted("webp", "lossy alpha", encode(Image.fromarray(np.dstack([_SOURCE, _INDICES])), "WEBP"))
    yield _accepted("webp", "one frame saved as animation", encode(frames[0], "WEBP", save_all=True))
    for orientation in (3, 6):
        body = encode(_SOURCE, "WEBP", lossless=True, exif=b"Exif\0\0" + exif(orientation))
        yield _accepted("orientation", f"webp {orientation}", body, upright(_SOURCE, orientation))
    body = encode(_SOURCE, "WEBP", lossless=True, icc_profile=noise(500).tobytes())
    yield _accepted("icc", "webp noise", body, _SOURCE)
    yield _accepted("size", "webp 1x1", encode(picture(1, 1), "WEBP", lossless=True), picture(1, 1))
    yield _accepted("size", "webp 16383x1", encode(picture(1, 16_383), "WEBP", lossless=True), picture(1, 16_383))

    def overwritten(content: bytes, at: int, data: bytes) -> bytes:
        return content[:at] + data + content[at + len(data) :]

    broken = {
        "unknown first part": overwritten(lossy, 12, b"VP9 "),
        "not a key frame": overwritten(lossy, 20, bytes([lossy[20] | 1])),
        "wrong start code": overwritten(lossy, 23, b"\0\0\0"),
        "wrong lossless signature": overwritten(lossless, 20, b"\x30"),
        "lossless version 7": overwritten(lossless, 24, bytes([lossless[24] | 0xE0])),
        "first partition past the end": overwritten(lossy, 20, bytes([lossy[20] | 0xE0, 0xFF, 0xFF])),
        "part longer than the file": overwritten(lossy, 16, b"\xff\xff\xff\x7f"),
        "file length too large": overwritten(lossy, 4, b"\xff\xff\xff\x7f"),
        "file length of 4": overwritten(lossy, 4, b"\x04\0\0\0"),
        "lossless ones": overwritten(lossless, 200, b"\xff" * 400),
        "lossless noise": overwritten(lossless, 30, noise(400, seed=1).tobytes()),
        "extended without an image": _riff(_part(b"VP8X", bytes(10))),
        "animation without frames": _riff(_part(b"VP8X", canvas), _part(b"ANIM", bytes(6))),
        "canvas of other sides": _riff(_part(b"VP8X", b"\0\0\0\0\x09\0\0\x09\0\0"), lossy[12:]),
        "animation flag without frames": _riff(_part(b"VP8X", canvas), lossless[12:]),
        "empty part": _riff(_part(b"VP8 ", b"")),
    }
    for name, body in broken.items():
        yield _invalid("corrupt webp", name, body)


def bmp(
    width: int, height: int, bits: int, data: bytes, *, palette: bytes = b"", compression: int = 0, masks: bytes = b""
) -> bytes:
    """A BMP with the usual 40-byte header; `data` are its lines as stored."""
    colours = len(palette) // 4
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, len(data), 2835, 2835, colours, 0)
    start = 14 + len(info) + len(masks) + len(palette)
    return b"BM" + struct.pack("<IHHI", start + len(data), 0, 0, start) + info + masks + palette + data


def _lines(values: Pixels) -> bytes:
    flat = values.reshape(len(values), -1)
    return np.pad(flat, ((0, 0), (0, -flat.shape[1] % 4))).tobytes()


def _bmp() -> Iterator[Case]:
    blue_first = _SOURCE[..., ::-1]
    opaque = np.dstack([blue_first, np.full((72, 88), 255, np.uint8)])
    odd = picture(9, 7)
    yield _accepted("bmp", "24 bit", bmp(88, 72, 24, _lines(blue_first[::-1])), _SOURCE)
    yield _accepted("bmp", "24 bit with padding", bmp(7, 9, 24, _lines(odd[::-1, :, ::-1])), odd)
    yield _accepted("bmp", "24 bit top down", bmp(88, -72, 24, _lines(blue_first)), _SOURCE)
    yield _accepted("bmp", "32 bit", bmp(88, 72, 32, _lines(opaque[::-1])), _SOURCE)
    yield _accepted("bmp", "32 bit top down", bmp(88, -72, 32, _lines(opaque)), _SOURCE)
    masks = struct.pack("<III", 0xFF0000, 0xFF00, 0xFF)
    body = bmp(88, 72, 32, _lines(opaque[::-1]), compression=3, masks=masks)
    yield _accepted("bmp", "32 bit with masks", body, _SOURCE)
    masks = struct.pack("<III", 0xF800, 0x7E0, 0x1F)
    body = bmp(88, 72, 16, noise(72, 176).tobytes(), compression=3, masks=masks)
    yield _accepted("bmp", "16 bit with masks", body)
    table = np.dstack([_PALETTE[None, :, ::-1], np.zeros((1, 256, 1), np.uint8)]).tobytes()
    yield _accepted("bmp", "8 bit", bmp(88, 72, 8, _lines(_INDICES[::-1]), palette=table), _PALETTE[_INDICES])
    halves = np.repeat(_INDICES[:, :44], 2, axis=1) >> np.tile(np.array([4, 0], np.uint8), 44) & 15
    body = bmp(88, 72, 4, _lines(_INDICES[::-1, :44]), palette=table[:64])
    yield _accepted("bmp", "4 bit", body, _PALETTE[halves])
    bits = np.unpackbits(_INDICES[:, :11], axis=1)
    body = bmp(88, 72, 1, _lines(_INDICES[::-1, :11]), palette=table[:8])
    yield _accepted("bmp", "1 bit", body, _PALETTE[bits])
    runs = b"".join(b"".join(bytes((1, value)) for value in line) + b"\0\0" for line in _INDICES[::-1].tolist())
    column = noise(65_535, 1, 3)
    yield _accepted("size", "bmp 1x65535", bmp(1, -65_535, 24, _lines(column[..., ::-1])), column)

    good = bmp(88, 72, 24, _lines(blue_first))
    broken = {
        "header of 0 bytes": good[:14] + bytes(4) + good[18:],
        "header of 4 GB": good[:14] + b"\xff" * 4 + good[18:],
        "header of 41 bytes": good[:14] + b"\x29" + good[15:],
        "0 bit": bmp(88, 72, 0, _lines(blue_first)),
        "7 bit": bmp(88, 72, 7, _lines(blue_first)),
        "unknown compression": bmp(88, 72, 24, _lines(blue_first), compression=77),
        "compression jpeg": bmp(88, 72, 0, jpeg.BASELINE, compression=4),
        "senseless masks": bmp(88, 72, 32, _lines(opaque), compression=3, masks=b"\x01" * 12),
        "data past the end": good[:10] + b"\xff\xff\xff\x7f" + good[14:],
        "run lengths": bmp(88, 72, 8, runs + b"\0\1", palette=table, compression=1),
        "run lengths ended at once": bmp(88, 72, 8, b"\0\1", palette=table, compression=1),
        "run lengths cut short": bmp(88, 72, 8, runs[:4000], palette=table, compression=1),
        "run lengths over 49 megapixels": bmp(7000, 7000, 8, b"\xff\0" * 100, palette=table, compression=1),
        # A reader that fills a line pixel by pixel, in Python, spends seconds on the two bytes that end it.
        "run lengths of a long line": bmp(12_000_000, 2, 8, b"\1\1\0\0", palette=table, compression=1),
        "run lengths of far jumps": bmp(7000, 7000, 8, b"\0\2\xff\xff" * 20, palette=table, compression=1),
    }
    for name, body in broken.items():
        yield _invalid("corrupt bmp", name, body)


def _almost_an_image(files: dict[str, bytes]) -> Iterator[Case]:
    """Bytes that begin as an image we take does, and go on as something else."""
    texts = {
        "BM text": b"BMW and other makers of cars",
        "GIF script": b"GIF89a=1;alert(document.domain)//",
        "GIF html": b"GIF89a<script>alert(1)</script>",
        "PNG of a jpeg": files["png"][:8] + files["jpeg"],
        "JPEG of a png": files["jpeg"][:3] + files["png"],
        "WEBP of a png": b"RIFF" + struct.pack("<I", len(files["png"])) + b"WEBP" + files["png"],
        "PNG noise": files["png"][:8] + noise(3000).tobytes(),
        "JPEG noise": files["jpeg"][:4] + noise(3000, seed=1).tobytes(),
        "GIF noise": b"GIF89a" + noise(3000).tobytes(),
        "BMP noise": b"BM" + noise(3000).tobytes(),
        "WEBP noise": b"RIFF\0\1\0\0WEBPVP8 " + noise(3000).tobytes(),
    }
    for name, body in texts.items():
        yield _invalid("almost an image", name, body)


def _other_formats(files: dict[str, bytes]) -> Iterator[Case]:
    def box(brand: bytes) -> bytes:
        return struct.pack(">I", 24) + b"ftyp" + brand + bytes(4) + b"mif1" + brand + noise(500).tobytes()

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(zipfile.ZipInfo("cat.jpg"), files["jpeg"])
    script = b"<svg xmlns='http://www.w3.org/2000/svg'><image href='http://169.254.169.254/'/></svg>"
    entities = b"<?xml version='1.0'?><!DOCTYPE a [<!ENTITY x SYSTEM 'file:///etc/passwd'>]><svg>&x;</svg>"
    array = io.BytesIO()
    np.save(array, _SOURCE)
    tail = noise(2000, seed=3).tobytes()
    small = Image.fromarray(_SOURCE)
    contents = {
        "svg": script, "svg with an entity": entities, "svgz": gzip.compress(script, mtime=0),
        "heic": box(b"heic"), "avif": box(b"avif"), "mp4": box(b"isom"), "quicktime": box(b"qt  "),
        "pdf": b"%PDF-1.7\n" + tail,
        "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file\n",
        "tiff little endian": encode(small, "TIFF"), "tiff big endian": b"MM\0*\0\0\0\x08" + tail,
        "bigtiff": b"II+\0\x08\0\0\0" + tail, "psd": b"8BPS\0\1" + tail, "ico": encode(small, "ICO"),
        "cur": b"\0\0\2\0\1\0" + tail, "jpeg 2000": b"\0\0\0\x0cjP  \r\n\x87\n" + tail,
        "jpeg 2000 stream": b"\xff\x4f\xff\x51" + tail, "jpeg xl": b"\0\0\0\x0cJXL \r\n\x87\n" + tail,
        "jpeg xl stream": b"\xff\x0a" + tail, "ppm": encode(small, "PPM"), "pcx": encode(small, "PCX"),
        "tga": encode(small, "TGA"), "dds": encode(small, "DDS"), "qoi": b"qoif" + tail,
        "xbm": b"#define x_width 8\n#define x_height 8\nstatic char x_bits[] = {0};\n",
        "wmf": b"\xd7\xcd\xc6\x9a" + tail, "mng": b"\x8aMNG\r\n\x1a\n" + tail, "fits": b"SIMPLE  =" + b" " * 2871,
        "dicom": bytes(128) + b"DICM" + tail, "openexr": b"\x76\x2f\x31\x01" + tail, "flif": b"FLIF" + tail,
        "text": b"a photograph of a cat", "json": b'{"images": []}', "html": b"<!doctype html><h1>cat</h1>",
        "xml": b"<?xml version='1.0'?><a/>", "shell": b"#!/bin/sh\nrm -rf /\n", "elf": b"\x7fELF\2\1\1" + tail,
        "exe": b"MZ" + tail, "zip": buffer.getvalue(), "gzip": gzip.compress(files["jpeg"], mtime=0),
        "zlib": zlib.compress(files["jpeg"]), "pickle": b"\x80\x04cos\nsystem\n(S'true'\ntR.", "npy": array.getvalue(),
        "wav": b"RIFF" + struct.pack("<I", len(tail) + 4) + b"WAVE" + tail, "avi": b"RIFF\0\0\0\0AVI " + tail,
        "big endian riff": b"RIFX\0\0\0\0WEBP" + tail, "short riff": b"RIFF\0\0\0\0WEB",
        "url": b"https://example.com/cat.jpg", "GIF88a": b"GIF88a" + files["gif"][6:],
        "os/2 bitmap array": b"BA" + tail, "one byte": b"\xff", "two bytes": b"\xff\xd8", "nul": b"\0",
        "noise": noise(5000, seed=12).tobytes(), "zeros": bytes(5000), "ones": b"\xff" * 5000,
        "png through a text filter": files["png"].replace(b"\r\n", b"\n"),
        "png without its first byte": files["png"][1:],
        "jpeg behind a mark": b"\xef\xbb\xbf" + files["jpeg"], "jpeg behind a line": b"\n" + files["jpeg"],
        "html before a jpeg": b"<script>alert(1)</script>" + files["jpeg"], "jpeg turned round": files["jpeg"][::-1],
    }  # fmt: skip
    for name, body in contents.items():
        yield Case("another format", f"another-format-{name.replace(' ', '-')}", 415, body, "image/jpeg")


def grey_dot() -> bytes:
    """The smallest image there is, for requests that need many."""
    return png(header(1, 1, 8, GREY), image_data(np.full((1, 1), 128, np.uint8)), chunk(b"tEXt", b"x\0y"))
