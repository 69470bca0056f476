"""Told to stop, the service answers newcomers with 503 until everything it accepted is done, and only then ends.

The server would close its listener at once, but under a supervisor the listening socket lives on in the parent:
newcomers would wait in its backlog and be reset at the end. So requests are refused one by one while others finish, and
the last act is to shut the socket down for every process that holds it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import stat
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from types import FrameType
from typing import Any

from serving.endpoint import State


@asynccontextmanager
async def stop_when_drained(state: State) -> AsyncIterator[None]:
    """Put a drain before the server's own handling of SIGTERM and SIGINT, until the block ends.

    A second SIGINT, from an impatient terminal, does not wait.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # a test's server: signals are not its business
        return
    loop = asyncio.get_running_loop()
    servers_own: dict[int, Any] = {}
    draining: list[asyncio.Task[None]] = []
    interrupted: list[int] = []

    async def drain_then(number: int) -> None:
        if state.worker is not None:
            await state.worker.door.drain()
        servers_own[number](number, None)

    def begin(number: int) -> None:
        if not draining:
            draining.append(loop.create_task(drain_then(number)))

    def on_signal(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and interrupted:
            servers_own[number](number, frame)
        elif number == signal.SIGINT:
            interrupted.append(number)
        loop.call_soon_threadsafe(begin, number)

    for number in (signal.SIGTERM, signal.SIGINT):
        if callable(handler := signal.getsignal(number)):
            servers_own[number] = handler
            signal.signal(number, on_signal)
    listeners = _inherited_listeners()
    try:
        yield
    finally:
        for listener in listeners:
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()


def _inherited_listeners() -> list[socket.socket]:
    """Copies of the listening sockets that the parent has opened for this process."""
    found = []
    for name in os.listdir("/dev/fd"):
        with suppress(OSError):  # the listing's own descriptor is gone by now
            if not stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                continue
            copy = socket.socket(fileno=os.dup(int(name)))
            internet = copy.family in (socket.AF_INET, socket.AF_INET6)
            if internet and copy.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                found.append(copy)
            else:
                copy.close()
    return found
