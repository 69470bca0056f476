"""When requests are due, and an event loop that wakes in time for them."""

from __future__ import annotations

import asyncio
import random
import selectors
import sys
from select import select


def arrivals(rate: float, seconds: float, seed: int = 0, *, warmup_seconds: float = 0.0, least: int = 0) -> list[float]:
    """Seconds, from the start of what is measured, at which the requests of a Poisson process are due.

    There are `rate` of them in a second on average. Those of the warm-up are below 0. They end at `seconds`, or later:
    not before `least` of them were measured.
    """
    generator = random.Random(seed)
    found: list[float] = []
    measured = 0
    due = generator.expovariate(rate) - warmup_seconds
    while due < seconds or measured < least:
        found.append(due)
        measured += due >= 0
        due += generator.expovariate(rate)
    return found


def punctual_loop() -> asyncio.AbstractEventLoop:
    """An event loop that wakes when it should. asyncio's own rounds every wait up to the next millisecond."""
    if sys.platform != "linux":
        return asyncio.new_event_loop()
    return asyncio.SelectorEventLoop(_Punctual())


if sys.platform == "linux":

    class _Punctual(selectors.EpollSelector):
        """epoll counts whole milliseconds; `select` counts microseconds, and can wait for an epoll's descriptor."""

        def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
            if timeout is not None and timeout > 0:
                select([self.fileno()], [], [], timeout)
                timeout = 0
            return super().select(timeout)
