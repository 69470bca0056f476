"""Every open connection of a port: when its client's time is up, and what is closed before descriptors run out.

A connection that waits for its client has a deadline, whatever it waits for. One sweep looks at all of them, so that a
request costs no timer of its own.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Literal, Protocol, get_args

logger = logging.getLogger(__name__)

NEVER: Final = math.inf  # a deadline
PIPELINED_SECONDS: Final = 0.001  # between two pipelined requests of all connections
SWEEP_SECONDS: Final = 0.5
OPERATIONS_CONNECTIONS: Final = 32
_RESERVED_DESCRIPTORS: Final = 64  # for files, the worker's own pipes, and newcomers that are about to be closed
_LEAST_CONNECTIONS: Final = 8
_EVICTED_SHARE: Final = 0.05  # of the connections, closed at once when the table is full
_CALM_SHARE: Final = 0.8  # of the limit: below it, the next shortage is logged again
_UNLIMITED: Final = 1 << 20

Reason = Literal["head", "body", "idle", "send", "malformed", "descriptors", "refused"]


@dataclass(frozen=True, kw_only=True)
class ConnectionLimits:
    """What one connection may take. How long it may be idle is uvicorn's `timeout_keep_alive`.

    `body_seconds` run from the end of the head. What the service has written must be read within `send_seconds`, and a
    second more for each `send_bytes_per_second`. After an error the connection stays for `linger_seconds`, or until the
    client has sent `dropped_bytes` more, so that it sees the response.
    """

    head_bytes: int = 32_768
    url_bytes: int = 8_192
    url_escapes: int = 400  # as many as a model's name may need; each costs more than a plain byte
    header_bytes: int = 8_192
    headers: int = 100
    pipelined: int = 16
    head_seconds: float = 10.0
    body_seconds: float = 40.0
    send_seconds: float = 10.0
    send_bytes_per_second: int = 16_384
    linger_seconds: float = 1.0
    dropped_bytes: int = 1 << 20


class Connection(Protocol):
    """What the table asks of a connection. Times are the event loop's."""

    last_active: float
    loop: asyncio.AbstractEventLoop

    def check(self, now: float) -> None:
        """Close it if its client's time is up."""

    def waits_for_client(self) -> bool:
        """Whether it is the client's turn: to send, or to read."""

    def close_now(self, reason: Reason) -> None:
        """Close it without waiting for anything."""


class ConnectionTable:
    """The connections of one port. `limit` is how many there may be; `closed` counts those closed, by reason.

    `hint` says how to have more.
    """

    def __init__(self, limit: int = _UNLIMITED, hint: str = "raise the limit of open files (ulimit -n)") -> None:
        self.limit = limit
        self._hint = hint
        self.closed: Counter[str] = Counter(dict.fromkeys(get_args(Reason), 0))
        self._connections: set[Connection] = set()
        self._sweeping: asyncio.AbstractEventLoop | None = None  # the loop that a sweep is due on
        self._is_full = False  # since the last warning
        self._next_turn = 0.0

    def __len__(self) -> int:
        return len(self._connections)

    def add(self, connection: Connection) -> bool:
        """Take a newcomer, closing those that have kept us waiting longest if the table is full.

        False where nothing can be closed, because every client waits for an answer.
        """
        if len(self._connections) >= self.limit and not self._make_room():
            return False
        self._connections.add(connection)
        loop = connection.loop
        if self._sweeping is not loop:
            self._sweep_later(loop)
        return True

    def discard(self, connection: Connection) -> None:
        """The connection is gone."""
        self._connections.discard(connection)

    def next_turn(self, now: float) -> float:
        """When the next pipelined request may begin: they share a rate, lest they crowd out those who wait for answers.

        A client that pipelines keeps the event loop busy for as long as it likes, with a request in every turn.
        """
        turn = max(now, self._next_turn)
        self._next_turn = turn + PIPELINED_SECONDS
        return turn

    def _make_room(self) -> bool:
        waiting = sorted(
            (connection for connection in self._connections if connection.waits_for_client()),
            key=lambda connection: connection.last_active,
        )
        evicted = waiting[: max(1, int(_EVICTED_SHARE * self.limit))]
        if not self._is_full:
            self._is_full = True
            logger.warning(
                "connection limit reached (%d open): closing the longest-idle connections to admit new ones; %s",
                len(self._connections),
                self._hint,
            )
        for connection in evicted:
            self._connections.discard(connection)
            connection.close_now("descriptors")
        return bool(evicted)

    def _sweep_later(self, loop: asyncio.AbstractEventLoop) -> None:
        self._sweeping = loop
        loop.call_later(SWEEP_SECONDS, self._sweep, loop)

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        for connection in list(self._connections):
            connection.check(now)
        if len(self._connections) < _CALM_SHARE * self.limit:
            self._is_full = False
        if self._connections:
            self._sweep_later(loop)
        else:
            self._sweeping = None


def connections_that_fit(open_connections: int) -> int:
    """How many connections the process's limit of open files leaves room for, beside what else it has open."""
    try:
        import resource

        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    except ImportError:  # Windows has no such limit
        return _UNLIMITED
    if limit == resource.RLIM_INFINITY:
        return _UNLIMITED
    others = 0
    with suppress(OSError):
        others = len(os.listdir("/dev/fd")) - open_connections
    room = limit - max(0, others) - _RESERVED_DESCRIPTORS - OPERATIONS_CONNECTIONS
    return max(_LEAST_CONNECTIONS, min(room, _UNLIMITED))
