"""Who is let in: every limit that is decided before a request's body is read.

A request gets a ticket, which holds a place for its images and room for its bytes until its reply is sent. Whoever
would have to wait longer than its own time is told so at once: an answer that comes too late is work for nothing.
All of it runs on the event loop's thread.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from contextlib import ExitStack
from types import TracebackType
from typing import Final

from serving.keys import KeyUse
from serving.rate import ServiceRate
from sovit.errors import Draining, QueueFull

# Of a request's time, what it may spend waiting: its own run, in a whole batch, and what the estimate is wrong by come
# on top.
_SHARE_OF_TIME: Final = 0.7
_JITTER: Final = 0.25  # of a Retry-After, so that those refused together do not come back together


class Door:
    """Counts what is in the house and lets in what it can finish."""

    def __init__(self, *, max_images: int, max_bytes: int, seconds_per_image: float) -> None:
        self._max_images = max_images
        self._max_bytes = max_bytes
        self._rate = ServiceRate(seconds_per_image)
        self._nobody = asyncio.Event()
        self._nobody.set()
        self.requests = 0
        self.images = 0
        self.bytes = 0
        self.draining = False

    def enter(self, declared_bytes: int, seconds: float, use: KeyUse | None) -> Ticket:
        """A ticket for one image and the declared bytes of a request that has `seconds` left.

        Raises `Draining`, `QueueFull` or `RateLimited`.
        """
        if self.draining:
            raise Draining("the service is shutting down; another instance will take the request.")
        wait = self.images * self._rate.seconds_per_image
        if self.images and wait > _SHARE_OF_TIME * seconds:
            raise QueueFull("the queue is longer than the request's time; try again later.", self._retry_after())
        self._check(1, declared_bytes)
        held = ExitStack()
        if use is not None:
            held.enter_context(use.enter())
        return Ticket(self, declared_bytes, held)

    async def drain(self) -> None:
        """Let nobody in any more, and wait until all who are in have their replies."""
        self.draining = True
        await self._nobody.wait()

    def _check(self, images: int, size: int) -> None:
        if self.images + images > self._max_images:
            raise QueueFull("the queue is full; try again later.", self._retry_after())
        if self.bytes + size > self._max_bytes:
            raise QueueFull(
                "the bodies of the requests under way fill the memory for them; try again later.", self._retry_after()
            )

    def _retry_after(self) -> int:
        wait = self.images * self._rate.seconds_per_image
        return max(1, math.ceil(wait * random.uniform(1, 1 + _JITTER)))

    def _take(self, images: int, size: int) -> None:
        if not self.images:
            self._rate.begin(time.monotonic())
        self.images += images
        self.bytes += size

    def _come(self) -> None:
        self.requests += 1
        self._nobody.clear()

    def _leave(self, images: int, size: int, finished: int) -> None:
        self.requests -= 1
        self.images -= images
        self.bytes -= size
        if finished:
            self._rate.finish(finished, time.monotonic())
        if not self.requests:
            self._nobody.set()


class Ticket:
    """A request's place in the house, given back when its block ends. `finished` counts its images with a result."""

    def __init__(self, door: Door, size: int, held: ExitStack) -> None:
        self._door = door
        self._held = held
        self._images = 1
        self._bytes = size
        self._read = 0
        self.finished = 0
        door._come()
        door._take(1, size)

    def __enter__(self) -> Ticket:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._door._leave(self._images, self._bytes, self.finished)
        self._held.close()

    def read(self, size: int) -> None:
        """So many more bytes of the body have come. Raises `QueueFull` when an undeclared body outgrows the room."""
        self._read += size
        if (more := self._read - self._bytes) > 0:
            self._door._check(0, more)
            self._door._take(0, more)
            self._bytes += more

    def hold(self, images: int) -> None:
        """The request turned out to have so many images. Raises `QueueFull` when there is no place for all of them."""
        more = images - self._images
        self._door._check(more, 0)
        self._door._take(more, 0)
        self._images = images
