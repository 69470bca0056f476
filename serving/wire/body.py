"""Request bodies: read under a limit, then taken apart into images and options.

Three forms: multipart files in the field `images`, a raw image, JSON `{"images": [base64 or data URI, ...]}`. Nothing
touches the disk and nothing is fetched.
"""

from __future__ import annotations

import binascii
import json
import logging
import re
from base64 import b64decode
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect
from starlette.types import Receive

from sovit.errors import BadRequest, TooLarge, UnsupportedMediaType

MAX_FIELD_BYTES: Final = 4096
MAX_NESTED: Final = 32  # lists and objects in a JSON body
MAX_FIELDS: Final = 64  # of a form or a JSON body, besides images

_SURROGATE: Final = re.compile(rb"\\u[dD][89a-fA-F]")

# The parser's own warnings quote the payload, which belongs in no log.
logging.getLogger("python_multipart").setLevel(logging.ERROR)


class BodyTooLarge(TooLarge):
    """A body over its limit, the rest of which has not been read."""


@dataclass(frozen=True)
class Body:
    """What a request body holds: encoded images, and options by name as the client wrote them."""

    images: list[bytes]
    options: dict[str, Any]


def declared_size(content_length: str | None, limit: int) -> int:
    """The length a body announces, 0 where it does not. Raises `TooLarge` when that is over the limit."""
    if content_length is None or not (content_length.isascii() and content_length.isdigit()):
        return 0
    size = int(content_length[:20])
    if size > limit:
        raise _over(limit)
    return size


async def read_limited(receive: Receive, limit: int, count: Callable[[int], None]) -> bytes:
    """Read a body of at most `limit` bytes, telling `count` of each piece. Raises `TooLarge` as soon as it is over.

    Raises `ClientDisconnect` when the client has gone before its end.
    """
    chunks, size, more = [], 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunk, more = message.get("body", b""), message.get("more_body", False)
        size += len(chunk)
        if size > limit:
            raise _over(limit)
        if chunk:
            count(len(chunk))
            chunks.append(chunk)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _over(limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"the body is over the limit of {limit:,} bytes.")


def is_raw(content_type: str) -> bool:
    """Whether a body of this type is an image as it is, and no work to take apart."""
    return content_type.startswith(("image/", "application/octet-stream"))


def parse_body(content_type: str, body: bytes, max_images: int) -> Body:
    """Take a body apart by its content type. An image's own format is told by its bytes, not by this header."""
    kind_bytes, parameters = parse_options_header(content_type)
    kind = kind_bytes.decode("latin-1").lower()
    if not body:
        raise BadRequest("the body is empty; send an image.")
    if kind == "multipart/form-data":
        parsed = _parse_multipart(body, parameters.get(b"boundary", b""), max_images)
    elif kind == "application/json":
        parsed = _parse_json(body, max_images)
    elif kind == "application/octet-stream" or kind.startswith("image/"):
        parsed = Body([body], {})
    else:
        raise UnsupportedMediaType(
            "send multipart/form-data, application/json, image/* or application/octet-stream as the content type."
        )
    if not parsed.images:
        raise BadRequest("the request holds no image; send at least one as `images`.")
    for index, image in enumerate(parsed.images):
        if not image:
            raise BadRequest(f"image {index} is empty (0 bytes).")
    return parsed


def count_images(images: Sequence[object], limit: int) -> None:
    """Raise `TooLarge` for more images than a request may have."""
    if len(images) > limit:
        raise _too_many(limit)


def _too_many(limit: int) -> TooLarge:
    return TooLarge(f"the request holds more than {limit} images.")


