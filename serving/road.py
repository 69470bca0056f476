"""The one road of every request with images: its body under the limits, decode, queue, one run for all outputs, reply.

What is asked for, and in which language, is a face's business (serving/faces/): it tells the images from the body and
writes the reply. The event loop waits for the work, for the client to go away, and for the request's time to run out,
whichever comes first; whoever will get no answer leaves no work behind.
"""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from serving.entry.decode_memory import Reservation
from serving.entry.keys import KeyUse
from serving.entry.line import SHARE_OF_TIME
from serving.inference.model import ServedModel
from serving.inference.work import Work
from serving.observing.record import Record, Stage, record_of
from serving.wire.body import declared_size, read_limited
from serving.wire.replies import RejectedImages, Reply, Results
from serving.worker import Worker
from sovit.errors import BadRequest, DeadlineExceeded, SoViTError, UnsupportedMediaType
from sovit.header import read_header

_WAITED: Final = 0.001  # seconds that count as a wait
_LARGE_BODY: Final = 256 * 1024  # bytes of an image whose header may take long to find
TIMEOUT_HEADER: Final = "x-request-timeout"
_SECONDS: Final = re.compile(r"[0-9]{0,9}\.?[0-9]{1,9}(e-?[0-9]{1,3})?", re.ASCII)


@dataclass(frozen=True)
class Asked:
    """What a body asks for.

    `write` makes the reply; with `each_alone` a bad image fails only its own item of it. `check` raises for a model
    that cannot give what is asked for. `seconds` is what the request may take of the time it has.
    """

    images: Sequence[bytes]
    write: Callable[[ServedModel, Results], Reply]
    model: str | None = None
    check: Callable[[ServedModel], None] = lambda _: None
    each_alone: bool = False
    seconds: float = math.inf


def enter_key(request: Request, worker: Worker) -> KeyUse | None:
    """The key that a request came with. Nothing else is said to whoever has none."""
    if worker.keys is None:
        return None
    use = worker.keys.find(request.headers)
    record_of(request).key = use.key.name
    return use


def require_logits(model: ServedModel) -> None:
    """Raise `BadRequest` for a model that cannot classify."""
    if not model.spec.model.num_classes:
        raise BadRequest("this model has no classification head; use /embed.")


async def answer(
    request: Request,
    worker: Worker,
    use: KeyUse | None,
    parse: Callable[[bytes], Asked],
    *,
    model: str | None,
    check: Callable[[ServedModel], None] = lambda _: None,
    in_thread: bool = True,
) -> Response:
    """Take a request along the road. `model` is the one it names before its body, if it does.

    `parse` tells what the body asks for, in a thread where that is work; `check` raises for a model that cannot do what
    is known to be asked for before. A model may be swapped while the body comes: what counts is the one after it.
    """
    config, headers, record = worker.config, request.headers, record_of(request)
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise UnsupportedMediaType("send the body as it is, without a content encoding.")
    began = time.monotonic()
    seconds = _seconds(headers.get(TIMEOUT_HEADER), config.timeout_seconds)
    declared = declared_size(headers.get("content-length"), config.max_body_bytes)
    # Refused at the door: a body that cannot be worked on is not even read.
    candidates = worker.models.candidates(model)
    if len(candidates) == 1:
        check(candidates[0])
    with worker.door.enter(declared, seconds, [one.line for one in candidates], use) as ticket:
        try:
            async with asyncio.timeout(seconds):
                content = await read_limited(request.receive, config.max_body_bytes, ticket.read)
                record.was_read = True
                record.body_bytes = len(content)
                take = partial(_take_apart, parse, config.decode.max_pixels, content)
                is_work = in_thread or len(content) > _LARGE_BODY
                asked, sizes = await asyncio.to_thread(take) if is_work else take()
                del take
                del content  # the images are what is needed of it, while they wait
        except TimeoutError as error:
            raise too_late(seconds) from error
        seconds = min(seconds, asked.seconds)
        deadline = began + seconds
        served = worker.models.find(asked.model if model is None else model)
        check(served)
        asked.check(served)
        record.stages.append(Stage("read", record.began, time.monotonic()))
        record.model, record.images = served.name, len(asked.images)
        ticket.hold(served.line, len(asked.images), deadline - time.monotonic())
        reservation = await _reserve(worker, served, sum(sizes), deadline, record)
        work = Work(
            served, worker.decoders, config.decode, asked.images, sizes, reservation, deadline,
            all_of_them=asked.each_alone,
        )  # fmt: skip
        try:
            await _finish(request, work, seconds)
        finally:
            record.stages += work.stages()
            outcomes = work.outcomes()
            work.give_up()
            ticket.finished = outcomes["ok"]
            for outcome, count in outcomes.items():
                worker.metrics.on_images(served.name, outcome, count)
        results = work.results()
        failed = {index: result for index, result in enumerate(results) if isinstance(result, SoViTError)}
        if failed and not asked.each_alone:
            raise RejectedImages(failed)
        written = time.monotonic()
        many = len(results) > 1
        content, media_type, extra = (
            await asyncio.to_thread(asked.write, served, results) if many else asked.write(served, results)
        )
        record.stages.append(Stage("encode", written, time.monotonic()))
        return Response(content, media_type=media_type, headers={"x-model": served.header, **(extra or {})})


def _seconds(given: str | None, most: float) -> float:
    """The time a request may take: what its header asks for, up to the service's own limit."""
    if given is None:
        return most
    seconds = float(given) if _SECONDS.fullmatch(given) else 0.0
    if not 0 < seconds < math.inf:
        raise BadRequest("X-Request-Timeout must be a number of seconds above 0, such as 2.5.")
    return min(seconds, most)


def _take_apart(parse: Callable[[bytes], Asked], max_pixels: int, content: bytes) -> tuple[Asked, list[int]]:
    """What a body asks for, and the bytes that decoding each of its images takes; 0 for what will be refused."""
    asked = parse(content)
    headers = [read_header(image) for image in asked.images]
    return asked, [
        0 if header is None or header.width * header.height > max_pixels else header.decoded_bytes for header in headers
    ]


async def _reserve(worker: Worker, served: ServedModel, size: int, deadline: float, record: Record) -> Reservation:
    """Memory for the images of a request. Waiting for it takes no more than a share of the time that is left."""
    began = time.monotonic()
    seconds = SHARE_OF_TIME * (deadline - began)
    reservation = await worker.decode_memory.reserve(size, seconds, max(1, math.ceil(served.line.wait)))
    ended = time.monotonic()
    if ended - began > _WAITED:
        record.stages.append(Stage("queue", began, ended))
    return reservation


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
