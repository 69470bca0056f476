"""Whether a client has what it asks for already."""

from __future__ import annotations

from starlette.requests import Request


def has_it(request: Request, etag: str) -> bool:
    """Whether If-None-Match names this ETag, quotes included, or any."""
    known = {tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")}
    return bool(known & {etag, "*"})
