"""Threads that decode images, over one queue.

A request's images each pass through here: what a general pool does for every call, a future and a few locks, costs as
much as the rest of the way to the engine.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from queue import SimpleQueue

logger = logging.getLogger(__name__)

Call = Callable[[], None]


class Decoders:
    """Runs calls in `threads` threads, in the order they come. A call handles its own errors."""

    def __init__(self, threads: int) -> None:
        self._calls: SimpleQueue[Call | None] = SimpleQueue()
        self._threads = [
            threading.Thread(target=self._run, name=f"decode-{number}", daemon=True) for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, call: Call) -> None:
        """Run this when a thread is free."""
        self._calls.put(call)

    def close(self) -> None:
        """Finish what was submitted and end the threads."""
        for _ in self._threads:
            self._calls.put(None)
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            try:
                call()
            except Exception:  # its caller waits for it no longer than its request's time
                logger.exception("a decoder failed")
            del call  # holds an image
