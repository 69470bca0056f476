from __future__ import annotations

import asyncio
import json
from base64 import b64encode

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import ClientDisconnect
from starlette.types import Message

from serving.wire.body import declared_size, parse_body, read_limited
from sovit.errors import BadRequest, SoViTError, TooLarge, UnsupportedMediaType

MULTIPART = "multipart/form-data; boundary=xyz"


def multipart(*parts: tuple[str, str | None, bytes]) -> bytes:
    body = b""
    for name, filename, content in parts:
        file = f'; filename="{filename}"' if filename is not None else ""
        body += f'--xyz\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode() + content + b"\r\n"
    return body + b"--xyz--\r\n"


def test_multipart() -> None:
    body = multipart(("images", "a.png", b"one"), ("top_k", None, b"3"), ("images", "b.png", b"two"))
    found = parse_body(MULTIPART, body, 8)
    assert (found.images, found.options) == ([b"one", b"two"], {"top_k": "3"})


def test_raw() -> None:
    for content_type in ("image/png", "image/jpg", "application/octet-stream", "IMAGE/PNG; q=1"):
        assert parse_body(content_type, b"bytes", 8).images == [b"bytes"]


def test_json() -> None:
    encoded = b64encode(b"bytes").decode()
    body = json.dumps({"images": [encoded, f"data:image/png;base64,{encoded}"], "top_k": 3}).encode()
    found = parse_body("application/json; charset=utf-8", body, 8)
    assert (found.images, found.options) == ([b"bytes", b"bytes"], {"top_k": 3})


@given(st.lists(st.binary(min_size=1, max_size=300), min_size=1, max_size=5))
def test_all_forms_carry_any_bytes(images: list[bytes]) -> None:
    body = multipart(*(("images", f"{i}", image) for i, image in enumerate(images)))
    if not any(b"\r\n--xyz" in b"\r\n" + image for image in images):
        assert parse_body(MULTIPART, body, 8).images == images
    body = json.dumps({"images": [b64encode(image).decode() for image in images]}).encode()
    assert parse_body("application/json", body, 8).images == images
    assert parse_body("image/png", images[0], 8).images == images[:1]


def as_json(value: object) -> bytes:
    return json.dumps(value).encode()


@pytest.mark.parametrize(
    ("content_type", "body", "error", "message"),
    [
        ("image/png", b"", BadRequest, "body is empty"),
        ("", b"x", UnsupportedMediaType, "send multipart"),
        ("text/plain", b"x", UnsupportedMediaType, "send multipart"),
        ("application/json", b"{", BadRequest, "not valid JSON"),
        ("application/json", b"\xff", BadRequest, "not valid JSON"),
        ("application/json", b"[" * 100_000, BadRequest, "more lists and objects"),
        ("application/json", b'{"images": ["aGk="], "a": ' + b"1," * 100, TooLarge, "more than 8 images"),
        ("application/json", b"[]", BadRequest, "must be an object"),
        ("application/json", b"{}", BadRequest, "needs `images`"),
        ("application/json", as_json({"images": "x"}), BadRequest, "needs `images`"),
        ("application/json", as_json({"images": []}), BadRequest, "holds no image"),
        ("application/json", as_json({"images": [3]}), BadRequest, "image 0 is no string"),
        ("application/json", as_json({"images": ["!"]}), BadRequest, "image 0 is not valid base64"),
        ("application/json", as_json({"images": ["é"]}), BadRequest, "image 0 is not valid base64"),
        ("application/json", as_json({"images": ["aGk=", ""]}), BadRequest, "image 1 is empty"),
        ("application/json", as_json({"images": ["https://x/y.jpg"]}), BadRequest, "is a URL"),
        ("application/json", as_json({"images": ["data:image/png,abc"]}), BadRequest, "without ;base64"),
        ("application/json", as_json({"images": ["aGk="] * 9}), TooLarge, "more than 8 images"),
        ("application/json", b'{"images": [], "images": ["aGk="]}', BadRequest, "given twice"),
        ("multipart/form-data", b"x", BadRequest, "lacks its boundary"),
        ("multipart/form-data; boundary=" + "a" * 5000, b"x", BadRequest, "malformed"),
        (MULTIPART, b"garbage", BadRequest, "malformed|ends before"),
        (MULTIPART, multipart(("images", "a", b"x"))[:-8], BadRequest, "ends before"),
        (MULTIPART, multipart(("images", "a", b"")), BadRequest, "image 0 is empty"),
        (MULTIPART, multipart(("top_k", None, b"3")), BadRequest, "holds no image"),
        (MULTIPART, multipart(("", None, b"3")), BadRequest, "no name"),
        (MULTIPART, multipart(("photo", "a", b"x")), BadRequest, "another field"),
        (MULTIPART, multipart(("top_k", None, b"3"), ("top_k", None, b"3")), BadRequest, "given twice"),
        (MULTIPART, multipart(("top_k", None, b"3" * 5000)), TooLarge, "form field"),
        (MULTIPART, multipart(*[(f"f{n}", None, b"") for n in range(1000)]), BadRequest, "more fields than"),
        (MULTIPART, multipart(("a" * 10_000, None, b"3")), BadRequest, "malformed"),
        (MULTIPART, multipart(*[("images", "a", b"x")] * 9), TooLarge, "more than 8 images"),
    ],
)
def test_malformed_bodies(content_type: str, body: bytes, error: type[SoViTError], message: str) -> None:
    with pytest.raises(error, match=message):
        parse_body(content_type, body, 8)


@given(
    st.sampled_from([MULTIPART, "application/json", 'multipart/form-data; boundary="', "a/b;;"]),
    st.binary(max_size=400),
)
def test_no_body_raises_anything_but_our_errors(content_type: str, body: bytes) -> None:
    for candidate in (body, b"--xyz\r\n" + body, b'{"images":' + body):
        try:
            parse_body(content_type, candidate, 8)
        except SoViTError as error:
            assert error.status in (400, 413, 415)


def test_a_body_is_read_no_further_than_its_limit() -> None:
    taken = 0

    async def receive() -> Message:
        nonlocal taken
        taken += 1
        return {"type": "http.request", "body": b"x" * 10, "more_body": taken < 100}

    counted: list[int] = []
    assert len(asyncio.run(read_limited(receive, 1000, counted.append))) == sum(counted) == 1000
    taken = 0
    with pytest.raises(TooLarge, match="over the limit of 25 bytes"):
        asyncio.run(read_limited(receive, 25, counted.append))
    assert taken == 3


def test_a_client_that_leaves_ends_the_reading() -> None:
    async def receive() -> Message:
        return {"type": "http.disconnect"}

    with pytest.raises(ClientDisconnect):
        asyncio.run(read_limited(receive, 25, lambda _: None))


def test_what_a_body_announces() -> None:
    assert [declared_size(text, 25) for text in (None, "25", "x", "-1", "٣")] == [0, 25, 0, 0, 0]
    for text in ("26", "9" * 5000):
        with pytest.raises(TooLarge, match="over the limit of 25 bytes"):
            declared_size(text, 25)
