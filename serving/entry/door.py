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
from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Final

from serving.entry.keys import KeyUse
from serving.entry.line import Line
from sovit.errors import Draining, QueueFull

_JITTER: Final = 0.25  # of a Retry-After, so that those refused together do not come back together


class Door:
    """Counts what is in the house and lets in what it can finish."""

    def __init__(self, *, max_images: int, max_bytes: int) -> None:
        self._max_images = max_images
        self._max_bytes = max_bytes
        self._nobody = asyncio.Event()
        self._nobody.set()
        self.requests = 0
        self.images = 0
        self.bytes = 0
        self.draining = False

    def enter(self, declared_bytes: int, seconds: float, lines: Sequence[Line], use: KeyUse | None) -> Ticket:
        """A ticket for a request that has `seconds` left, if there is room for an image and the declared bytes now.

        `lines` are those it may want to join: one, where the model is known before the body is read. The room is taken
        as they come: a client that announces much and sends nothing keeps nobody out. Raises `Draining`, `QueueFull` or
        `RateLimited`.
        """
        if self.draining:
            raise Draining("the service is shutting down; another instance will take the request.")
        if all(line.is_too_long(seconds) for line in lines):
            raise _too_long(min(lines, key=lambda line: line.wait))
        ticket = Ticket(self, lines)
        ticket.check(1, declared_bytes)
        if use is not None:
            ticket.held.enter_context(use.enter())
        ticket.come()
        return ticket

    async def drain(self) -> None:
        """Let nobody in any more, and wait until all who are in have their replies."""
        self.draining = True
        await self._nobody.wait()

    def come(self) -> None:
        """A request is in."""
        self.requests += 1
        self._nobody.clear()

    def leave(self, images: int, size: int) -> None:
        """A request goes, with all it had."""
        self.requests -= 1
        self.images -= images
        self.bytes -= size
        if not self.requests:
            self._nobody.set()

    def is_full(self, images: int) -> bool:
        """Whether so many more images are too many."""
        return self.images + images > self._max_images

    def is_heavy(self, size: int) -> bool:
        """Whether so many more bytes are too many."""
        return self.bytes + size > self._max_bytes


class Ticket:
    """A request's place in the house, given back when its block ends. `finished` counts its images with a result."""

    def __init__(self, door: Door, lines: Sequence[Line]) -> None:
        self._door = door
        self._lines = lines
        self._line: Line | None = None
        self._images = self._bytes = 0
        self.held = ExitStack()
        self.finished = 0

    def come(self) -> None:
        """The request is in."""
        self._door.come()

    def __enter__(self) -> Ticket:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._door.leave(self._images, self._bytes)
        if self._line is not None:
            self._line.leave(self._images, self.finished)
        self.held.close()

    def read(self, size: int) -> None:
        """So many bytes of the body have come. Raises `QueueFull` when there is no more room for them."""
        self.check(0, size)
        self._door.bytes += size
        self._bytes += size

    def hold(self, line: Line, images: int, seconds: float) -> None:
        """The body is whole, and has so many images for the model of this line. Raises `QueueFull`.

        `seconds` are left: the body took some, and may have asked for less, or for a model that was not known before.
        """
        if line.is_too_long(seconds):
            raise _too_long(line)
        self.check(images, 0)
        self._door.images += images
        self._images = images
        self._line = line
        line.come(images)

    def check(self, images: int, size: int) -> None:
        """Raise `QueueFull` unless there is room for so much more."""
        if self._door.is_full(images):
            raise QueueFull("the queue is full; try again later.", self._retry_after())
        if self._door.is_heavy(size):
            raise QueueFull(
                "the bodies of the requests under way fill the memory for them; try again later.", self._retry_after()
            )

    def _retry_after(self) -> int:
        return _retry_after(min(line.wait for line in self._lines))


def _too_long(line: Line) -> QueueFull:
    return QueueFull("the queue is longer than the request's time; try again later.", _retry_after(line.wait))


def _retry_after(wait: float) -> int:
    return max(1, math.ceil(wait * random.uniform(1, 1 + _JITTER)))
