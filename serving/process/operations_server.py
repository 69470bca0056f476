"""A second listener for what only those who run the service should reach: probes, metrics, drain."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import uvicorn
from starlette.types import ASGIApp

from serving.config import ServeConfig
from serving.wire.protocol import OperationsProtocol
from sovit.errors import ServiceError


class _Server(uvicorn.Server):
    """Signals are the main server's."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@asynccontextmanager
async def operations_server(config: ServeConfig, app: ASGIApp) -> AsyncIterator[None]:
    """Serve `app` on the operations port, if there is one, on this event loop until the block ends.

    Raises `ServiceError` when the port cannot be had.
    """
    if not config.operations_port:
        yield
        return
    host, port = config.operations_host, config.operations_port
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        raise ServiceError(f"the operations port cannot listen on {host} port {port}: {error.strerror}.") from error
    server = _Server(
        uvicorn.Config(
            app, http=OperationsProtocol, lifespan="off", log_config=None, access_log=False, server_header=False
        )
    )
    serving = asyncio.create_task(server.serve([listener]))
    try:
        yield
    finally:
        server.should_exit = True
        await serving
