"""The memory that images under way will take while they are decoded: counted from their headers, before they are.

A file of two kilobytes may hold fifty million pixels: neither the number of images nor the bytes of a body bound what
they cost. Small requests have a share of their own, so that they do not wait behind the large ones.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from typing import Final, NamedTuple

from sovit.errors import QueueFull, TooLarge

_SMALL_SHARE: Final = 1 / 8  # of the budget, for small requests alone
_SMALL: Final = 1 / 32  # of the budget: a request that takes no more is small


class _Waiting(NamedTuple):
    size: int
    future: asyncio.Future[None]


class _Share:
    """A part of the budget. Requests wait in the order they came."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self.waiting: deque[_Waiting] = deque()

    def admit(self) -> None:
        """Let in those who waited, as far as there is room."""
        while self.waiting and self.used + self.waiting[0].size <= self.limit:
            size, future = self.waiting.popleft()
            if not future.done():
                self.used += size
                future.set_result(None)


class DecodeMemory:
    """A budget of bytes. Requests reserve on the event loop; decoders give back from their threads."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._small = _Share(int(limit * _SMALL_SHARE))
        self._large = _Share(limit - self._small.limit)
        self._lock = threading.Lock()

    @property
    def used(self) -> int:
        """Bytes reserved now."""
        return self._small.used + self._large.used

    @property
    def largest(self) -> int:
        """The most that one request may reserve."""
        return self._large.limit

    async def reserve(self, size: int, seconds: float, retry_after: int) -> Reservation:
        """Wait until `size` bytes are free, at most `seconds`.

        Raises `TooLarge` for more than there ever are, `QueueFull` when they did not become free in time.
        """
        if size > self.largest:
            raise TooLarge(
                f"decoding these images takes {_readable(size)}, over the limit of {_readable(self.largest)} for a "
                "request; send fewer at a time, or smaller ones."
            )
        share = self._small if size <= _SMALL * self.limit else self._large
        with self._lock:
            if not size or (not share.waiting and share.used + size <= share.limit):
                share.used += size
                return Reservation(self, share)
            waiting = _Waiting(size, asyncio.get_running_loop().create_future())
            share.waiting.append(waiting)
        try:
            async with asyncio.timeout(seconds):
                await waiting.future
        except BaseException as error:
            with self._lock:
                if waiting.future.done() and not waiting.future.cancelled():
                    share.used -= size  # it became free in the same moment
                elif waiting in share.waiting:
                    share.waiting.remove(waiting)
                share.admit()
            if isinstance(error, TimeoutError):
                raise QueueFull("the decode memory is full; try again later.", retry_after) from error
            raise
        return Reservation(self, share)

    def give_back(self, share: _Share, size: int) -> None:
        """An image of `size` bytes is decoded. Called from any thread."""
        with self._lock:
            share.used -= size
            waiting = share.waiting[0].future if share.waiting else None
        if waiting is not None:
            waiting.get_loop().call_soon_threadsafe(self._admit, share)

    def _admit(self, share: _Share) -> None:
        with self._lock:
            share.admit()


class Reservation(NamedTuple):
    """What a request holds of the budget: each of its images gives back its own part."""

    memory: DecodeMemory
    share: _Share

    def give_back(self, size: int) -> None:
        """An image of `size` bytes is decoded, or will not be."""
        if size:
            self.memory.give_back(self.share, size)


def _readable(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"
