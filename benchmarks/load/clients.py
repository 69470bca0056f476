"""The connections of a load generator, and the count of what became of the requests on them."""

from __future__ import annotations

import asyncio
import errno
import itertools
import math
import re
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from typing import Final
from urllib.parse import quote, urlsplit

MAX_CONNECTIONS: Final = 2_000
_PAUSE_SECONDS: Final = 0.01  # of a client whose connection failed: a server that is gone must not make it spin
_CONTENT_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)")
# This machine has no descriptor, port or memory left for one more connection: no failure of the server's.
_OWN_FAILURES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.EADDRNOTAVAIL, errno.ENOBUFS, errno.ENOMEM})


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where requests go. An answer is good when it is a 200 within `limit_ms`. Without a `model`, the first served."""

    url: str
    path: str = "/embed"
    accept: str = "application/x-npy"
    timeout_seconds: float = 30.0
    limit_ms: float = 1000.0
    model: str = ""
    api_key: str = field(default="", repr=False)


@dataclass(kw_only=True)
class Tally:
    """What became of requests. Times are in seconds: latencies by status, and how `late` what was due was sent.

    `good` are the 200s within `limit_seconds`. `unsent` found no connection free and none to be had.
    """

    limit_seconds: float
    offered: int = 0
    good: int = 0
    connection_failures: int = 0
    timeouts: int = 0
    unsent: int = 0
    latencies: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    late: list[float] = field(default_factory=list)

    @property
    def answered(self) -> int:
        """Requests with an answer, of whatever status."""
        return sum(map(len, self.latencies.values()))

    @property
    def succeeded(self) -> int:
        """Requests answered with 200."""
        return len(self.latencies.get(HTTPStatus.OK, ()))

    @property
    def failed(self) -> int:
        """Requests that ended in anything but a 200."""
        return self.ended - self.succeeded

    @property
    def ended(self) -> int:
        """Requests of which it is known what became of them."""
        return self.answered + self.connection_failures + self.timeouts + self.unsent

    def add(self, status: int, latency: float) -> None:
        """Count an answer."""
        self.latencies[status].append(latency)
        self.good += status == HTTPStatus.OK and latency <= self.limit_seconds


class Clients:
    """All connections of a run. What is due before the time given to `measure_from` is warm-up, and counted apart."""

    def __init__(self, target: Target, images: Sequence[bytes]) -> None:
        self._target = target
        self._requests = itertools.cycle([_request(target, image) for image in images])
        self._connections: set[_Connection] = set()
        self._free: list[_Connection] = []
        self._connecting: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self.next_after: Callable[[float], None] = lambda pause: None
        self.warmup = Tally(limit_seconds=target.limit_ms / 1000)
        self.measured = Tally(limit_seconds=target.limit_ms / 1000)
        self.since = math.inf
        self.last_answer = 0.0
        self.under_way = 0
        self._closed = False
        self.cpu_since = time.process_time()

    def measure_from(self, since: float) -> None:
        """Requests due at this time of the loop, or later, are measured. So is the CPU time of the generator."""
        self.since = since
        self._loop.call_at(since, self._note_cpu)

    def send(self, due: float | None = None) -> None:
        """Send a request, due at that time of the loop or just now, on a free connection or on a new one."""
        if self._closed:
            return
        now = self._loop.time()
        tally = self._tally(now if due is None else due)
        tally.offered += 1
        if due is None:
            due = now
        else:
            tally.late.append(now - due)
        if self._free:
            self.under_way += 1
            self._free.pop().send(next(self._requests), due, self._target.timeout_seconds)
        elif len(self._connections) + len(self._connecting) < MAX_CONNECTIONS:
            self.under_way += 1
            task = asyncio.create_task(self._connect(due))
            self._connecting.add(task)
            task.add_done_callback(self._connecting.discard)
        else:
            tally.unsent += 1

    def answered(self, connection: _Connection | None, status: int, due: float) -> None:
        self.last_answer = self._loop.time()
        self._tally(due).add(status, self.last_answer - due)
        if connection is not None:
            self._free.append(connection)
        self._ended(0.0)

    def lost(self, connection: _Connection, due: float | None) -> None:
        """A connection ended; `due` is that of the request under way on it."""
        self._connections.discard(connection)
        if connection in self._free:
            self._free.remove(connection)
        if due is not None:
            self._tally(due).connection_failures += 1
            self._ended(_PAUSE_SECONDS)

    def timed_out(self, due: float) -> None:
        self._tally(due).timeouts += 1
        self._ended(_PAUSE_SECONDS)

    async def idle(self) -> None:
        """Wait until no request is under way."""
        while self.under_way:
            await asyncio.sleep(_PAUSE_SECONDS)

    def close(self) -> None:
        """End all connections. Requests still under way are counted as nothing."""
        self._closed = True
        for task in self._connecting:
            task.cancel()
        for connection in list(self._connections):
            connection.close()

    async def _connect(self, due: float) -> None:
        address, timeout = urlsplit(self._target.url), self._target.timeout_seconds
        try:
            async with asyncio.timeout_at(due + timeout):
                _, connection = await self._loop.create_connection(
                    partial(_Connection, self), address.hostname or "", address.port or 80
                )
        except TimeoutError:
            self.timed_out(due)
        except OSError as error:
            if error.errno in _OWN_FAILURES:
                self._tally(due).unsent += 1
            else:
                self._tally(due).connection_failures += 1
            self._ended(_PAUSE_SECONDS)
        else:
            self._connections.add(connection)
            connection.send(next(self._requests), due, timeout)

    def _tally(self, due: float) -> Tally:
        return self.warmup if due < self.since else self.measured

    def _note_cpu(self) -> None:
        self.cpu_since = time.process_time()

    def _ended(self, pause: float) -> None:
        self.under_way -= 1
        self.next_after(pause)


class _Connection(asyncio.Protocol):
    """One kept connection with at most one request under way."""

    def __init__(self, clients: Clients) -> None:
        self._clients = clients
        self._received = bytearray()
        self._length = 0  # of the whole reply, 0 while its head is incomplete
        self._closing = False
        self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None  # runs while a request is under way

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def send(self, request: bytes, due: float, timeout_seconds: float) -> None:
        self._due = due
        self._timer = asyncio.get_running_loop().call_at(due + timeout_seconds, self._give_up)
        if self._transport.is_closing():
            self.connection_lost(None)
        else:
            self._transport.write(request)

    def close(self) -> None:
        self._stop_timer()
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._received += data
        if not self._length and not self._read_head():
            return
        if len(self._received) >= self._length and self._stop_timer():
            status = int(self._received[9:12])
            self._received.clear()
            self._length = 0
            if self._closing:
                self._transport.close()
            self._clients.answered(None if self._closing else self, status, self._due)

    def connection_lost(self, error: Exception | None) -> None:
        self._clients.lost(self, self._due if self._stop_timer() else None)

    def _stop_timer(self) -> bool:
        """Whether a request was under way."""
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
        return timer is not None

    def _read_head(self) -> bool:
        head, end, _ = self._received.partition(b"\r\n\r\n")
        if not end:
            return False
        head = head.lower()
        length = _CONTENT_LENGTH.search(head)
        if length is None:
            self._transport.abort()  # a reply without a length cannot be told from one that was cut short
            return False
        self._length = len(head) + len(end) + int(length[1])
        self._closing = b"\r\nconnection: close" in head
        return True

    def _give_up(self) -> None:
        self._timer = None
        self._transport.abort()
        self._clients.timed_out(self._due)


def _request(target: Target, image: bytes) -> bytes:
    address = urlsplit(target.url)
    path = f"{address.path.rstrip('/')}{target.path}{f'?model={quote(target.model)}' if target.model else ''}"
    key = f"authorization: Bearer {target.api_key}\r\n" if target.api_key else ""
    head = (
        f"POST {path} HTTP/1.1\r\nhost: {address.netloc}\r\naccept: {target.accept}\r\n{key}"
        f"content-type: image/jpeg\r\ncontent-length: {len(image)}\r\n\r\n"
    )
    return head.encode() + image
