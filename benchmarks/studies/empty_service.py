"""BentoML services that do nothing: the floor under every service BentoML starts.

`POST /embed` reads its body and answers with as many bytes as an embedding of 32 numbers in a .npy file.
"""

from __future__ import annotations

from typing import Any, Final

import bentoml
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

_REPLY: Final = bytes(256)


async def _ready(_: Request) -> PlainTextResponse:
    return PlainTextResponse("ready")


async def _embed(request: Request) -> Response:
    await request.body()
    return Response(_REPLY, media_type="application/x-npy")


def _app() -> Starlette:
    return Starlette(routes=[Route("/readyz", _ready), Route("/embed", _embed, methods=["POST"])])


class OurRoutesFirst:
    """As in serving/service.py: HTTP requests go past BentoML's own middleware."""

    def __init__(self, bento_app: Any) -> None:
        self._bento_app = bento_app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            server = scope["app"]
            others = server.middleware_stack

            async def stack(scope: Any, receive: Any, send: Any) -> None:
                await (app if scope["type"] == "http" else others)(scope, receive, send)

            server.middleware_stack = stack
        await self._bento_app(scope, receive, send)


app = _app()
_QUIET: Final[Any] = {"workers": 1, "metrics": {"enabled": False}, "logging": {"access": {"enabled": False}}}


@bentoml.service(name="empty", **_QUIET)
@bentoml.asgi_app(app, path="/")
class EmptyService:
    """No model, mounted as ours is."""


EmptyService.add_asgi_middleware(OurRoutesFirst)  # type: ignore[attr-defined]


@bentoml.service(name="plain", **_QUIET)
@bentoml.asgi_app(_app(), path="/")
class PlainService:
    """No model, mounted as BentoML's documentation has it."""
