"""What those who run the service ask: is it alive, is it ready, what does it count, and please finish."""

from __future__ import annotations

import orjson
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from serving.docs import docs_page, openapi
from serving.metrics import CONTENT_TYPE
from serving.schema import JSON
from serving.worker import Worker
from sovit.errors import Draining, Forbidden, NotReady


async def livez(_: Request, worker: Worker | None) -> Response:
    """`GET /livez`: false when a lane of the engine is dead or stuck. A worker that loads its model is alive."""
    if worker is not None and not worker.engine.alive:
        raise NotReady("a lane of the engine is dead or stuck.")
    return Response(b'{"status":"alive"}', media_type=JSON)


async def readyz(_: Request, worker: Worker) -> Response:
    """`GET /readyz`: true once every lane is warm, until it drains."""
    if worker.door.draining:
        raise Draining("the service is shutting down.")
    if not worker.engine.ready:
        raise NotReady("the service is not ready.")
    return Response(b'{"status":"ready"}', media_type=JSON)


async def metrics(request: Request, worker: Worker) -> Response:
    """`GET /metrics` for Prometheus. Beside the requests of clients it takes an admin key where there are keys."""
    if worker.keys is not None and not worker.config.operations_port:
        worker.keys.require_admin(request.headers)
    text = worker.metrics.render(queue_images=worker.engine.depth, inflight=worker.door.requests)
    return Response(text, headers={"content-type": CONTENT_TYPE})


async def drain(request: Request, worker: Worker) -> Response:
    """`POST /drain`: take nothing more, and answer when all that was accepted is done. There is no way back."""
    if not worker.config.operations_port:
        if worker.keys is None:
            raise Forbidden("draining takes an admin key (--keys), or a port of its own (--operations-port).")
        worker.keys.require_admin(request.headers)
    await worker.door.drain()
    return Response(b'{"status":"drained"}', media_type=JSON)


async def model(request: Request, worker: Worker) -> Response:
    """`GET /model`: the served model. Its ETag is the artifact's hash."""
    _require_key(request, worker)
    etag = f'"{worker.artifact}"'
    headers = {"etag": etag, "cache-control": "no-cache"}
    known = {tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")}
    if known & {etag, "*"}:
        return Response(status_code=304, headers=headers)
    return Response(orjson.dumps(_entry(worker)), headers=headers, media_type=JSON)


async def models(request: Request, worker: Worker) -> Response:
    """`GET /models`: all of them."""
    _require_key(request, worker)
    return Response(orjson.dumps({"models": [_entry(worker)]}), media_type=JSON)


async def openapi_json(_: Request, __: Worker | None) -> Response:
    """`GET /openapi.json`."""
    return Response(orjson.dumps(openapi()), media_type=JSON)


async def docs(_: Request, __: Worker | None) -> Response:
    """`GET /docs`."""
    return HTMLResponse(docs_page())


def _require_key(request: Request, worker: Worker) -> None:
    if worker.keys is not None:
        worker.keys.find(request.headers)


def _entry(worker: Worker) -> dict[str, object]:
    spec = worker.spec
    return {
        **worker.model,
        "artifact_sha256": worker.artifact,
        "image_size": spec.model.image_size,
        "dim": spec.model.width,
        "num_classes": spec.model.num_classes,
        "labels": spec.labels,
        "preprocess": spec.preprocess.summary,
        "reduced_scale": worker.config.decode.reduced_scale,
        "ready": worker.engine.ready and not worker.door.draining,
    }
