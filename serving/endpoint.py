"""What every route shares: a request id, errors as problem documents, counts, and a worker that has started."""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from serving.body import BodyTooLarge
from serving.inference import RejectedImages, was_read
from serving.replies import PROBLEM, problem
from serving.worker import Worker
from sovit.errors import Draining, NotReady, Refused, SoViTError, Unauthorized

logger = logging.getLogger(__name__)

_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")
_LINGER_SECONDS: Final = 2.0


@dataclass
class State:
    """What the routes of one process share: the worker, once it has started."""

    worker: Worker | None = None


NeedsWorker = Callable[[Request, Worker], Awaitable[Response]]
MayNeedWorker = Callable[[Request, Worker | None], Awaitable[Response]]


def needs_worker(handler: NeedsWorker) -> MayNeedWorker:
    """A handler that is not called before the worker has started."""

    async def checked(request: Request, worker: Worker | None) -> Response:
        if worker is None:
            raise NotReady("the service is not ready.")
        return await handler(request, worker)

    return checked


def endpoint(state: State, route: str, handler: MayNeedWorker) -> Callable[[Request], Awaitable[Response]]:
    """Wrap a handler for Starlette."""

    async def wrapped(request: Request) -> Response:
        began = time.perf_counter()
        request_id = _request_id(request)
        worker = state.worker
        try:
            response = await handler(request, worker)
        except SoViTError as error:
            if worker is not None and isinstance(error, Refused):
                worker.metrics.rejected.labels(error.reason).inc()
            response = _problem_response(error, request_id, request)
        except ClientDisconnect:
            response = Response(status_code=499)  # nobody is there to read it
        except Exception:
            logger.exception("request %s failed", request_id)
            response = _problem_response(
                SoViTError("something failed on our side; quote the request id."), request_id, request
            )
        response.headers["x-request-id"] = request_id
        if worker is not None:
            worker.metrics.requests.labels(route, response.status_code).inc()
            worker.metrics.request_seconds.labels(route).observe(time.perf_counter() - began)
            if worker.door.draining:
                response.headers["connection"] = "close"
        return response

    return wrapped


async def http_exception(request: Request, exception: Exception) -> Response:
    """Starlette's own refusals (404, 405) in our form."""
    assert isinstance(exception, HTTPException)
    error = SoViTError(
        {404: "no such path.", 405: "this path does not take that method."}.get(exception.status_code, "")
    )
    error.status, error.title = exception.status_code, exception.detail
    request_id = _request_id(request)
    response = _problem_response(error, request_id, request)
    response.headers.update({**(exception.headers or {}), "x-request-id": request_id})
    return response


class _LingeringResponse(Response):
    """An answer before the body was read, on a connection that ends with it.

    The client is still sending, and would not see an answer that comes with the end of its connection: what it sends
    is taken for a while and thrown away, then the connection is closed.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def sender(message: Any) -> None:
            if message["type"] == "http.response.body":
                await send({**message, "more_body": True})
                await self._throw_away(receive)
                message = {"type": "http.response.body", "body": b""}
            await send(message)

        await super().__call__(scope, receive, sender)

    @staticmethod
    async def _throw_away(receive: Receive) -> None:
        try:
            async with asyncio.timeout(_LINGER_SECONDS):
                while (message := await receive())["type"] == "http.request" and message.get("more_body", False):
                    pass
        except TimeoutError:
            pass


def _problem_response(error: SoViTError, request_id: str, request: Request) -> Response:
    items = error.items if isinstance(error, RejectedImages) else None
    headers = {}
    if isinstance(error, Refused):
        headers["retry-after"] = str(error.retry_after)
    if isinstance(error, (Draining, BodyTooLarge)):
        headers["connection"] = "close"
    if isinstance(error, Unauthorized):
        headers["www-authenticate"] = "Bearer"
    ends = "close" in (headers.get("connection"), request.headers.get("connection", "").lower())
    # A client that waits to be told to go on has sent nothing that could be thrown away.
    unread = request.method == "POST" and not was_read(request) and "expect" not in request.headers
    kind = _LingeringResponse if ends and unread else Response
    return kind(problem(error, request_id, items), error.status, headers, PROBLEM)


def _request_id(request: Request) -> str:
    given = request.headers.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
