"""SIGTERM and Ctrl-C: a wish to stop that the loop hears after its step, or the end at once where there is no loop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final

from sovit.errors import SoViTError

STOPPING: Final = (signal.SIGTERM, signal.SIGINT)


class Stopped(SoViTError):
    """A signal ended the run after its state was saved. `signal` is its number."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.signal = number
        self.exit_code = 0 if number == signal.SIGTERM else 128 + number


class Interrupted(Exception):
    """A signal came in the middle of something that can be begun anew, to any of the processes."""


class StopNow(BaseException):
    """SIGTERM where nothing is lost by ending at once. Like KeyboardInterrupt, no error handler may swallow it."""


@contextmanager
def ending_at_once() -> Iterator[None]:
    """SIGTERM is raised in the block as `StopNow`."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        raise StopNow

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def noted_signals() -> Iterator[list[int]]:
    """The numbers of these signals as they come; a second one ends the process as it would without us."""
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def note(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

    before: dict[int, Any] = {number: signal.getsignal(number) for number in STOPPING}
    for number in before:
        signal.signal(number, note)
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
