"""What those who run the service ask: is it alive, is it ready, what does it count, and please finish."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from serving.observing.metrics import CONTENT_TYPE, ModelState
from serving.wire.schema import JSON
from serving.worker import Worker, require_alive, require_ready
from sovit.errors import Forbidden


async def livez(_: Request, worker: Worker | None) -> Response:
    """`GET /livez`: false when a lane of the engine is dead or stuck. A worker that loads its model is alive."""
    require_alive(worker)
    return Response(b'{"status":"alive"}', media_type=JSON)


async def readyz(_: Request, worker: Worker) -> Response:
    """`GET /readyz`: true once every lane of every model is warm, until it drains."""
    require_ready(worker)
    return Response(b'{"status":"ready"}', media_type=JSON)


async def metrics(request: Request, worker: Worker) -> Response:
    """`GET /metrics` for Prometheus. Beside the requests of clients it takes an admin key where there are keys."""
    if worker.keys is not None and not worker.config.operations_port:
        worker.keys.require_admin(request.headers)
    states = [ModelState(**found.summary, queue_images=found.engine.depth) for found in worker.models]
    text = worker.metrics.render(states, inflight=worker.door.requests, decode_bytes=worker.decode_memory.used)
    return Response(text, headers={"content-type": CONTENT_TYPE})


async def drain(request: Request, worker: Worker) -> Response:
    """`POST /drain`: take nothing more, and answer when all that was accepted is done. There is no way back."""
    if not worker.config.operations_port:
        if worker.keys is None:
            raise Forbidden("draining takes an admin key (--keys), or a port of its own (--operations-port).")
        worker.keys.require_admin(request.headers)
    await worker.door.drain()
    return Response(b'{"status":"drained"}', media_type=JSON)
