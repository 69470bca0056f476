"""A table of runs as independent processes of this machine, some at a time.

Each is the command `sovit shape run TABLE --only RUN`, which anything that starts commands can start as well. A job
that is done has left its result; the table is brought up to date from the results, so nothing is trained twice.
"""

from __future__ import annotations

import ctypes
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from rich.console import Console

from sovit.errors import ConfigError, SoViTError
from sovit.laws.runs import RESULT, RunResult, RunTable

_PARENT_DEATH_SIGNAL: Final = 1  # PR_SET_PDEATHSIG
_LOOK_SECONDS: Final = 0.2


class RunsFailed(SoViTError):
    """Some runs of a sweep ended with an error; those that did not are in the table."""

    def __init__(self, failed: Sequence[str], of: int, where: str = "") -> None:
        """The names of those that failed; `where` says what tells why."""
        super().__init__(
            f"{len(failed)} of {of} runs failed: {', '.join(failed[:5])}{where}. The same command tries them again."
        )


def run_here(
    table: RunTable, names: Sequence[str], command: Callable[[str], list[str]], jobs: int, console: Console
) -> None:
    """Run jobs as processes of this machine, so many at a time; each writes what it says to RUN/log.

    Ended by a signal, it ends them, and each has saved its state. Raises `RunsFailed` when all have ended.
    """
    waiting, failed = list(names), []
    running: dict[str, subprocess.Popen[bytes]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                name = waiting.pop(0)
                (table.folder / name).mkdir(parents=True, exist_ok=True)
                with (table.folder / name / "log").open("ab") as log:
                    running[name] = subprocess.Popen(
                        [sys.executable, "-m", "sovit", *command(name)],
                        stdout=log,
                        stderr=log,
                        preexec_fn=_end_with_parent,  # noqa: PLW1509 - there are no threads here
                    )
            for name, process in list(running.items()):
                if process.poll() is None:
                    continue
                del running[name]
                words = _ended(table, name, process.returncode)
                if words is None:
                    failed.append(name)
                    words = _last_line(table.folder / name / "log")
                console.print(f"{name}: {words}", highlight=False, markup=False)
            time.sleep(_LOOK_SECONDS)
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()
        with suppress(ConfigError):  # whoever asked for the runs reads the table next, and is told
            table.collect()
    # Another `shape run` of the same table may have ended what this one could not begin.
    failed = [name for name in failed if not (table.folder / name / RESULT).is_file()]
    if failed:
        raise RunsFailed(failed, len(names), f"; {table.folder}/RUN/log says why")


def _ended(table: RunTable, name: str, returncode: int) -> str | None:
    """The result of a run in words, which goes into the table; None for one that failed."""
    try:
        result = None if returncode else table.result(name)
        if result is not None:
            table.collect()
    except ConfigError as error:  # of the table or a result; the other runs go on
        return str(error)
    return None if result is None else told(result)


def _end_with_parent() -> None:
    """Have this process sent SIGTERM when its parent is killed (Linux): nobody else would end it."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(_PARENT_DEATH_SIGNAL, signal.SIGTERM)


def told(result: RunResult) -> str:
    """A result in words."""
    return ", ".join(f"{point.steps:,} steps: error {point.error:.4f}" for point in result.points)


def _last_line(path: Path) -> str:
    lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else "ended without a word"
