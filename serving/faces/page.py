"""The page at `/` and its files: read once, chosen by a fixed table, so that no path of a request touches the disk."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from hashlib import sha256
from pathlib import Path
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from serving.wire.head import matches_etag
from serving.worker import Worker

_FOLDER: Final = Path(__file__).resolve().parents[1] / "page"
_MEDIA_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# The page may load its own files and talk to its own service, and nothing else: no inline script or style, no frame.
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

PageHandler = Callable[[Request, Worker | None], Awaitable[Response]]


def page_file(name: str) -> PageHandler:
    """A handler for one file of the page's folder. It needs no worker: the page loads while the service does not."""
    path = _FOLDER / name
    content = path.read_bytes()
    etag = f'"{sha256(content).hexdigest()[:32]}"'
    headers = {
        "etag": etag,
        "cache-control": "no-cache",
        "content-security-policy": _POLICY,
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
    }
    media_type = _MEDIA_TYPES[path.suffix]

    async def handler(request: Request, _: Worker | None) -> Response:
        if matches_etag(request, etag):
            return Response(status_code=304, headers=headers)
        return Response(content, headers={**headers, "content-type": media_type})

    return handler


def page_routes() -> list[tuple[str, PageHandler]]:
    """The paths of the page, each with its handler for GET. Reads the files."""
    files = sorted(path.name for path in _FOLDER.iterdir() if path.suffix in _MEDIA_TYPES)
    return [
        ("/", page_file("index.html")),
        *((f"/page/{name}", page_file(name)) for name in files if name != "index.html"),
    ]
