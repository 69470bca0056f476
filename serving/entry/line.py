"""The line before one model: what is in the house for it, and how fast it is finished."""

from __future__ import annotations

import asyncio
import time
from typing import Final

from serving.entry.rate import ServiceRate

# Of a request's time, what it may spend waiting: its own run, in a whole batch, and what the estimate is wrong by come
# on top.
SHARE_OF_TIME: Final = 0.7


class Line:
    """Counts the requests and images of one model. `seconds_per_image` is what its warm-up found."""

    def __init__(self, seconds_per_image: float) -> None:
        self._rate = ServiceRate(seconds_per_image)
        self._nobody = asyncio.Event()
        self._nobody.set()
        self._requests = 0
        self.images = 0

    @property
    def wait(self) -> float:
        """Seconds until all images in it will be done."""
        return self.images * self._rate.seconds_per_image

    def is_too_long(self, seconds: float) -> bool:
        """Whether a request that has `seconds` would not be finished in them."""
        return bool(self.images) and self.wait > SHARE_OF_TIME * seconds

    def come(self, images: int) -> None:
        """A request with so many images joins."""
        if not self.images:
            self._rate.begin(time.monotonic())
        self._requests += 1
        self.images += images
        self._nobody.clear()

    def leave(self, images: int, finished: int) -> None:
        """It goes, and so many of its images had a result."""
        self._requests -= 1
        self.images -= images
        if finished:
            self._rate.finish(finished, time.monotonic())
        if not self._requests:
            self._nobody.set()

    async def empty(self) -> None:
        """Wait until nobody is in it."""
        await self._nobody.wait()
