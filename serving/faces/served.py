"""What is served and how it fares: `/model`, `/models` and, for the page, the last minute in `/stats`."""

from __future__ import annotations

import orjson
from starlette.requests import Request
from starlette.responses import Response

from serving.inference.model import ServedModel
from serving.observing.recent import WINDOW_SECONDS
from serving.road import enter_key
from serving.wire.head import matches_etag, query_fields
from serving.wire.schema import JSON
from serving.worker import Worker


async def model(request: Request, worker: Worker) -> Response:
    """`GET /model`: the model of the query, or the first. Its ETag is the artifact's hash."""
    enter_key(request, worker)
    found = worker.models.find(dict(query_fields(request)).get("model"))
    etag = f'"{found.artifact}"'
    headers = {"etag": etag, "cache-control": "no-cache"}
    if matches_etag(request, etag):
        return Response(status_code=304, headers=headers)
    return Response(orjson.dumps(_entry(worker, found)), headers=headers, media_type=JSON)


async def models(request: Request, worker: Worker) -> Response:
    """`GET /models`: all of them."""
    enter_key(request, worker)
    return Response(orjson.dumps({"models": [_entry(worker, found) for found in worker.models]}), media_type=JSON)


async def stats(request: Request, worker: Worker) -> Response:
    """`GET /stats`: the last minute, for the page."""
    enter_key(request, worker)
    document = {
        "ready": worker.models.ready,
        "draining": worker.door.draining,
        "window_seconds": WINDOW_SECONDS,
        "requests": {"inflight": worker.door.requests, **worker.recent.requests()},
        "models": [
            {
                "name": found.name,
                "queue_images": found.engine.depth,
                "batch_images": worker.recent.batch_images(found.name),
                "ready": found.engine.ready,
            }
            for found in worker.models
        ],
    }
    return Response(orjson.dumps(document), headers={"cache-control": "no-store"}, media_type=JSON)


def _entry(worker: Worker, found: ServedModel) -> dict[str, object]:
    spec = found.spec
    return {
        **found.summary,
        "artifact_sha256": found.artifact,
        "image_size": spec.model.image_size,
        "dim": spec.model.width,
        "num_classes": spec.model.num_classes,
        "labels": spec.labels,
        "preprocess": spec.preprocess.summary,
        "reduced_scale": worker.config.decode.reduced_scale,
        "ready": found.engine.ready and not worker.door.draining,
    }