def load_json(
    body: bytes, max_images: int, *, max_nested: int = MAX_NESTED, max_fields: int = MAX_FIELDS
) -> dict[str, Any]:
    """A JSON object with at most so many images in it. Raises `BadRequest` and `TooLarge`."""
    # Values cost many times the bytes they are written in: what cannot be ours is not even parsed.
    if body.count(b"[") + body.count(b"{") > max_nested:
        raise BadRequest("the JSON body holds more lists and objects than any request of this service.")
    if body.count(b'":') > max_fields:
        raise BadRequest("the JSON body holds more fields than any request of this service.")
    if body.count(b",") > 2 * max_images + MAX_FIELDS:  # a data URI has one of its own
        raise _too_many(max_images)
    try:
        data = json.loads(body, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise BadRequest("the body is not valid JSON.") from error
    if _SURROGATE.search(body):
        try:
            orjson.loads(body)  # which, unlike Python, does not take half of a pair
        except orjson.JSONDecodeError as error:
            raise BadRequest("the body is not valid JSON: it holds half of a surrogate pair.") from error
    if not isinstance(data, dict):
        raise BadRequest("the JSON body must be an object.")
    return data


def _parse_json(body: bytes, max_images: int) -> Body:
    data = load_json(body, max_images)
    encoded = data.pop("images", None)
    if not isinstance(encoded, list):
        raise BadRequest("the JSON body needs `images`, a list of base64 strings or data URIs.")
    count_images(encoded, max_images)
    return Body([decode_base64(text, index) for index, text in enumerate(encoded)], data)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise BadRequest("a JSON field is given twice.")
    return found


def decode_base64(text: object, index: int) -> bytes:
    """The bytes of an image that came as base64 or as a data URI. Raises `BadRequest`, which names its index."""
    if not isinstance(text, str):
        raise BadRequest(f"image {index} is no string; send base64 or a data URI.")
    if text[:8].lower().startswith(("http://", "https://")):
        raise BadRequest(f"image {index} is a URL, and this service fetches none; send the image itself.")
    if text[:5].lower() == "data:":
        header, comma, text = text.partition(",")
        if not comma or not header.lower().endswith(";base64"):
            raise BadRequest(f"image {index} is a data URI without ;base64.")
    if text.endswith("==="):  # which Python takes
        raise BadRequest(f"image {index} is not valid base64.")
    try:
        return b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadRequest(f"image {index} is not valid base64.") from error


def _parse_multipart(body: bytes, boundary: bytes, max_images: int) -> Body:
    if not boundary:
        raise BadRequest("the multipart content type lacks its boundary.")
    collector = _Collector(body, max_images)
    try:
        parser = MultipartParser(boundary, collector.callbacks())
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise BadRequest("the multipart body is malformed.") from error
    if not collector.complete:
        raise BadRequest("the multipart body ends before its last boundary.")
    return Body(collector.images, collector.options)


class _Collector:
    """Receives the parser's callbacks and keeps the two kinds of part we know: files and short text fields."""

    def __init__(self, body: bytes, max_images: int) -> None:
        self.images: list[bytes] = []
        self.options: dict[str, Any] = {}
        self.complete = False
        self._max_images = max_images
        self._header_name = self._header_value = b""
        self._disposition = b""
        self._data = bytearray()

    def callbacks(self) -> Any:
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._on_name,
            "on_header_value": self._on_value,
            "on_header_end": self._end_header,
            "on_part_data": self._on_data,
            "on_part_end": self._end,
            "on_end": self._finish,
        }

    def _begin(self) -> None:
        self._disposition = b""
        self._data = bytearray()

    def _on_name(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _on_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _end_header(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            self._disposition = self._header_value
        self._header_name = self._header_value = b""

    def _on_data(self, data: bytes, start: int, end: int) -> None:
        self._data += data[start:end]

    def _end(self) -> None:
        _, parameters = parse_options_header(self._disposition)
        name = parameters.get(b"name", b"").decode("utf-8", "replace")
        if not name:
            raise BadRequest("a multipart part has no name.")
        if name == "images":
            self.images.append(bytes(self._data))
            count_images(self.images, self._max_images)
            return
        if b"filename" in parameters:
            raise BadRequest("a file came in another field than `images`.")
        if len(self._data) > MAX_FIELD_BYTES:
            raise TooLarge(f"a form field is over the limit of {MAX_FIELD_BYTES} bytes.")
        if name in self.options:
            raise BadRequest("a form field is given twice.")
        if len(self.options) == MAX_FIELDS:
            raise BadRequest("the form holds more fields than any request of this service.")
        self.options[name] = self._data.decode("utf-8", "replace")

    def _finish(self) -> None:
        self.complete = True
