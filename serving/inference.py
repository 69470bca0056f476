"""The straight path of a request: read its body under the limits, decode, queue, one run for all outputs, reply.

The event loop waits for the work, for the client to go away, and for the request's time to run out, whichever comes
first; whoever will get no answer leaves no work behind.
"""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from serving.body import Body, declared_size, parse_body, read_limited
from serving.keys import KeyUse
from serving.replies import classify_reply, embed_reply
from serving.schema import AnyOptions, ClassifyOptions, EmbedOptions, accepted_encoding, parse_options
from serving.work import Work
from serving.worker import Worker
from sovit.errors import BadRequest, DeadlineExceeded, SoViTError, UnsupportedMediaType

TIMEOUT_HEADER: Final = "x-request-timeout"
_SECONDS: Final = re.compile(r"[0-9]{0,9}\.?[0-9]{1,9}(e-?[0-9]{1,3})?", re.ASCII)


class RejectedImages(SoViTError):
    """Some images of a request could not be used; `items` says which and why."""

    def __init__(self, items: Mapping[int, SoViTError]) -> None:
        # The request takes its images' status; of several the largest, so that no fault of ours hides behind theirs.
        worst = max(items.values(), key=lambda item: item.status)
        self.status, self.title = worst.status, worst.title
        self.items = items
        index, first = next(iter(items.items()))
        super().__init__(f"image {index}: {first}")


async def classify(request: Request, worker: Worker) -> Response:
    """`POST /classify`."""
    use = _key(request, worker)
    if not worker.spec.model.num_classes:
        raise BadRequest("this model has no classification head; use /embed.")
    return await _answer(request, worker, use, ClassifyOptions, classify_reply)


async def embed(request: Request, worker: Worker) -> Response:
    """`POST /embed`."""
    return await _answer(request, worker, _key(request, worker), EmbedOptions, embed_reply)


def _key(request: Request, worker: Worker) -> KeyUse | None:
    """The key that a request came with. Nothing else is said to whoever has none."""
    return worker.keys.find(request.headers) if worker.keys is not None else None


async def _answer(
    request: Request,
    worker: Worker,
    use: KeyUse | None,
    kind: type[AnyOptions],
    reply: Callable[..., tuple[bytes, str]],
) -> Response:
    """The common road of both endpoints."""
    config, headers = worker.config, request.headers
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise UnsupportedMediaType("send the body as it is, without a content encoding.")
    seconds = _seconds(headers.get(TIMEOUT_HEADER), config.timeout_seconds)
    deadline = time.monotonic() + seconds
    declared = declared_size(headers.get("content-length"), config.max_body_bytes)
    # Refused at the door: a body that cannot be worked on is not even read.
    with worker.door.enter(declared, seconds, use) as ticket:
        try:
            async with asyncio.timeout(seconds):
                content = await read_limited(request.receive, config.max_body_bytes, ticket.read)
                request.state.was_read = True
                body = await _parse(worker, headers.get("content-type", ""), content)
        except TimeoutError as error:
            raise too_late(seconds) from error
        options = parse_options(kind, _query(request), body.options)
        if options.model not in (None, worker.model["name"]):
            raise BadRequest(f"no such model is served; GET /models lists them: {worker.model['name']}.")
        encoding = options.encoding or accepted_encoding(headers.get("accept", ""))
        ticket.hold(len(body.images))
        work = Work(worker, body.images, deadline, all_of_them=options.on_error == "item")
        try:
            await _finish(request, work, seconds)
            results = work.results()
        finally:
            work.give_up()
        ticket.finished = sum(1 for result in results if result and not isinstance(result, SoViTError))
        failed = {index: result for index, result in enumerate(results) if isinstance(result, SoViTError)}
        if failed and (options.on_error == "request" or encoding == "npy"):  # an array has no place for an error
            raise RejectedImages(failed)
        make = partial(reply, worker.model, worker.spec, results, options, encoding)
        content, media_type = make() if len(results) == 1 else await asyncio.to_thread(make)
        return Response(content, media_type=media_type)


def was_read(request: Request) -> bool:
    """Whether the whole body of a request has been read."""
    return getattr(request.state, "was_read", False)


def _seconds(given: str | None, most: float) -> float:
    """The time a request may take: what its header asks for, up to the service's own limit."""
    if given is None:
        return most
    seconds = float(given) if _SECONDS.fullmatch(given) else 0.0
    if not 0 < seconds < math.inf:
        raise BadRequest("X-Request-Timeout must be a number of seconds above 0, such as 2.5.")
    return min(seconds, most)


def _query(request: Request) -> list[tuple[str, str]]:
    return request.query_params.multi_items() if request.scope["query_string"] else []


async def _parse(worker: Worker, content_type: str, content: bytes) -> Body:
    """A raw image is taken as it is; to take other forms apart is work for a thread."""
    if content_type.startswith(("image/", "application/octet-stream")):
        return parse_body(content_type, content, worker.config.max_images)
    return await asyncio.to_thread(parse_body, content_type, content, worker.config.max_images)


async def _finish(request: Request, work: Work, seconds: float) -> None:
    """Wait until the work is done. Raises `DeadlineExceeded` and `ClientDisconnect`."""
    loop = asyncio.get_running_loop()
    timer = loop.call_at(loop.time() + work.deadline - time.monotonic(), work.fail, too_late(seconds))
    gone = loop.create_task(_gone(request, work))
    try:
        await work.done
    finally:
        gone.cancel()
        timer.cancel()


async def _gone(request: Request, work: Work) -> None:
    """Fail the work when the client has closed the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    work.fail(ClientDisconnect())


def too_late(seconds: float) -> DeadlineExceeded:
    """The error of a request that took longer than its time."""
    return DeadlineExceeded(f"the request took longer than {seconds:g} s.")
