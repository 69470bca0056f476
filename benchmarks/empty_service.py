"""A BentoML service that does nothing: the floor under every service BentoML starts."""

from __future__ import annotations

import bentoml
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route


async def _hello(_: Request) -> PlainTextResponse:
    return PlainTextResponse("hello")


@bentoml.service(name="empty", workers=1)
@bentoml.asgi_app(Starlette(routes=[Route("/hello", _hello)]), path="/")
class EmptyService:
    """No model, one route."""
