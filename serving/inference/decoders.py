"""Threads that decode images, a request's turn after another's: one with many images does not keep the others waiting.

What a general pool does for every call, a future and a few locks, would cost as much as the rest of the way to the
engine.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable

logger = logging.getLogger(__name__)

Call = Callable[[], None]


class Decoders:
    """Runs calls in `threads` threads: one of each group in turn, in the order they came. Calls handle their errors."""

    def __init__(self, threads: int) -> None:
        self._groups: deque[deque[Call]] = deque()
        self._changed = threading.Condition()
        self._open = True
        self._threads = [
            threading.Thread(target=self._run, name=f"decode-{number}", daemon=True) for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, calls: Iterable[Call]) -> None:
        """Run these, a request's, as threads are free."""
        group = deque(calls)
        with self._changed:
            self._groups.append(group)
            self._changed.notify(len(group))

    def close(self) -> None:
        """Finish what was submitted and end the threads."""
        with self._changed:
            self._open = False
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while (call := self._next()) is not None:
            try:
                call()
            except Exception:  # its caller waits for it no longer than its request's time
                logger.exception("a decoder failed")
            del call  # holds an image

    def _next(self) -> Call | None:
        with self._changed:
            while not self._groups:
                if not self._open:
                    return None
                self._changed.wait()
            group = self._groups.popleft()
            call = group.popleft()
            if group:
                self._groups.append(group)
            return call
