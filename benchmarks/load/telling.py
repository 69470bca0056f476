"""Tell what a load generator does while it does it, at next to no cost to what it measures."""

from __future__ import annotations

import shutil
import sys
from typing import TextIO

from benchmarks.load.clients import Tally
from benchmarks.load.loops import Tell

_LINE_SECONDS = 10


class Telling:
    """One line on a terminal, written over once a second; elsewhere a plain line every ten seconds.

    A bar that draws itself in a thread would hold the interpreter for milliseconds, which the generator would send late
    by. Writes to standard error.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._terminal = self._stream.isatty()

    def line(self, text: str) -> None:
        """A line that stays."""
        self._stream.write(f"{self._clear()}{text}\n")
        self._stream.flush()

    def run(self, label: str, seconds: float) -> Tell:
        """A function to tell of a run that measures for about so many seconds."""
        calls = 0

        def tell(elapsed: float, tally: Tally) -> None:
            nonlocal calls
            calls += 1
            text = f"{label}: warming up"
            if elapsed >= 0:
                text = f"{label}: {elapsed:.0f} of {seconds:.0f} s, {tally.offered} sent, {tally.failed} failed"
            if self._terminal:
                self._stream.write(f"{self._clear()}{text[: shutil.get_terminal_size().columns - 1]}")
                self._stream.flush()
            elif calls % _LINE_SECONDS == 0:
                self.line(text)

        return tell

    def close(self) -> None:
        """Take the last line away."""
        self._stream.write(self._clear())
        self._stream.flush()

    def _clear(self) -> str:
        return "\r\x1b[K" if self._terminal else ""
