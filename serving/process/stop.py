"""Told to stop, the service answers newcomers with 503 until everything it accepted is done, and only then ends.

The server by itself would stop accepting at once, but under a supervisor the listening socket lives on in the parent:
newcomers would wait in its backlog for as long as the last request takes, and be reset in the end.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import FrameType
from typing import Any, Final

import uvicorn

from serving.process.loader import Loader

_LAST_SECONDS: Final = 2.0


@asynccontextmanager
async def stop_when_drained(loader: Loader) -> AsyncIterator[None]:
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
        if (worker := loader.worker) is not None:
            worker.models.stop_loading()
            await worker.door.drain()
            loader.worker = None
            await asyncio.to_thread(worker.close)  # which takes a while with a large model
        servers_own[number](number, None)
        # A client that does not read its answer would keep the server, and newcomers in its backlog, for as long as
        # it likes.
        await asyncio.sleep(_LAST_SECONDS)
        server = getattr(servers_own[number], "__self__", None)
        if isinstance(server, uvicorn.Server):
            server.force_exit = True

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
    yield
