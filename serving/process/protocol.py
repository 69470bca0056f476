"""uvicorn's HTTP protocol with the limits it lacks: on a request's head, in bytes and in time, and on pipelining.

They hold before any key is looked at, so that nobody can fill a worker's memory or hold its connections with requests
that never become one.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

import uvicorn.config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES: Final = 65_536
HEAD_SECONDS: Final = 10.0
MAX_PIPELINED: Final = 16


class BoundedProtocol(HttpToolsProtocol):
    """One connection. Whoever breaks a limit is disconnected."""

    _head_number = 0
    _head_bytes: int | None = None  # of a head that is not complete; None between heads
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._begin_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_head()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        head = self._head_number
        super().data_received(data)
        if self._head_bytes is not None and head == self._head_number:  # all of the data belong to one head
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self.transport.close()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head_number += 1
        self._begin_head()

    def on_headers_complete(self) -> None:
        self._end_head()
        super().on_headers_complete()
        if len(self.pipeline) > MAX_PIPELINED:
            self.transport.close()

    def _begin_head(self) -> None:
        if self._head_bytes is None:
            self._head_bytes = 0
            self._head_timer = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def _end_head(self) -> None:
        self._head_bytes = None
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


def use_bounded_protocol() -> None:
    """Have every uvicorn server of this process that chooses its protocol itself choose this one."""
    uvicorn.config.HTTP_PROTOCOLS["auto"] = f"{__name__}:{BoundedProtocol.__name__}"
