"""The ASGI application: its routes, and a life from loading the model to the last reply.

BentoML mounts it (serving/service.py); `uvicorn serving.app:app` runs it bare, as the baseline to measure against.
The model is loaded while the application already answers: not ready, but alive.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from starlette.applications import Starlette

from serving import operations
from serving.config import ServeConfig, read_serve_config
from serving.endpoint import State, endpoint, needs_worker
from serving.failed_start import end_process
from serving.inference import classify, embed
from serving.operations_server import operations_server
from serving.routes import Application, Route
from serving.stop import stop_when_drained
from serving.worker import start_worker
from sovit.errors import SoViTError

logger = logging.getLogger(__name__)


def create_app(
    read_config: Callable[[], ServeConfig] = read_serve_config,
    on_failed_start: Callable[[SoViTError], None] = end_process,
) -> Application:
    """The application. Settings are read and the model is loaded when it starts, not when it is imported.

    `on_failed_start` is told why it cannot start, and ends the process.
    """
    state = State()

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        try:
            config = read_config()
            operations_app = app
            if config.operations_port:
                operations_app = Application(state, _operations_routes(state))
            else:
                app.add(_operations_routes(state))
            async with operations_server(config, operations_app), stop_when_drained(state):
                _load(config, state, on_failed_start)
                yield
            if state.worker is not None:
                await asyncio.to_thread(state.worker.close)
        except SoViTError as error:
            on_failed_start(error)
            raise

    app = Application(
        state,
        [
            Route("/classify", "POST", endpoint(state, "/classify", needs_worker(classify))),
            Route("/embed", "POST", endpoint(state, "/embed", needs_worker(embed))),
            Route("/model", "GET", endpoint(state, "/model", needs_worker(operations.model))),
            Route("/models", "GET", endpoint(state, "/models", needs_worker(operations.models))),
            Route("/openapi.json", "GET", endpoint(state, "/openapi.json", operations.openapi_json)),
            Route("/docs", "GET", endpoint(state, "/docs", operations.docs)),
        ],
        lifespan,
    )
    return app


def _operations_routes(state: State) -> list[Route]:
    return [
        Route("/livez", "GET", endpoint(state, "/livez", operations.livez)),
        Route("/readyz", "GET", endpoint(state, "/readyz", needs_worker(operations.readyz))),
        Route("/metrics", "GET", endpoint(state, "/metrics", needs_worker(operations.metrics))),
        Route("/drain", "POST", endpoint(state, "/drain", needs_worker(operations.drain))),
    ]


def _load(config: ServeConfig, state: State, on_failed_start: Callable[[SoViTError], None]) -> None:
    """Start the worker in a thread of its own, which does not keep a process that is told to stop."""

    def load() -> None:
        try:
            state.worker = start_worker(config)
        except SoViTError as error:
            on_failed_start(error)
        except Exception:
            logger.exception("the service cannot start")
            on_failed_start(SoViTError("the service cannot start: something failed on our side."))

    threading.Thread(target=load, name="load", daemon=True).start()


app = create_app()
