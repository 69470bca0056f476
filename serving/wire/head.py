"""What is read of a request's head: fields of the query, and headers that hold lists, bounded before they are parsed.

serving/wire/protocol.py bounds the head as a whole.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import parse_qsl

from starlette.requests import Request

from sovit.errors import HeadersTooLarge, UnsupportedMediaType, UrlTooLong

MAX_QUERY_FIELDS: Final = 64
MAX_ACCEPT_BYTES: Final = 2_048  # browsers send some 150
MAX_LIST_ITEMS: Final = 32


def query_fields(request: Request) -> list[tuple[str, str]]:
    """Names and values of the query. Raises `UrlTooLong` for more than `MAX_QUERY_FIELDS`."""
    query: bytes = request.scope["query_string"]
    if not query:
        return []
    if query.count(b"&") >= MAX_QUERY_FIELDS:
        raise UrlTooLong(f"the query holds more than {MAX_QUERY_FIELDS} fields.")
    return parse_qsl(query.decode("latin-1"), keep_blank_values=True)


def accept_header(request: Request) -> str:
    """What the client accepts, "" where it does not say. Raises `HeadersTooLarge`."""
    value: str = request.headers.get("accept", "")
    if len(value) > MAX_ACCEPT_BYTES or value.count(",") + value.count(";") > MAX_LIST_ITEMS:
        raise HeadersTooLarge(
            f"the header Accept is over the limit of {MAX_ACCEPT_BYTES:,} bytes or {MAX_LIST_ITEMS} items."
        )
    return value


def content_type_header(request: Request) -> str:
    """The body's type, "" where the client does not say. Raises `UnsupportedMediaType` for one that we do not parse."""
    value: str = request.headers.get("content-type", "")
    if value.count(";") > MAX_LIST_ITEMS:
        raise UnsupportedMediaType("this content type has more parameters than any that the service takes.")
    return value


def matches_etag(request: Request, etag: str) -> bool:
    """Whether If-None-Match names this ETag, quotes included, or any."""
    given = request.headers.get("if-none-match", "").split(",", MAX_LIST_ITEMS)
    return bool({tag.strip().removeprefix("W/") for tag in given} & {etag, "*"})
