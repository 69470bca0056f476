"""uvicorn's HTTP protocol within bounds: on heads, on time, and on what one connection can make the service answer.

All of it holds before any key is looked at. Each request gets exactly one response, in order; after an error or after
a request that closes the connection nothing more is read. An offered upgrade (h2c, WebSocket, TLS) is ignored, as
RFC 9110, section 7.8 allows: the request is read as if the offer had not been made.
"""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from typing import Any, ClassVar, Final

import httptools
import uvicorn
import uvicorn.config
from starlette.types import Receive
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from serving.observing.record import new_request_id
from serving.wire.connections import (
    NEVER,
    OPERATIONS_CONNECTIONS,
    ConnectionLimits,
    ConnectionTable,
    Reason,
    connections_that_fit,
)
from serving.wire.replies import WriteError, problem
from sovit.errors import BadRequest, HeadersTooLarge, NotReady, Refused, SoViTError, UrlTooLong

_OFFER: Final = frozenset({b"upgrade", b"http2-settings"})  # headers, and tokens of Connection
_LIMITS: Final = ConnectionLimits()
_MALFORMED: Final = BadRequest("this is not a valid HTTP/1.1 request.")
_NO_PROXY: Final = BadRequest("this service is not a proxy: it does not take CONNECT.")
_URL_TOO_LONG: Final = UrlTooLong(
    f"the URL is over {_LIMITS.url_bytes:,} bytes, or has more than {_LIMITS.url_escapes} percent-encoded ones."
)
_HEAD_TOO_LARGE: Final = HeadersTooLarge(
    f"the request's headers are over the limit: {_LIMITS.headers} headers, {_LIMITS.header_bytes:,} bytes each, "
    f"{_LIMITS.head_bytes:,} bytes in all."
)
_NO_ROOM: Final = NotReady("the service is at its connection limit.")


class _OverLimit(Exception):
    """Ends parsing from within a callback of the parser."""


