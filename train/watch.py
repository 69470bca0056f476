"""Watching a run: where the time goes, a line or a bar with what matters, and the log."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, Literal

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from sovit.errors import SoViTError
from train.board import Board, kind_of

Part = Literal["data", "forward_backward", "optimizer"]
_LINE_SECONDS: Final = 10.0


class Clock:
    """Seconds since the last look, and how many of them went into each part. What is left over is the loop's own."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._parts: dict[Part, float] = {}

    @contextmanager
    def measuring(self, part: Part) -> Iterator[None]:
        """Count the block's time to a part."""
        began = time.perf_counter()
        yield
        self._parts[part] = self._parts.get(part, 0.0) + time.perf_counter() - began

    def look(self) -> tuple[float, dict[Part, float]]:
        """Seconds, and their fractions by part; then everything begins at 0 again."""
        now = time.perf_counter()
        seconds = now - self._began
        found = {part: spent / seconds for part, spent in self._parts.items()}
        self._began, self._parts = now, {}
        return seconds, found

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The block's time counts nowhere."""
        began = time.perf_counter()
        yield
        self._began += time.perf_counter() - began


class Log:
    """`log.jsonl`: a line of JSON each for steps, evaluations and images that could not be used."""

    def __init__(self, path: Path, step: int, board: Board | None) -> None:
        """Open it to go on after `step`: what a run that was killed wrote beyond its last state is taken back."""
        self._board, self._path = board, path
        self.before: list[dict[str, Any]] = []
        if path.is_file() and step:
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    entry = json.loads(line)
                    if entry["step"] <= step:
                        self.before.append(entry)
                except (ValueError, KeyError, TypeError):
                    continue  # a line that a kill cut short
        # Beside it first: a full disk or a kill in between leaves the old one.
        aside = path.with_name(path.name + ".new")
        with self._told():
            aside.write_text("".join(json.dumps(entry) + "\n" for entry in self.before), encoding="utf-8")
            aside.replace(path)
            self._file = path.open("a", encoding="utf-8")

    def lacks(self, step: int, kind: str) -> bool:
        """Whether no earlier start wrote an entry of this kind at the step."""
        return not any(entry["step"] == step and kind_of(entry) == kind for entry in self.before)

    def write(self, entry: dict[str, Any]) -> None:
        """Append an entry, at once. Raises `SoViTError` where the disk is full."""
        with self._told():
            self._file.write(json.dumps(entry) + "\n")
            self._file.flush()
        if self._board is not None:
            self._board.write(entry)

    def close(self) -> None:
        """Close the file, and the board's."""
        with suppress(OSError):  # told when it was written
            self._file.close()
        if self._board is not None:
            self._board.close()

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise SoViTError(
                f"{self._path} could not be written ({error.strerror}): mend that, and the same command goes on from "
                "the last state."
            ) from error


class Screen:
    """A bar on a terminal, a line every ten seconds elsewhere."""

    def __init__(self, console: Console, steps: int, done: int) -> None:
        self._console, self._steps = console, steps
        self._told = 0.0
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(), TimeRemainingColumn(), console=console, refresh_per_second=1,
            disable=not console.is_terminal or console.quiet,
        )  # fmt: skip
        self._task = self._bar.add_task("training", total=steps, completed=done, note="")
        self._bar.start()

    def moved(self, step: int, note: str) -> None:
        """So many steps are done; the note is shown where there is one."""
        self._bar.update(self._task, completed=step)
        if note:
            self._bar.update(self._task, note=note)
        due = time.monotonic() - self._told >= _LINE_SECONDS or step == self._steps
        if note and due and not self._console.is_terminal:
            self._told = time.monotonic()
            self._console.print(f"step {step}/{self._steps}  {note}", highlight=False)

    def tell(self, text: str) -> None:
        """A line that stays."""
        self._console.print(escape(text), highlight=False)

    def close(self) -> None:
        """Take the bar away."""
        self._bar.stop()
