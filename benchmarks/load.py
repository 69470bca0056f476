"""Load on a server of images, and what came back: closed loop, or open loop with Poisson arrivals.

    python -m benchmarks.load http://127.0.0.1:3000 --images FOLDER --concurrency 16 --seconds 10
    python -m benchmarks.load http://127.0.0.1:3000 --images FOLDER --rate 50 --seconds 10 --limit-ms 500

In the closed loop each client sends its next request when the last one is answered. In the open loop requests are sent
when they are due whatever became of those before, and a latency begins when its request was due: a server that stalls
makes all who would have come meanwhile wait (no coordinated omission). The generator may itself be late, by up to a
millisecond where it is not out of CPU, and that too counts as latency.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import random
import re
import sys
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.conditions import conditions
from sovit.errors import ConfigError
from sovit.jsonio import write_json

MAX_CONNECTIONS: Final = 2_000
_PAUSE_SECONDS: Final = 0.01  # of a client whose connection failed: a server that is gone must not make it spin
_CONTENT_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)")
_SUFFIXES: Final = (".jpg", ".jpeg")


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where requests go. An answer is good when it is a 200 within `limit_ms`."""

    url: str
    path: str = "/embed"
    accept: str = "application/x-npy"
    timeout_seconds: float = 30.0
    limit_ms: float = 1000.0


@dataclass(frozen=True, kw_only=True)
class Load:
    """What came back.

    Every request that was due (`offered`) ended in one of: a status, a failed connection, a timeout, or it was `unsent`
    because all connections were taken. `seconds` is from the first request to the last answer, `throughput` the 200s in
    a second of that and `goodput` the good ones: what a queue still holds at the end takes its time too. Percentiles
    are of the 200s, `reject_ms` is the median of the 429s. `cpu_seconds` are the generator's own.
    """

    offered: int
    completed: int
    statuses: dict[str, int]
    connection_failures: int
    timeouts: int
    unsent: int
    seconds: float
    throughput: float
    goodput: float
    p50_ms: float | None
    p90_ms: float | None
    p99_ms: float | None
    max_ms: float | None
    reject_ms: float | None
    cpu_seconds: float

    @property
    def failures(self) -> int:
        """Requests that were not answered with 200."""
        return self.offered - self.statuses.get("200", 0)


def closed_loop(target: Target, images: Sequence[bytes], *, concurrency: int, seconds: float) -> Load:
    """`concurrency` clients, each with one request under way."""
    return asyncio.run(_measured(target, images, partial(_offer_closed, concurrency, seconds)))


def open_loop(target: Target, images: Sequence[bytes], *, rate: float, seconds: float, seed: int = 0) -> Load:
    """Poisson arrivals, `rate` of them in a second on average."""
    return asyncio.run(_measured(target, images, partial(_offer_open, rate, seconds, seed)))


def read_images(paths: Sequence[Path]) -> list[bytes]:
    """The JPEG files among these paths and in these folders."""
    files = [file for path in paths for file in (sorted(path.iterdir()) if path.is_dir() else [path])]
    images = [file.read_bytes() for file in files if file.suffix.lower() in _SUFFIXES]
    if not images:
        raise ConfigError(f"there is no JPEG file in {', '.join(map(str, paths))}.")
    return images


class _Connection(asyncio.Protocol):
    """One kept connection with at most one request under way."""

    def __init__(self, clients: _Clients) -> None:
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
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._received += data
        if not self._length and not self._read_head():
            return
        if len(self._received) >= self._length and self._timer is not None:
            status = int(self._received[9:12])
            self._received.clear()
            self._length = 0
            self._timer.cancel()
            self._timer = None
            if self._closing:
                self._transport.close()
            self._clients.answered(None if self._closing else self, status, self._due)

    def connection_lost(self, error: Exception | None) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
        self._clients.lost(self, under_way=timer is not None)

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
        self._clients.timed_out()


class _Clients:
    """All connections of a run, and the count of what happened on them."""

    def __init__(self, target: Target, images: Sequence[bytes]) -> None:
        self._target = target
        self._requests = itertools.cycle([_request(target, image) for image in images])
        self._connections: set[_Connection] = set()
        self._free: list[_Connection] = []
        self._connecting: set[asyncio.Task[None]] = set()
        self._time = asyncio.get_running_loop().time
        self.next_after: Callable[[float], None] = lambda pause: None
        self.latencies: dict[int, list[float]] = defaultdict(list)
        self.offered = self.under_way = self.connection_failures = self.timeouts = self.unsent = 0
        self.last_answer = 0.0

    def send(self, due: float) -> None:
        """Send a request on a free connection, or on a new one."""
        self.offered += 1
        if self._free:
            self.under_way += 1
            self._free.pop().send(next(self._requests), due, self._target.timeout_seconds)
        elif len(self._connections) + len(self._connecting) < MAX_CONNECTIONS:
            self.under_way += 1
            task = asyncio.create_task(self._connect(due))
            self._connecting.add(task)
            task.add_done_callback(self._connecting.discard)
        else:
            self.unsent += 1

    def answered(self, connection: _Connection | None, status: int, due: float) -> None:
        self.last_answer = self._time()
        self.latencies[status].append(self.last_answer - due)
        if connection is not None:
            self._free.append(connection)
        self._ended(0.0)

    def lost(self, connection: _Connection, *, under_way: bool) -> None:
        self._connections.discard(connection)
        if connection in self._free:
            self._free.remove(connection)
        if under_way:
            self.connection_failures += 1
            self._ended(_PAUSE_SECONDS)

    def timed_out(self) -> None:
        self.timeouts += 1
        self._ended(_PAUSE_SECONDS)

    async def idle(self) -> None:
        while self.under_way:
            await asyncio.sleep(_PAUSE_SECONDS)

    def close(self) -> None:
        for connection in list(self._connections):
            connection.close()

    async def _connect(self, due: float) -> None:
        address, timeout = urlsplit(self._target.url), self._target.timeout_seconds
        try:
            async with asyncio.timeout_at(due + timeout):
                _, connection = await asyncio.get_running_loop().create_connection(
                    partial(_Connection, self), address.hostname or "", address.port or 80
                )
        except TimeoutError:
            self.timed_out()
        except OSError:
            self.connection_failures += 1
            self._ended(_PAUSE_SECONDS)
        else:
            self._connections.add(connection)
            connection.send(next(self._requests), due, timeout)

    def _ended(self, pause: float) -> None:
        self.under_way -= 1
        self.next_after(pause)