class BoundedProtocol(HttpToolsProtocol):
    """One connection. `table` holds all of them; `limits` may be set before the server takes connections.

    `errors_of` gives the form of errors below a path, for what is refused before it reaches an application.
    """

    limits: ClassVar[ConnectionLimits] = _LIMITS
    table: ClassVar[ConnectionTable] = ConnectionTable()
    errors_of: ClassVar[Callable[[str], WriteError] | None] = None

    last_active = 0.0
    _read_by = NEVER  # when the client must have sent what is waited for
    _waits_for: Reason = "head"
    _send_by = NEVER  # when the client must have read what was written
    _ended = False  # nothing that comes is read any more
    _last_words: SoViTError | None = None  # behind the responses that are due before it
    _over_limit: SoViTError | None = None
    _in_message = _in_body = _upgrade_offered = False
    _messages = 0
    _headers = _head_bytes = _without_body = _dropped = 0

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.last_active = self.loop.time()
        self._wait_for("head", self.limits.head_seconds)
        if not self.table.add(self):
            self._ended = True
            transport.write(self._response(_NO_ROOM))
            self._close("refused")

    def connection_lost(self, exc: Exception | None) -> None:
        self.table.discard(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self.last_active = self.loop.time()
        if self._ended:
            self._drop(len(data))
            return
        messages, self._without_body = self._messages, self._without_body + len(data)
        while data and not self._ended:
            try:
                self.parser.feed_data(data)
                break
            except httptools.HttpParserUpgrade as offer:
                data = self._head_without_upgrade() + data[offer.args[0] :]
            except httptools.HttpParserError:
                if not self._ended:  # else it is what follows a request that closes the connection
                    self._refuse(self._over_limit or _MALFORMED)
        # One head, or chunk extensions and trailers, over many packets: the parser gathers them where we do not see it.
        if not self._ended and messages == self._messages and self._without_body > self.limits.head_bytes:
            self._refuse(_HEAD_TOO_LARGE)

    def on_message_begin(self) -> None:
        if self._ended:
            raise _OverLimit
        super().on_message_begin()
        self._messages += 1
        self._in_message = True
        self._headers = self._head_bytes = self._without_body = 0
        self._wait_for("head", self.limits.head_seconds)

    def on_url(self, url: bytes) -> None:
        self.url += url
        if len(self.url) > self.limits.url_bytes or self.url.count(b"%") > self.limits.url_escapes:
            self._over_limit = _URL_TOO_LONG
            raise _OverLimit

    def on_header(self, name: bytes, value: bytes) -> None:
        limits = self.limits
        self._headers += 1
        self._head_bytes += len(name) + len(value)
        if (
            self._headers > limits.headers
            or len(value) > limits.header_bytes
            or self._head_bytes > limits.head_bytes
        ):  # fmt: skip
            self._over_limit = _HEAD_TOO_LARGE
            raise _OverLimit
        if self._in_body:
            return  # a trailer: only the parser reads those that frame a message
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade():
            self._upgrade_offered = True
            return
        super().on_headers_complete()
        self._in_body = True
        self._headers = self._head_bytes = self._without_body = 0
        self._wait_for("body", self.limits.body_seconds)
        if len(self.pipeline) > self.limits.pipelined:
            self._answer_no_more()

    def on_body(self, body: bytes) -> None:
        self._without_body = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self._upgrade_offered:
            return
        super().on_message_complete()
        self._in_message = self._in_body = False
        if not self.parser.should_keep_alive():  # a trailer may say so too
            self.cycle.keep_alive = False
        self._ended = self._ended or not self.cycle.keep_alive
        if self.cycle.response_complete and self._ended:
            self.transport.close()
        elif self.cycle.response_complete:
            self._wait_for("idle", self.timeout_keep_alive)
        else:
            self._read_by = NEVER

    def on_response_complete(self) -> None:
        """In place of uvicorn's, whose timer for idle connections ends with the next byte, whatever it is."""
        self.server_state.total_requests += 1
        self.last_active = now = self.loop.time()
        self._expect_to_be_read()
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self.loop.call_at(self.table.next_turn(now), self._start_next)
        elif self._last_words is not None:
            self._end_with(self._last_words)
        elif not self._in_message:
            self._wait_for("idle", self.timeout_keep_alive)

    def _start_next(self) -> None:
        if self.pipeline and not self.transport.is_closing():
            self._start_asgi_task(*self.pipeline.pop())

    def pause_writing(self) -> None:
        super().pause_writing()
        self._expect_to_be_read()

    def check(self, now: float) -> None:
        """Close the connection if its client's time is up."""
        if self._send_by != NEVER:
            if self.transport.get_write_buffer_size() == 0:
                self._send_by = NEVER
            elif now >= self._send_by:
                self.close_now("send")
                return
        if now >= self._read_by:
            if self.flow.read_paused and not self._ended:  # it is not the client who keeps us waiting
                self._read_by = now + self.limits.head_seconds
            else:
                self._close(self._waits_for)

    def waits_for_client(self) -> bool:
        """Whether it is the client's turn: to send, or to read; or it has sent more than is being answered."""
        return self._read_by != NEVER or self.flow.write_paused or bool(self.pipeline)

    def close_now(self, reason: Reason) -> None:
        """Close the connection without waiting for what is still to be read by the client."""
        self._ended = True
        self.table.closed[reason] += 1
        self.transport.abort()

    def _wait_for(self, what: Reason, seconds: float) -> None:
        self._waits_for = what
        self._read_by = self.loop.time() + seconds

    def _expect_to_be_read(self) -> None:
        """Give the client time for all that is written. Nothing is written for one that reads nothing for long."""
        limits = self.limits
        seconds = limits.send_seconds + self.transport.get_write_buffer_size() / limits.send_bytes_per_second
        deadline = self.loop.time() + seconds
        self._send_by = deadline if self._send_by == NEVER else max(self._send_by, deadline)

    def _close(self, reason: Reason) -> None:
        """Close the connection when the client has read what was written, or its time for that is up."""
        self._ended = True
        self._read_by = NEVER
        self._expect_to_be_read()
        self.table.closed[reason] += 1
        self.transport.close()

    def _refuse(self, error: SoViTError) -> None:
        """Answer what is no request, after the requests before it, and read nothing more."""
        self._ended = True
        self.flow.resume_reading()  # to drop what comes: a paused transport does not notice that its client has gone
        cycle = self.cycle
        if self._in_body:
            if cycle.response_started:  # whoever sent it has had its response
                self._close("malformed")
                return
            if self.pipeline:
                self.pipeline.popleft()  # where the newest is
                self._last_words = error
                return
            cycle.disconnected = True
            cycle.message_event.set()
        elif cycle is not None and not cycle.response_complete:
            self._last_words = error
            self._read_by = NEVER
            return
        self._end_with(error)

    def _answer_no_more(self) -> None:
        """Leave the request that is one too many, and what follows it, to another connection: close after the rest."""
        self._ended = True
        self.pipeline.popleft()
        self.cycle = self.pipeline[0][0]
        self.cycle.keep_alive = False
        self._in_message = self._in_body = False
        self._read_by = NEVER
        raise _OverLimit

    def _drop(self, size: int) -> None:
        """Leave unread what comes after the end."""
        self._dropped += size
        if self._dropped > self.limits.dropped_bytes:
            if self.cycle is None or self.cycle.response_complete:
                self.transport.abort()
            else:
                self.transport.pause_reading()  # the answer that is due still goes out

    def _end_with(self, error: SoViTError) -> None:
        """Write the last response. The client may be sending still: one that is cut off would not see it."""
        self.transport.write(self._response(error))
        self._wait_for("malformed", self.limits.linger_seconds)

    def _response(self, error: SoViTError) -> bytes:
        """A whole response for a request that never became one."""
        path = getattr(self, "url", b"").partition(b"?")[0].decode("latin-1")
        request_id = new_request_id()
        reply = (type(self).errors_of or (lambda _: problem))(path)(error, request_id, {})
        lines = [
            f"HTTP/1.1 {reply.status} {HTTPStatus(reply.status).phrase}",
            f"content-type: {reply.media_type}",
            f"content-length: {len(reply.content)}",
            f"x-request-id: {request_id}",
            "connection: close",
            *([f"retry-after: {error.retry_after}"] if isinstance(error, Refused) else []),
        ]
        return "\r\n".join([*lines, "", ""]).encode() + reply.content

    def _head_without_upgrade(self) -> bytes:
        """The head just parsed without the upgrade it offers, for a parser that has not stopped there."""
        self._upgrade_offered = False
        method, version = self.parser.get_method(), self.parser.get_http_version()
        if method == b"CONNECT":
            self._refuse(_NO_PROXY)
            return b""
        if sum(value.count(b",") for name, value in self.headers if name == b"connection") > self.limits.headers:
            self._refuse(_HEAD_TOO_LARGE)
            return b""
        head = [b"%b %b HTTP/%b" % (method, self.url, version.encode())]
        for name, value in self.headers:
            kept = value
            if name == b"connection":
                tokens = [token.strip() for token in value.split(b",")]
                kept = b", ".join(token for token in tokens if token.lower() not in _OFFER)
            if kept and name not in _OFFER:
                head.append(b"%b: %b" % (name, kept))
        self.parser = httptools.HttpRequestParser(self)
        return b"\r\n".join([*head, b"", b""])


class OperationsProtocol(BoundedProtocol):
    """A connection to the operations port, which has room of its own."""

    table = ConnectionTable(OPERATIONS_CONNECTIONS, "this port is for probes and Prometheus alone")


def use_bounded_protocol(receive: Receive | None = None) -> None:
    """Have the uvicorn servers of this process use the bounded protocol.

    Those that choose their protocol later take it from uvicorn's table. One that runs already, and calls its
    application's lifespan with this `receive`, is told: it makes its first connection after that.
    """
    uvicorn.config.HTTP_PROTOCOLS["auto"] = f"{__name__}:{BoundedProtocol.__name__}"
    server = getattr(getattr(receive, "__self__", None), "config", None)
    if isinstance(server, uvicorn.Config):
        server.http_protocol_class = BoundedProtocol


def connection_tables() -> dict[str, ConnectionTable]:
    """The tables of open connections, by port."""
    return {"service": BoundedProtocol.table, "operations": OperationsProtocol.table}


def fit_connections(timeout_seconds: float) -> None:
    """Bound connections by the files that may be open, and bodies by the time that a request may take."""
    BoundedProtocol.table.limit = connections_that_fit(sum(map(len, connection_tables().values())))
    BoundedProtocol.limits = ConnectionLimits(body_seconds=timeout_seconds + _LIMITS.head_seconds)
