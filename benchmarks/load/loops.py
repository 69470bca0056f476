"""Load on a server of images, and what came back: closed loop, or open loop with Poisson arrivals.

    sovit bench load http://127.0.0.1:3000 --images FOLDER --concurrency 16 --seconds 10
    sovit bench load http://127.0.0.1:3000 --images FOLDER --rate 50 --seconds 10 --limit-ms 500

In the closed loop each client sends its next request when the last one is answered. In the open loop requests are sent
when they are due whatever became of those before, and a latency begins when its request was due: a server that stalls
makes all who would have come meanwhile wait (no coordinated omission). The generator may itself be late; that too
counts as latency, and how late it was is told.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.load.clients import Clients, Tally, Target
from benchmarks.load.pacing import arrivals, punctual_loop
from sovit.errors import ConfigError

__all__ = [
    "Decided",
    "Load",
    "Observed",
    "Tally",
    "Target",
    "Tell",
    "closed_loop",
    "jpeg_files",
    "load_of",
    "milliseconds",
    "observe_closed",
    "observe_open",
    "open_loop",
    "percentile",
    "read_images",
]

_SUFFIXES: Final = (".jpg", ".jpeg")
_TELL_SECONDS: Final = 1.0

Tell = Callable[[float, Tally], None]  # is told once a second: seconds since the measured ones began, and their count
Decided = Callable[[Tally, int], bool]  # whether the count says enough, of so many requests that will be measured


@dataclass(frozen=True, kw_only=True)
class Observed:
    """What a run saw. Its warm-up is counted apart.

    `seconds` are from the start of what is measured to its last answer, or to where it was stopped: because it had
    been `decided`, or was `interrupted`. `cpu_seconds` are the generator's own.
    """

    measured: Tally
    warmup: Tally
    seconds: float
    cpu_seconds: float
    decided: bool = False
    interrupted: bool = False


@dataclass(frozen=True, kw_only=True)
class Load:
    """What came back.

    Every request that was due (`offered`) ended in one of: a status, a failed connection, a timeout, it was `unsent`
    because this machine had no connection left, or it is `unfinished` where a run was stopped before its end.
    `seconds` is from the first request to the last answer, `throughput` the 200s in a second of that and `goodput` the
    good ones: what a queue still holds at the end takes its time too. Percentiles are of the 200s, `reject_ms` is the
    median of the 429s. `late_p99_ms` and `late_max_ms` say how late the generator sent what was due in an open loop.
    """

    offered: int
    completed: int
    statuses: dict[str, int]
    connection_failures: int
    timeouts: int
    unsent: int
    unfinished: int
    seconds: float
    throughput: float
    goodput: float
    p50_ms: float | None
    p90_ms: float | None
    p99_ms: float | None
    max_ms: float | None
    reject_ms: float | None
    late_p99_ms: float | None
    late_max_ms: float | None
    cpu_seconds: float

    @property
    def failures(self) -> int:
        """Requests that were not answered with 200."""
        return self.offered - self.unfinished - self.statuses.get("200", 0)


def closed_loop(target: Target, images: Sequence[bytes], *, concurrency: int, seconds: float) -> Load:
    """`concurrency` clients, each with one request under way."""
    return _whole(observe_closed(target, images, concurrency=concurrency, seconds=seconds))


def open_loop(target: Target, images: Sequence[bytes], *, rate: float, seconds: float, seed: int = 0) -> Load:
    """Poisson arrivals, `rate` of them in a second on average."""
    return _whole(observe_open(target, images, rate=rate, seconds=seconds, seed=seed))


def observe_closed(
    target: Target,
    images: Sequence[bytes],
    *,
    concurrency: int,
    seconds: float,
    warmup_seconds: float = 0.0,
    tell: Tell | None = None,
) -> Observed:
    """A closed loop, after a warm-up of the same kind on the same connections."""
    return _run(target, images, partial(_offer_closed, concurrency, warmup_seconds, seconds), tell)


def observe_open(
    target: Target,
    images: Sequence[bytes],
    *,
    rate: float,
    seconds: float,
    seed: int = 0,
    warmup_seconds: float = 0.0,
    least: int = 0,
    decided: Decided | None = None,
    tell: Tell | None = None,
) -> Observed:
    """An open loop of at least `seconds` and `least` requests.

    Arrivals do not pause between the warm-up and what is measured, which so finds the queue as it is under this rate.
    The run is stopped as soon as it is `decided`.
    """
    due = arrivals(rate, seconds, seed, warmup_seconds=warmup_seconds, least=least)
    return _run(target, images, partial(_offer_open, due, warmup_seconds, seconds, decided), tell)


def load_of(observed: Observed) -> Load:
    """Counts, rates and percentiles of a run."""
    tally, seconds = observed.measured, observed.seconds
    ok_ms = milliseconds(tally.latencies.get(HTTPStatus.OK, ()))
    rejected_ms = milliseconds(tally.latencies.get(HTTPStatus.TOO_MANY_REQUESTS, ()))
    late_ms = milliseconds(tally.late)
    return Load(
        offered=tally.offered,
        completed=tally.answered,
        statuses={str(status): len(found) for status, found in sorted(tally.latencies.items()) if found},
        connection_failures=tally.connection_failures,
        timeouts=tally.timeouts,
        unsent=tally.unsent,
        unfinished=tally.offered - tally.ended,
        seconds=seconds,
        throughput=tally.succeeded / seconds if seconds else 0.0,
        goodput=tally.good / seconds if seconds else 0.0,
        p50_ms=percentile(ok_ms, 50),
        p90_ms=percentile(ok_ms, 90),
        p99_ms=percentile(ok_ms, 99),
        max_ms=percentile(ok_ms, 100),
        reject_ms=percentile(rejected_ms, 50),
        late_p99_ms=percentile(late_ms, 99),
        late_max_ms=percentile(late_ms, 100),
        cpu_seconds=observed.cpu_seconds,
    )


def milliseconds(seconds: Sequence[float]) -> NDArray[np.float64]:
    """An array of times."""
    return 1000 * np.array(seconds, dtype=np.float64)


def percentile(values: NDArray[np.float64], percent: float) -> float | None:
    """One of the values that were measured, none between two of them. None where there is none."""
    return float(np.percentile(values, percent, method="inverted_cdf")) if len(values) else None


def jpeg_files(paths: Sequence[Path]) -> list[Path]:
    """The JPEG files among these paths and in these folders, by name. Raises `ConfigError` where there is none."""
    files = [file for path in paths for file in (sorted(path.iterdir()) if path.is_dir() else [path])]
    found = [file for file in files if file.suffix.lower() in _SUFFIXES]
    if not found:
        raise ConfigError(f"there is no JPEG file in {', '.join(map(str, paths))}.")
    return found


def read_images(paths: Sequence[Path]) -> list[bytes]:
    """The contents of the JPEG files among these paths and in these folders."""
    return [file.read_bytes() for file in jpeg_files(paths)]


def _whole(observed: Observed) -> Load:
    if observed.interrupted:
        raise KeyboardInterrupt
    return load_of(observed)


async def _offer_closed(concurrency: int, warmup_seconds: float, seconds: float, clients: Clients) -> float:
    loop = asyncio.get_running_loop()
    stop = 0.0

    def again(pause: float) -> None:
        if loop.time() + pause < stop:
            if pause:
                loop.call_later(pause, clients.send)
            else:
                clients.send()

    clients.next_after = again
    for length, measured in ((warmup_seconds, False), (seconds, True)):
        if measured:
            clients.measure_from(loop.time())
        elif not length:
            continue
        stop = loop.time() + length
        for _ in range(concurrency):
            clients.send()
        await asyncio.sleep(length)
        await clients.idle()
    return seconds


async def _offer_open(
    due: Sequence[float], warmup_seconds: float, seconds: float, decided: Decided | None, clients: Clients
) -> float | None:
    loop = asyncio.get_running_loop()
    since = loop.time() + warmup_seconds
    clients.measure_from(since)
    planned = sum(after >= 0 for after in due)
    for after in due:
        await asyncio.sleep(max(0.0, since + after - loop.time()))
        if decided is not None and decided(clients.measured, planned):
            return None
        clients.send(since + after)
    await clients.idle()
    return seconds


# Offers load until it has come back, and returns the seconds for which it was offered; None where it stopped early.
_Offer = Callable[[Clients], Awaitable[float | None]]


def _run(target: Target, images: Sequence[bytes], offer: _Offer, tell: Tell | None) -> Observed:
    with asyncio.Runner(loop_factory=punctual_loop) as runner:
        return runner.run(_observed(target, images, offer, tell))


async def _observed(target: Target, images: Sequence[bytes], offer: _Offer, tell: Tell | None) -> Observed:
    loop = asyncio.get_running_loop()
    clients = Clients(target, images)
    telling = asyncio.create_task(_telling(clients, tell)) if tell else None
    interrupted, offered_seconds = False, None
    try:
        offered_seconds = await offer(clients)
    except asyncio.CancelledError:  # Ctrl-C: what has come back is kept
        interrupted = True
    now, cpu = loop.time(), time.process_time()
    clients.close()
    if telling:
        telling.cancel()
    end = now - clients.since if offered_seconds is None else clients.last_answer - clients.since
    return Observed(
        measured=clients.measured,
        warmup=clients.warmup,
        seconds=max(offered_seconds or 0.0, end),
        cpu_seconds=cpu - clients.cpu_since,
        decided=not interrupted and offered_seconds is None,
        interrupted=interrupted,
    )


async def _telling(clients: Clients, tell: Tell) -> None:
    while True:
        await asyncio.sleep(_TELL_SECONDS)
        tell(asyncio.get_running_loop().time() - clients.since, clients.measured)
