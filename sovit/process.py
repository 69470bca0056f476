"""Start a server as a real process, wait until it is ready, and stop it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from sovit.client import Client
from sovit.errors import ServiceError

_STOP_SECONDS: Final = 15.0


def free_port() -> int:
    """A TCP port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving(
    command: Sequence[str],
    url: str,
    log: Path,
    *,
    env: dict[str, str] | None = None,
    folder: Path | None = None,
    timeout_seconds: float = 60.0,
) -> Iterator[float]:
    """Run `python -m COMMAND` in `folder` (the checkout) until the block ends; yields the seconds it took to be ready.

    Its output goes to `log`. Raises `ServiceError` with the last lines of it when the server ends or does not get
    ready. The whole process group is stopped in any case.
    """
    began = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=folder or Path(__file__).resolve().parent.parent,
            env={**os.environ, **(env or {})},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        with Client(url) as client:
            _wait(process, client, began + timeout_seconds, log)
        yield time.monotonic() - began
    finally:
        _stop(process)


def sovit_serve(artifact: Path, port: int, *options: str) -> list[str]:
    """The command that serves an artifact on a port."""
    return ["sovit", "serve", str(artifact.resolve()), "--port", str(port), *options]


def _wait(process: subprocess.Popen[bytes], client: Client, deadline: float, log: Path) -> None:
    while not client.ready():
        if process.poll() is not None or time.monotonic() > deadline:
            tail = log.read_text(encoding="utf-8", errors="replace")[-2000:]
            state = "ended" if process.poll() is not None else "was not ready in time"
            raise ServiceError(f"the service {state}; it last said:\n{tail}")
        time.sleep(0.02)


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(_STOP_SECONDS)
    # What is left of the group: a supervisor that died leaves workers behind.
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
