"""Requests to their endpoints by one look into a table, before Starlette's router and middleware would go to work.

Paths with a name in them, such as `/v2/models/{model}`, are looked for where the table has nothing.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from http import HTTPStatus
from typing import NamedTuple

from starlette.applications import Starlette
from starlette.types import ASGIApp, Receive, Scope, Send

from serving.endpoint import refuse
from serving.process.loader import Loader
from serving.wire.protocol import use_bounded_protocol
from serving.wire.replies import WriteError, problem


class Route(NamedTuple):
    """A path, the one method it takes, and what answers it. GET answers HEAD too: servers leave the body out."""

    path: str
    method: str
    endpoint: ASGIApp


@asynccontextmanager
async def _no_lifespan(_: Starlette) -> AsyncIterator[None]:
    yield


class Application(Starlette):
    """A Starlette application, for its lifespan, whose requests go straight to their endpoints.

    `errors` write what is wrong with a path or a method, by prefix; problem documents where there is none.
    """

    def __init__(
        self,
        loader: Loader,
        routes: Iterable[Route],
        lifespan: Callable[[Starlette], AbstractAsyncContextManager[None]] = _no_lifespan,
        errors: Mapping[str, WriteError] | None = None,
    ) -> None:
        super().__init__(lifespan=lifespan)
        self.state.loader = loader
        self.paths: dict[str, dict[str, ASGIApp]] = {}
        self._templates: dict[str, re.Pattern[str]] = {}
        self._errors = errors or {}
        self._wrong_method: dict[str, ASGIApp] = {}
        self._loader = loader
        self.add(routes)

    def add(self, routes: Iterable[Route]) -> None:
        """Take more routes."""
        for path, method, endpoint in routes:
            methods = ("GET", "HEAD") if method == "GET" else (method,)
            if "{" in path:
                self._templates[path] = re.compile(re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>[^/]+)", re.escape(path)))
            self.paths.setdefault(path, {}).update(dict.fromkeys(methods, endpoint))
            self._wrong_method[path] = refuse(
                self._loader,
                HTTPStatus.METHOD_NOT_ALLOWED,
                "this path does not take that method.",
                {"allow": ", ".join(self.paths[path])},
                self.errors_of(path),
            )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                use_bounded_protocol(receive)
            await super().__call__(scope, receive, send)
            return
        path = scope["path"]
        if path not in self.paths or path in self._templates:  # a client may write the braces of a template
            path = self._template_of(path, scope)
        if (methods := self.paths.get(path)) is not None:
            endpoint = methods.get(scope["method"]) or self._wrong_method[path]
        else:
            endpoint = refuse(self._loader, HTTPStatus.NOT_FOUND, "no such path.", {}, self.errors_of(path))
        await endpoint(scope, receive, send)

    def errors_of(self, path: str) -> WriteError:
        """The form of errors below a path: that of the API whose prefix it has."""
        return next((write for prefix, write in self._errors.items() if path.startswith(prefix)), problem)

    def _template_of(self, path: str, scope: Scope) -> str:
        """The template that a path fits, whose names it puts into the scope; the path itself where there is none."""
        for template, pattern in self._templates.items():
            if (found := pattern.fullmatch(path)) is not None:
                scope["path_params"] = found.groupdict()
                return template
        return path
