"""What stands around a body: options, content types and content encodings."""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Iterator

from tests.hostile import jpeg
from tests.hostile.case import Case, reference
from tests.hostile.png import deflated_zeros
from tests.hostile.requests import BASE64, FILE, FORM, IMAGE, JSON, PNG, SOURCE, as_json, field, form, part, request


def cases() -> Iterator[Case]:
    """Every case of this module."""
    yield from _bad_options()
    yield from _content_types()
    yield from _content_encodings()


def _bad_options() -> Iterator[Case]:
    queries = (
        "top_k=0", "top_k=-1", "top_k=10001", "top_k=1000000000", "top_k=1e9", "top_k=many", "top_k=", "top_k=1.5",
        "top_k=0x10", "top_k=nan", "top_k=%00", "top_k=1%00", "top_k=%FF", "top_k=" + "9" * 5000, "top_k=1&top_k=1",
        "top_k[]=1", "TOP_K=1", "on_error=", "on_error=skip", "on_error=ITEM", "on_error=item&on_error=item",
        "model=", "model=nope", "model=../../etc/passwd", "model=%00", "model=" + "a" * 5000, "unknown=1", "=1",
        "%00=1", "%FF=1", "%3Cscript%3E=1", "images=" + BASE64[:100], "url=http://example.com/",
    )  # fmt: skip
    for number, query in enumerate(queries):
        yield request("bad option", f"query {number:02}", 400, PNG, "image/png", query=query)
    yield request("bad option", "many fields", 414, PNG, "image/png", query="a=1&" * 500)
    embed = (
        "normalize=maybe", "normalize=", "normalize=2", "normalize=-1", "encoding=xml", "encoding=", "encoding=JSON",
        "encoding=json&encoding=json", "top_k=1",
    )  # fmt: skip
    for number, query in enumerate(embed):
        yield request("bad option", f"embed query {number:02}", 400, PNG, "image/png", query=query, route="/embed")
    wrong: tuple[dict[str, object], ...] = (
        {"top_k": 0}, {"top_k": -(10**18)}, {"top_k": 10**18}, {"top_k": 1.5}, {"top_k": "many"}, {"top_k": None},
        {"top_k": [1]}, {"top_k": {"a": 1}}, {"top_k": True}, {"top_k": ""}, {"model": 1}, {"model": ["tiny"]},
        {"model": "nope"}, {"model": ""}, {"model": "a" * 100_000}, {"model": "\ud800"}, {"on_error": "skip"},
        {"on_error": 1}, {"on_error": None}, {"on_error": ["item"]}, {"": 1}, {"a" * 5000: 1},
    )  # fmt: skip
    for number, fields in enumerate(wrong):
        body = as_json(images=[BASE64], **fields)
        yield request("bad option", f"json {number:02}", 400, body, JSON)
    wrong = (
        {"normalize": "maybe"}, {"normalize": 2}, {"normalize": None}, {"normalize": [True]}, {"encoding": "xml"},
        {"encoding": 1}, {"encoding": ["json"]},
    )  # fmt: skip
    for number, fields in enumerate(wrong):
        body = as_json(images=[BASE64], **fields)
        yield request("bad option", f"embed json {number:02}", 400, body, JSON, route="/embed")
    for number, value in enumerate((b"0", b"-1", b"many", b"", b"\xff\xfe", b"1\0", b"1;2", b"9" * 4000)):
        yield request("bad option", f"form {number:02}", 400, form(IMAGE, field("top_k", value)), FORM)
    yield request("bad option", "form model", 400, form(IMAGE, field("model", b"nope")), FORM)
    yield request("bad option", "form on_error", 400, form(IMAGE, field("on_error", b"skip")), FORM)
    twice = form(IMAGE, field("top_k", b"1"))
    yield request("bad option", "query and form", 400, twice, FORM, query="top_k=1")
    twice = as_json(images=[BASE64], top_k=1)
    yield request("bad option", "query and json", 400, twice, JSON, query="top_k=1")


def _content_types() -> Iterator[Case]:
    refused = (
        "text/html", "text/plain", "application/xml", "application/x-www-form-urlencoded", "video/mp4", "audio/wav",
        "application/pdf", "application/zip", "application/x-npy", "application/vnd.bentoml+pickle",
        "application/vnd.api+json", "application/jsonp", "multipart/mixed; boundary=xyz", "multipart/related", "image",
        "imagejpeg", "images/jpeg", "json", "jpeg", "*/*", "/", ";", "nonsense", "x" * 5000,
    )  # fmt: skip
    for number, content_type in enumerate(refused):
        yield request("content type", f"refused {number:02}", 415, jpeg.BASELINE, content_type)
    yield request("content type", "missing", 415, jpeg.BASELINE, "")
    yield request("content type", "empty", 415, jpeg.BASELINE, "", headers=(("content-type", ""),))
    taken = (
        "image/png", "image/jpg", "image/x-foo", "image/svg+xml", "image/heic", "image/*", "image/", "IMAGE/JPEG",
        "image/png; charset=binary", "image/png;", "application/octet-stream", "Application/Octet-Stream; a=b",
        "image/" + "x" * 2000,
    )  # fmt: skip
    pixels = reference(jpeg.BASELINE)
    for number, content_type in enumerate(taken):
        yield request("content type", f"taken {number:02}", 200, jpeg.BASELINE, content_type, pixels=pixels)
    lying = form(part(FILE + b"\r\nContent-Type: text/html", PNG))
    yield request("content type", "lying part", 200, lying, FORM, pixels=SOURCE)


def _content_encodings() -> Iterator[Case]:
    bomb = _gzip_bomb(1024)
    bodies = {
        "gzip image": (gzip.compress(PNG, mtime=0), "image/png"),
        "gzip json": (gzip.compress(as_json(images=[BASE64]), mtime=0), JSON),
        "gzip form": (gzip.compress(form(IMAGE), mtime=0), FORM),
        "gzip bomb": (bomb, "image/png"),
        "gzip bomb json": (bomb, JSON),
        "gzip only said": (PNG, "image/png"),
    }
    for name, (body, content_type) in bodies.items():
        headers = (("content-encoding", "gzip"),)
        yield request("content encoding", name, 415, body, content_type, headers=headers)
    for encoding in ("deflate", "br", "zstd", "x-gzip", "GZIP", "gzip, gzip", "nonsense"):
        body = zlib.compress(PNG) if encoding == "deflate" else PNG
        headers = (("content-encoding", encoding),)
        yield request("content encoding", encoding, 415, body, "image/png", headers=headers)
    headers = (("content-encoding", "identity"),)
    yield request("content encoding", "identity", 200, PNG, "image/png", headers=headers, pixels=SOURCE)
    yield request("content encoding", "gzip bomb unsaid", 415, bomb, "image/png")


def _gzip_bomb(mebibytes: int) -> bytes:
    # The checksum is wrong: a reader finds that out after it has inflated everything.
    deflated = deflated_zeros(mebibytes)[2:-4]
    return b"\x1f\x8b\x08" + bytes(7) + deflated + struct.pack("<II", 0, mebibytes << 20 & 0xFFFFFFFF)