def _request(target: Target, image: bytes) -> bytes:
    head = (
        f"POST {target.path} HTTP/1.1\r\nhost: {urlsplit(target.url).netloc}\r\naccept: {target.accept}\r\n"
        f"content-type: image/jpeg\r\ncontent-length: {len(image)}\r\n\r\n"
    )
    return head.encode() + image


async def _offer_closed(concurrency: int, seconds: float, clients: _Clients) -> float:
    """Offer load; the seconds for which there was any."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    stop = began + seconds

    def again(pause: float) -> None:
        if loop.time() + pause < stop:
            if pause:
                loop.call_later(pause, lambda: clients.send(loop.time()))
            else:
                clients.send(loop.time())

    clients.next_after = again
    for _ in range(concurrency):
        clients.send(loop.time())
    await asyncio.sleep(seconds)
    await clients.idle()
    return max(seconds, clients.last_answer - began)


async def _offer_open(rate: float, seconds: float, seed: int, clients: _Clients) -> float:
    loop, generator = asyncio.get_running_loop(), random.Random(seed)
    began = loop.time()
    after = generator.expovariate(rate)
    while after < seconds:
        await asyncio.sleep(max(0.0, began + after - loop.time()))
        clients.send(began + after)
        after += generator.expovariate(rate)
    return seconds


async def _measured(target: Target, images: Sequence[bytes], offer: Callable[[_Clients], Awaitable[float]]) -> Load:
    clients = _Clients(target, images)
    began, cpu = asyncio.get_running_loop().time(), time.process_time()
    offered_seconds = await offer(clients)
    await clients.idle()
    cpu = time.process_time() - cpu
    clients.close()
    ok_ms = 1000 * np.array(clients.latencies[HTTPStatus.OK])
    rejected_ms = 1000 * np.array(clients.latencies[HTTPStatus.TOO_MANY_REQUESTS])
    took = max(offered_seconds, clients.last_answer - began)
    return Load(
        offered=clients.offered,
        completed=sum(map(len, clients.latencies.values())),
        statuses={str(status): len(found) for status, found in sorted(clients.latencies.items()) if found},
        connection_failures=clients.connection_failures,
        timeouts=clients.timeouts,
        unsent=clients.unsent,
        seconds=took,
        throughput=len(ok_ms) / took,
        goodput=int((ok_ms <= target.limit_ms).sum()) / took,
        p50_ms=_percentile(ok_ms, 50),
        p90_ms=_percentile(ok_ms, 90),
        p99_ms=_percentile(ok_ms, 99),
        max_ms=_percentile(ok_ms, 100),
        reject_ms=_percentile(rejected_ms, 50),
        cpu_seconds=cpu,
    )


def _percentile(values_ms: np.ndarray, percent: float) -> float | None:
    # One of the values that were measured, none between two of them.
    return float(np.percentile(values_ms, percent, method="inverted_cdf")) if len(values_ms) else None


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--images", type=Path, nargs="+", required=True, help="JPEG files, or folders of them")
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument("--concurrency", type=int, help="closed loop with that many clients")
    kind.add_argument("--rate", type=float, help="open loop with that many requests in a second")
    parser.add_argument("--seconds", type=float, default=10.0)
    for name in ("path", "accept", "timeout_seconds", "limit_ms"):
        default = getattr(Target(url=""), name)
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    parser.add_argument("--out", type=Path, help="write the result as JSON there")
    arguments = parser.parse_args()
    before = conditions()
    target = Target(
        url=arguments.url,
        path=arguments.path,
        accept=arguments.accept,
        timeout_seconds=arguments.timeout_seconds,
        limit_ms=arguments.limit_ms,
    )
    images = read_images(arguments.images)
    if arguments.rate:
        found = open_loop(target, images, rate=arguments.rate, seconds=arguments.seconds)
    else:
        found = closed_loop(target, images, concurrency=arguments.concurrency, seconds=arguments.seconds)
    if arguments.out:
        asked = {"rate": arguments.rate, "concurrency": arguments.concurrency, "seconds": arguments.seconds}
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(
            arguments.out,
            {"benchmark": "load", "conditions": before, "target": asdict(target), "asked": asked, **asdict(found)},
        )
    table = Table("", "")
    for name, value in asdict(found).items():
        table.add_row(name, f"{value:.2f}" if isinstance(value, float) else str(value))
    Console().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
