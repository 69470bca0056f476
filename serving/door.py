"""Who is let in: every limit that is decided before a request's body is read.

A request gets a ticket, which holds room for its bytes and places for its images until its reply is made. Whoever would
have to wait longer than its own time is told so at once: an answer that comes too late is work for nothing. Only images
whose bodies are whole count for that: a slow sender keeps nobody waiting.
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
        """A ticket for a request that has `seconds` left, if there is room for an image and the declared bytes now.

        The room is taken as they come: a client that announces much and sends nothing keeps nobody out. Raises
        `Draining`, `QueueFull` or `RateLimited`.
        """
        if self.draining:
            raise Draining("the service is shutting down; another instance will take the request.")
        if self.images and self._wait > _SHARE_OF_TIME * seconds:
            raise QueueFull("the queue is longer than the request's time; try again later.", self._retry_after())
        self._check(1, declared_bytes)
        held = ExitStack()
        if use is not None:
            held.enter_context(use.enter())
        return Ticket(self, held)

    async def drain(self) -> None:
        """Let nobody in any more, and wait until all who are in have their replies."""
        self.draining = True
        await self._nobody.wait()

    @property
    def _wait(self) -> float:
        return self.images * self._rate.seconds_per_image

    def _check(self, images: int, size: int) -> None:
        if self.images + images > self._max_images:
            raise QueueFull("the queue is full; try again later.", self._retry_after())
        if self.bytes + size > self._max_bytes:
            raise QueueFull(
                "the bodies of the requests under way fill the memory for them; try again later.", self._retry_after()
            )

    def _retry_after(self) -> int:
        return max(1, math.ceil(self._wait * random.uniform(1, 1 + _JITTER)))

    def _take(self, images: int, size: int) -> None:
        self._check(images, size)
        if images and not self.images:
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

    def __init__(self, door: Door, held: ExitStack) -> None:
        self._door = door
        self._held = held
        self._images = self._bytes = 0
        self.finished = 0
        door._come()

    def __enter__(self) -> Ticket:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._door._leave(self._images, self._bytes, self.finished)
        self._held.close()

    def read(self, size: int) -> None:
        """So many bytes of the body have come. Raises `QueueFull` when there is no more room for them."""
        self._door._take(0, size)
        self._bytes += size

    def hold(self, images: int) -> None:
        """The body is whole and has so many images. Raises `QueueFull` when there is no place for all of them."""
        self._door._take(images, 0)
        self._images = images
