"""What every route shares: a record with its id, errors in the form of its face, counts, traces, logs."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any, Final

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from serving.observing.log import log_request
from serving.observing.record import Record, new_request_id
from serving.observing.trace import TRACEPARENT, PassOn
from serving.process.loader import Loader
from serving.wire.body import BodyTooLarge
from serving.wire.replies import RejectedImages, WriteError, problem
from serving.worker import Worker
from sovit.errors import Draining, NotReady, Refused, SoViTError, Unauthorized

logger = logging.getLogger(__name__)

_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")
_LINGER_SECONDS: Final = 2.0
_CLIENT_GONE: Final = 499  # of the metrics only
_PASS_ON: Final = PassOn()


class NoRoute(SoViTError):
    """A path that there is not, or a method that it does not take."""

    def __init__(self, status: HTTPStatus, detail: str, headers: dict[str, str]) -> None:
        super().__init__(detail)
        self.status, self.title, self.headers = int(status), status.phrase, headers


NeedsWorker = Callable[[Request, Worker], Awaitable[Response]]
MayNeedWorker = Callable[[Request, Worker | None], Awaitable[Response]]


def needs_worker(handler: NeedsWorker) -> MayNeedWorker:
    """A handler that is not called before the worker has started."""

    async def checked(request: Request, worker: Worker | None) -> Response:
        if worker is None:
            raise NotReady("the service is not ready.")
        return await handler(request, worker)

    return checked


def endpoint(
    loader: Loader, route: str, handler: MayNeedWorker, write_error: WriteError = problem, *, told: bool = False
) -> ASGIApp:
    """Make an ASGI application of a handler.

    `told` is for what clients come for: it makes spans, and lines in the log where these are wanted.
    """

    async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive, send)
        record = request.state.record = Record(_request_id(request), time.monotonic())
        worker = loader.worker
        tracer = worker.tracer if worker is not None and told else _PASS_ON
        trace = tracer.begin(request.headers, request.method, route, record.began)
        response: Response | None
        try:
            response = await handler(request, worker)
        except SoViTError as error:
            if worker is not None and told and isinstance(error, Refused):
                worker.metrics.rejected.labels(error.reason).inc()
            response = _error_response(error, record, request, write_error)
        except ClientDisconnect:
            response = None  # nobody is there to read one
        except Exception:
            logger.exception("request failed", extra={"request_id": record.request_id})
            failure = SoViTError("something failed on our side; quote the request id.")
            response = _error_response(failure, record, request, write_error)
        now = time.monotonic()
        seconds = now - record.began
        status = _CLIENT_GONE if response is None else response.status_code
        if worker is not None:
            worker.metrics.on_request(route, status, seconds, record)
            if told and status == HTTPStatus.OK:
                worker.recent.on_reply(seconds)
            if told and worker.config.log_requests:
                log_request(record, request.method, route, status, seconds, trace.traceparent)
        trace.end(record, status)
        if response is None:
            return
        response.headers["x-request-id"] = record.request_id
        response.headers[TRACEPARENT] = trace.traceparent
        if record.stages:
            response.headers["server-timing"] = record.server_timing(now)
        if (worker is not None and worker.door.draining) or _is_endless(request) or _awaits_go_ahead(request):
            response.headers["connection"] = "close"
        try:
            await response(scope, receive, send)
        except RuntimeError as error:
            # The server has closed the connection, over something in the request that is no HTTP, and not told us yet.
            if "closed" not in str(error):
                raise

    return wrapped


def refuse(
    loader: Loader, status: HTTPStatus, detail: str, headers: dict[str, str], write_error: WriteError
) -> ASGIApp:
    """Answer what no route takes."""

    async def handler(_: Request, __: Worker | None) -> Response:
        raise NoRoute(status, detail, headers)

    return endpoint(loader, "other", handler, write_error)


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


def _error_response(error: SoViTError, record: Record, request: Request, write: WriteError) -> Response:
    items = error.items if isinstance(error, RejectedImages) else {}
    headers = dict(error.headers) if isinstance(error, NoRoute) else {}
    if isinstance(error, Refused):
        headers["retry-after"] = str(error.retry_after)
    if isinstance(error, (Draining, BodyTooLarge)):
        headers["connection"] = "close"
    if isinstance(error, Unauthorized):
        headers["www-authenticate"] = "Bearer"
    ends = "close" in (headers.get("connection"), request.headers.get("connection", "").lower())
    # A client that waits to be told to go on has sent nothing that could be thrown away.
    unread = request.method == "POST" and not record.was_read and "expect" not in request.headers
    kind = _LingeringResponse if unread and (ends or _is_endless(request)) else Response
    try:
        reply = write(error, record.request_id, items)
    except Exception:  # whatever a message holds: nobody goes without an answer
        logger.exception("an error could not be written", extra={"request_id": record.request_id})
        reply = problem(SoViTError("something failed on our side; quote the request id."), record.request_id, {})
    return kind(reply.content, reply.status, headers, reply.media_type)


def _is_endless(request: Request) -> bool:
    """Whether what is unread of a body may go on for ever: the server would go on to read it after the answer."""
    return not request.state.record.was_read and "transfer-encoding" in request.headers


def _awaits_go_ahead(request: Request) -> bool:
    """Whether a client was never told to send its body: what it sends next may be the body or a new request."""
    return not request.state.record.was_read and "expect" in request.headers


def _request_id(request: Request) -> str:
    given = request.headers.get("x-request-id", "")
    return given if given and _REQUEST_ID.fullmatch(given) else new_request_id()
