"""Progress, cancellation and standard error of a TensorRT build."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr
from types import FrameType
from typing import Any, Final

from sovit.progress import progress


@contextmanager
def build_monitor(trt: Any) -> Iterator[Any]:
    """A progress monitor that shows a bar for each phase at the top, and cancels the build on an interrupt.

    TensorRT calls it from several threads, and nothing may be raised into it.
    """
    guard = threading.Lock()

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self, shown: ExitStack) -> None:
            trt.IProgressMonitor.__init__(self)
            self.interrupted = False
            self._phases = Phases(lambda name: shown.enter_context(progress(name, Phases.TOTAL)), shown.close)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._guarded(lambda: self._phases.start(phase_name, parent_phase, num_steps))

        def step_complete(self, phase_name: str, step: int) -> bool:
            self._guarded(lambda: self._phases.step(phase_name, step))
            return not self.interrupted

        def phase_finish(self, phase_name: str) -> None:
            self._guarded(lambda: self._phases.finish(phase_name))

        def _guarded(self, show: Callable[[], None]) -> None:
            try:
                with guard:
                    show()
            except KeyboardInterrupt:
                self.interrupted = True
            except Exception:  # a bar that cannot be drawn must not end minutes of work
                self._phases.hide()

    with ExitStack() as shown:
        yield Monitor(shown)


class Phases:
    """Nested phases as the progress of the one at the top, in parts of `TOTAL`.

    A phase fills the step of its parent that is under way when it starts.
    """

    TOTAL: Final = 1000

    def __init__(self, show: Callable[[str], Callable[[int], None]], end: Callable[[], None]) -> None:
        self._show, self._end = show, end
        self._advance: Callable[[int], None] | None = None
        self._top = ""
        self._done = 0
        self._hidden = False
        self._spans: dict[str, tuple[float, float, int, int]] = {}  # begin, length, steps, steps done

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """Open the bar of a phase at the top, or find a nested one its part."""
        if self._hidden:
            return
        if parent in self._spans:
            begin, length, count, done = self._spans[parent]
            step = length / max(1, count)
            self._spans[name] = (begin + step * min(done, count - 1), step, steps, 0)
        elif self._advance is None:
            self._top, self._done = name, 0
            self._spans[name] = (0.0, 1.0, steps, 0)
            self._advance = self._show(name)

    def step(self, name: str, step: int) -> None:
        """Step `step`, counted from 0, of a phase is done."""
        if name not in self._spans or self._advance is None:
            return
        begin, length, count, _ = self._spans[name]
        self._spans[name] = (begin, length, count, step + 1)
        reached = int(self.TOTAL * min(1.0, begin + length * (step + 1) / max(1, count)))
        if reached > self._done:
            self._advance(reached - self._done)
            self._done = reached

    def finish(self, name: str) -> None:
        """Close the bar with its phase; phases may end before their last step."""
        self._spans.pop(name, None)
        if name == self._top and self._advance is not None:
            self._advance, self._top = None, ""
            self._spans.clear()
            self._end()

    def hide(self) -> None:
        """Show nothing any more."""
        self._hidden = True
        self._advance = None
        self._spans.clear()


@contextmanager
def interrupts_cancel(monitor: Any) -> Iterator[None]:
    """Have SIGINT and SIGTERM cancel the build at its next step.

    Raised in the middle of the library's own code, an interrupt would be taken for a failure of the build.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def cancel(number: int, frame: FrameType | None) -> None:
        monitor.interrupted = True

    before = {number: signal.signal(number, cancel) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep off the terminal what the library itself writes there when an attempt fails that may fail.

    What Python writes to standard error, such as the progress bar, still gets there.
    """
    with ExitStack() as stack:
        try:
            terminal = stack.enter_context(os.fdopen(os.dup(2), "w", encoding="utf-8", errors="replace", buffering=1))
            nowhere = stack.enter_context(open(os.devnull, "wb"))
        except OSError:  # nothing is open there
            yield
            return
        stack.callback(os.dup2, terminal.fileno(), 2)
        os.dup2(nowhere.fileno(), 2)
        stack.enter_context(redirect_stderr(terminal))
        yield
