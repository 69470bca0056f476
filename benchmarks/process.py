"""A process of its own for every piece of work: what it took is free again when it ends, whichever way it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from typing import Any, Final

from sovit.errors import EXIT_USAGE, ConfigError, ServiceError

_ROOT: Final = Path(__file__).parents[1]
_SAID: Final = 300  # characters


def run_child(module: str, order: Any, *, threads: int = 0) -> dict[str, Any]:
    """Let `python -m MODULE ORDER` do its work; returns what it printed as a line of JSON, nothing for none.

    With `threads` numpy's products take so many; engines have a setting of their own.

    Raises `ConfigError` with what it said when it found bad input, and `ServiceError` when it failed.
    """
    words = [sys.executable, "-m", module, json.dumps(asdict(order))]
    environment = {**os.environ, **({"OPENBLAS_NUM_THREADS": str(threads)} if threads else {})}
    done = subprocess.run(words, cwd=_ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode == -signal.SIGKILL:
        raise ServiceError("the system ended its process, most likely because the memory ran out.")
    if done.returncode == EXIT_USAGE:
        raise ConfigError(done.stderr.strip())
    if done.returncode:
        said = done.stderr.strip()[-_SAID:].replace("\n", " ") or "it said nothing"
        raise ServiceError(f"its process ended with status {done.returncode}: {said}")
    # Libraries print what they like.
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    found: dict[str, Any] = json.loads(lines[-1]) if lines else {}
    return found


@contextmanager
def ended_like_ctrl_c() -> Iterator[None]:
    """Whoever ends this process by SIGTERM gets what Ctrl-C gives: what is finished is kept, nothing is left behind."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def first_to_go() -> None:
    """Let the system end this process before others when memory runs out (Linux)."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def peak_memory() -> int:
    """The most bytes that were ever resident of this process, pages of mapped files included."""
    status = Path("/proc/self/status")
    if status.is_file():  # Linux; there getrusage would count what the process it was forked from had
        lines = status.read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    return getrusage(RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
