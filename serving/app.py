"""The ASGI application: routes, errors, and one straight path from a request to its reply.

    read the body under a limit -> take it apart -> decode each image in a thread -> queue -> one run for logits and
    embedding -> reply

BentoML mounts it (serving/service.py); `uvicorn serving.app:app` runs it bare, as the baseline to measure against.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import orjson
from numpy.typing import NDArray
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from serving.body import Body, parse_body, read_limited
from serving.config import ServeConfig, read_serve_config
from serving.docs import docs_page, openapi
from serving.engine import Engine, Outputs
from serving.metrics import CONTENT_TYPE, Metrics
from serving.schema import (
    JSON,
    NPY,
    PROBLEM,
    AnyOptions,
    ClassifyOptions,
    EmbedOptions,
    Options,
    check_accepts_json,
    classify_reply,
    embed_reply,
    embedding_encoding,
    npy_reply,
    parse_options,
    problem,
)
from sovit.artifact import open_artifact
from sovit.cores import available_cores
from sovit.errors import (
    BadRequest,
    DeadlineExceeded,
    InvalidImage,
    NotReady,
    SoViTError,
    UnsupportedImage,
)
from sovit.predict import to_classifications, to_embeddings
from sovit.runtime.open import open_lanes, setting_for
from sovit.spec import ModelSpec

logger = logging.getLogger(__name__)

_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")
Handler = Callable[[Request], Awaitable[Response]]


class RejectedImages(SoViTError):
    """Some images of a request could not be used; `items` says which and why."""

    def __init__(self, items: Mapping[int, SoViTError]) -> None:
        kinds = {item.status for item in items.values()}
        # The request takes its images' status where they agree.
        kind: type[SoViTError] = type(next(iter(items.values()))) if len(kinds) == 1 else InvalidImage
        self.status, self.title = kind.status, kind.title
        self.items = items
        index, first = next(iter(items.items()))
        super().__init__(f"image {index}: {first}")


@dataclass(frozen=True)
class Service:
    """What a started worker holds."""

    config: ServeConfig
    spec: ModelSpec
    model: dict[str, Any]
    engine: Engine
    decoders: ThreadPoolExecutor
    metrics: Metrics


def start_service(config: ServeConfig) -> Service:
    """Verify the artifact, load it into every lane and warm it on exactly the shapes to be served."""
    artifact = open_artifact(config.artifact)
    manifest = artifact.manifest
    setting = setting_for(
        artifact, config.tuned_for, runtime=config.runtime, threads=config.threads, lanes=config.lanes,
        batch=config.max_batch,
    )  # fmt: skip
    runtimes = open_lanes(artifact, setting)
    metrics = Metrics()
    engine = Engine(runtimes, max_batch=setting.batch, max_queue=config.max_queue, on_batch=metrics.on_batch)
    images, _ = artifact.reference()
    engine.start(images[0])
    model = {
        "name": config.name or manifest.name,
        "artifact": artifact.sha256[:12],
        "precision": manifest.precision,
        "runtime": setting.runtime,
    }
    decoders = ThreadPoolExecutor(config.decode_threads or available_cores(), thread_name_prefix="decode")
    return Service(config, manifest, model, engine, decoders, metrics)


def create_app(
    read_config: Callable[[], ServeConfig] = read_serve_config,
    on_failed_start: Callable[[SoViTError], None] = lambda _: None,
) -> Starlette:
    """The application. Settings are read and the model is loaded when it starts, not when it is imported.

    `on_failed_start` is told why it cannot start, before the error goes on to the server.
    """

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        try:
            service = await asyncio.to_thread(start_service, read_config())
        except SoViTError as error:
            on_failed_start(error)
            raise
        app.state.service = service
        yield
        await asyncio.to_thread(service.engine.close)
        service.decoders.shutdown()

    app = Starlette(
        lifespan=lifespan,
        routes=[
            Route("/classify", _endpoint("/classify", _classify), methods=["POST"]),
            Route("/embed", _endpoint("/embed", _embed), methods=["POST"]),
            Route("/models", _endpoint("/models", _models)),
            Route("/livez", _endpoint("/livez", _livez)),
            Route("/readyz", _endpoint("/readyz", _readyz)),
            Route("/metrics", _endpoint("/metrics", _metrics)),
            Route("/openapi.json", _endpoint("/openapi.json", _openapi)),
            Route("/docs", _endpoint("/docs", _docs)),
        ],
        exception_handlers={HTTPException: _http_exception},
    )
    return app


async def _classify(request: Request) -> Response:
    service = _service(request)
    check_accepts_json(request.headers.get("accept", ""))
    if not service.spec.model.num_classes:
        raise BadRequest("this model has no classification head; use /embed.")
    options, results = await _infer(request, service, ClassifyOptions)
    ok = [result for result in results if not isinstance(result, SoViTError)]
    logits_BL = np.stack([result["logits"] for result in ok]) if ok else np.empty((0, 1), np.float32)
    found = iter(to_classifications(logits_BL, service.spec.labels, service.spec.score, options.top_k))
    merged = [result if isinstance(result, SoViTError) else next(found) for result in results]
    return Response(classify_reply(service.model, merged), media_type=JSON)


async def _embed(request: Request) -> Response:
    service = _service(request)
    accept = request.headers.get("accept", "")
    options, results = await _infer(request, service, EmbedOptions)
    encoding = embedding_encoding(options, accept)
    merged: list[NDArray[np.float32] | SoViTError] = [
        result if isinstance(result, SoViTError) else to_embeddings(result["pre_logits"][None], options.normalize)[0]
        for result in results
    ]
    if encoding == "npy":
        ok = [result for result in merged if not isinstance(result, SoViTError)]
        if len(ok) < len(merged):
            raise RejectedImages(_errors_by_index(merged))
        return Response(npy_reply(ok), media_type=NPY)
    dim = service.spec.model.width
    return Response(embed_reply(service.model, merged, dim=dim, as_base64=encoding == "base64"), media_type=JSON)


async def _infer(
    request: Request, service: Service, kind: type[AnyOptions]
) -> tuple[AnyOptions, list[Outputs | SoViTError]]:
    """The common road of both endpoints: a request to the outputs of each image, or its error."""
    config = service.config
    # Refused at the door: a body that cannot be worked on is not even read.
    service.engine.check_room()
    deadline = time.monotonic() + config.timeout_seconds
    futures: list[Future[Outputs]] = []
    try:
        async with asyncio.timeout(config.timeout_seconds):
            content = await read_limited(request.stream(), request.headers.get("content-length"), config.max_body_bytes)
            body = await _in_thread(
                service, parse_body, request.headers.get("content-type", ""), content, config.max_images
            )
            options = _options(kind, request, body, service)
            decoded = await asyncio.gather(*(_in_thread(service, _decode, service, image) for image in body.images))
            rejected = _errors_by_index(decoded)
            if rejected and options.on_error == "request":
                raise RejectedImages(rejected)
            valid = [image for image in decoded if not isinstance(image, SoViTError)]
            service.engine.check_room(len(valid))
            for image in valid:  # one by one: when the queue fills up half way, those before are taken out again
                futures.append(service.engine.submit(image, deadline))
            ran = iter(await asyncio.gather(*map(asyncio.wrap_future, futures), return_exceptions=True))
    except TimeoutError as error:
        raise DeadlineExceeded(f"the request took longer than {config.timeout_seconds:g} s.") from error
    finally:
        service.engine.forget(futures)
    results: list[Outputs | SoViTError] = []
    for image in decoded:
        result = image if isinstance(image, SoViTError) else next(ran)
        if isinstance(result, BaseException) and not isinstance(result, SoViTError):
            raise result
        results.append(result)
    failed = _errors_by_index(results)
    if failed and options.on_error == "request":
        raise next(iter(failed.values()))
    return options, results


def _options(kind: type[AnyOptions], request: Request, body: Body, service: Service) -> AnyOptions:
    options = parse_options(kind, request.query_params.multi_items(), body.options)
    _check_model(options, service)
    return options


def _check_model(options: Options, service: Service) -> None:
    if options.model not in (None, service.model["name"]):
        raise BadRequest(f"no such model is served; GET /models lists them: {service.model['name']}.")


def _decode(service: Service, content: bytes) -> NDArray[np.uint8] | SoViTError:
    try:
        return service.spec.preprocess(content, service.config.decode)
    except (InvalidImage, UnsupportedImage) as error:
        return error


def _errors_by_index(results: Sequence[Any]) -> dict[int, SoViTError]:
    return {index: result for index, result in enumerate(results) if isinstance(result, SoViTError)}


async def _in_thread(service: Service, function: Callable[..., Any], *args: Any) -> Any:
    return await asyncio.get_running_loop().run_in_executor(service.decoders, function, *args)


async def _models(request: Request) -> Response:
    service = _service(request)
    model = service.spec.model
    entry = {
        **service.model,
        "image_size": model.image_size,
        "dim": model.width,
        "num_classes": model.num_classes,
        "labels": service.spec.labels,
        "ready": service.engine.ready,
    }
    return Response(orjson.dumps({"models": [entry]}), media_type=JSON)


async def _livez(request: Request) -> Response:
    service: Service | None = getattr(request.app.state, "service", None)
    if service is not None and not service.engine.alive:
        raise NotReady("a lane of the engine has died.")
    return Response(b'{"status":"alive"}', media_type=JSON)


async def _readyz(request: Request) -> Response:
    if not _service(request).engine.ready:
        raise NotReady("the service is not ready.")
    return Response(b'{"status":"ready"}', media_type=JSON)


async def _metrics(request: Request) -> Response:
    service = _service(request)
    return Response(service.metrics.render(service.engine.depth), headers={"content-type": CONTENT_TYPE})


async def _openapi(request: Request) -> Response:
    return Response(orjson.dumps(openapi()), media_type=JSON)


async def _docs(request: Request) -> Response:
    return HTMLResponse(docs_page())


def _service(request: Request) -> Service:
    service: Service | None = getattr(request.app.state, "service", None)
    if service is None:
        raise NotReady("the service is not ready.")
    return service


def _endpoint(route: str, handler: Handler) -> Handler:
    """Wrap a handler with what every route shares: request id, error documents, metrics."""

    async def endpoint(request: Request) -> Response:
        began = time.perf_counter()
        request_id = _request_id(request)
        try:
            response = await handler(request)
        except SoViTError as error:
            response = _problem_response(error, request_id)
        except ClientDisconnect:
            response = Response(status_code=499)  # nobody is there to read it
        except Exception:
            logger.exception("request %s failed", request_id)
            response = _problem_response(SoViTError("something failed on our side; quote the request id."), request_id)
        response.headers["x-request-id"] = request_id
        service: Service | None = getattr(request.app.state, "service", None)
        if service is not None:
            service.metrics.requests.labels(route, response.status_code).inc()
            service.metrics.request_seconds.labels(route).observe(time.perf_counter() - began)
        return response

    return endpoint


async def _http_exception(request: Request, exception: Exception) -> Response:
    """Starlette's own refusals (404, 405) in our form."""
    assert isinstance(exception, HTTPException)

    error = SoViTError(
        {404: "no such path.", 405: "this path does not take that method."}.get(exception.status_code, "")
    )
    error.status, error.title = exception.status_code, exception.detail
    request_id = _request_id(request)
    response = _problem_response(error, request_id)
    response.headers.update({**(exception.headers or {}), "x-request-id": request_id})
    return response


def _problem_response(error: SoViTError, request_id: str) -> Response:
    items = error.items if isinstance(error, RejectedImages) else None
    headers = {}
    if (retry_after := getattr(error, "retry_after", None)) is not None:
        headers["retry-after"] = str(retry_after)
    return Response(problem(error, request_id, items), error.status, headers, PROBLEM)


def _request_id(request: Request) -> str:
    given = request.headers.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


app = create_app()
