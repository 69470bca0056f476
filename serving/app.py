"""The ASGI application: its routes, and a life from loading the models to the last reply.

BentoML mounts it (serving/service.py); `uvicorn serving.app:app` runs it bare, as the baseline to measure against.
Models are loaded while the application already answers: not ready, but alive.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from starlette.applications import Starlette

from serving.config import ServeConfig, read_serve_config
from serving.endpoint import MayNeedWorker, NeedsWorker, endpoint, needs_worker
from serving.faces import admin, docs, native, open_inference, openai_api, operations, served
from serving.faces.page import page_routes
from serving.observing.log import log_as_json
from serving.process.failed_start import end_process
from serving.process.loader import Loader
from serving.process.operations_server import operations_server
from serving.process.stop import stop_when_drained
from serving.routes import Application, Route
from serving.wire.protocol import BoundedProtocol, fit_connections
from serving.wire.replies import WriteError, problem
from sovit.errors import SoViTError


def create_app(
    loader: Loader, read_config: Callable[[], ServeConfig] = read_serve_config, *, own_process: bool = False
) -> Application:
    """The application. Settings are read and models are loaded when it starts, not when it is imported.

    In a process of its own it has all logs written as JSON.
    """

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        if own_process:
            log_as_json()
        try:
            config = read_config()
            fit_connections(config.timeout_seconds)
            operations_app = app
            if config.operations_port:
                operations_app = Application(loader, _operations_routes(loader))
            else:
                app.add(_operations_routes(loader))
            if config.page:
                app.add(Route(path, "GET", endpoint(loader, "/page", handler)) for path, handler in page_routes())
            async with operations_server(config, operations_app), stop_when_drained(loader):
                loader.start(config)
                yield
            if loader.worker is not None:
                await asyncio.to_thread(loader.worker.close)
        except SoViTError as error:
            loader.on_failed_start(error)
            raise

    errors = {"/v1/": openai_api.write_error, "/v2/": open_inference.write_error}
    app = Application(loader, _routes(loader), lifespan, errors)
    BoundedProtocol.errors_of = app.errors_of
    return app


def _routes(loader: Loader) -> list[Route]:
    def asking(path: str, handler: NeedsWorker, write_error: WriteError = problem) -> Route:
        return Route(path, "POST", endpoint(loader, path, needs_worker(handler), write_error, told=True))

    def telling(path: str, handler: MayNeedWorker, write_error: WriteError = problem) -> Route:
        return Route(path, "GET", endpoint(loader, path, handler, write_error))

    of_openai, of_v2 = openai_api.write_error, open_inference.write_error
    v2_model = "/v2/models/{model}"
    v2_version = f"{v2_model}/versions/{{version}}"
    return [
        asking("/classify", native.classify),
        asking("/embed", native.embed),
        telling("/model", needs_worker(served.model)),
        telling("/models", needs_worker(served.models)),
        telling("/stats", needs_worker(served.stats)),
        telling("/openapi.json", docs.openapi_json),
        telling("/docs", docs.docs),
        asking("/v1/embeddings", openai_api.embeddings, of_openai),
        telling("/v1/models", needs_worker(openai_api.models), of_openai),
        telling("/v1/models/{model}", needs_worker(openai_api.model), of_openai),
        telling("/v2", open_inference.server, of_v2),
        telling("/v2/health/live", open_inference.live, of_v2),
        telling("/v2/health/ready", needs_worker(open_inference.ready), of_v2),
        *(telling(path, needs_worker(open_inference.metadata), of_v2) for path in (v2_model, v2_version)),
        *(telling(f"{path}/ready", needs_worker(open_inference.model_ready), of_v2) for path in (v2_model, v2_version)),
        *(asking(f"{path}/infer", open_inference.infer, of_v2) for path in (v2_model, v2_version)),
    ]


def _operations_routes(loader: Loader) -> list[Route]:
    def route(path: str, method: str, handler: MayNeedWorker) -> Route:
        return Route(path, method, endpoint(loader, path, handler))

    return [
        route("/livez", "GET", operations.livez),
        route("/readyz", "GET", needs_worker(operations.readyz)),
        route("/metrics", "GET", needs_worker(operations.metrics)),
        route("/drain", "POST", needs_worker(operations.drain)),
        route("/admin/models/{model}", "POST", needs_worker(admin.swap)),
    ]


app = create_app(Loader(end_process), own_process=True)
