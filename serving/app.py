"""The ASGI application: its routes, and a life from loading the model to the last reply.

BentoML mounts it (serving/service.py); `uvicorn serving.app:app` runs it bare, as the baseline to measure against.
The model is loaded while the application already answers: not ready, but alive.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from starlette.applications import Starlette

from serving import operations
from serving.config import ServeConfig, read_serve_config
from serving.endpoint import endpoint, needs_worker
from serving.failed_start import end_process
from serving.inference import classify, embed
from serving.loader import Loader
from serving.operations_server import operations_server
from serving.routes import Application, Route
from serving.stop import stop_when_drained
from sovit.errors import SoViTError


def create_app(loader: Loader, read_config: Callable[[], ServeConfig] = read_serve_config) -> Application:
    """The application. Settings are read and the model is loaded when it starts, not when it is imported."""

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        try:
            config = read_config()
            operations_app = app
            if config.operations_port:
                operations_app = Application(loader, _operations_routes(loader))
            else:
                app.add(_operations_routes(loader))
            async with operations_server(config, operations_app), stop_when_drained(loader):
                loader.start(config)
                yield
            if loader.worker is not None:
                await asyncio.to_thread(loader.worker.close)
        except SoViTError as error:
            loader.on_failed_start(error)
            raise

    app = Application(
        loader,
        [
            Route("/classify", "POST", endpoint(loader, "/classify", needs_worker(classify))),
            Route("/embed", "POST", endpoint(loader, "/embed", needs_worker(embed))),
            Route("/model", "GET", endpoint(loader, "/model", needs_worker(operations.model))),
            Route("/models", "GET", endpoint(loader, "/models", needs_worker(operations.models))),
            Route("/openapi.json", "GET", endpoint(loader, "/openapi.json", operations.openapi_json)),
            Route("/docs", "GET", endpoint(loader, "/docs", operations.docs)),
        ],
        lifespan,
    )
    return app


def _operations_routes(loader: Loader) -> list[Route]:
    return [
        Route("/livez", "GET", endpoint(loader, "/livez", operations.livez)),
        Route("/readyz", "GET", endpoint(loader, "/readyz", needs_worker(operations.readyz))),
        Route("/metrics", "GET", endpoint(loader, "/metrics", needs_worker(operations.metrics))),
        Route("/drain", "POST", endpoint(loader, "/drain", needs_worker(operations.drain))),
    ]


app = create_app(Loader(end_process))
