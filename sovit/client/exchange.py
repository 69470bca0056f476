"""The talk with a service, without the talking: what to send, when to send it again, how to read what comes back.

Each talk is a generator that yields `Call`s and `Wait`s and is sent the answer to each call. `Client` and `AsyncClient`
only carry them out.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from itertools import count
from typing import Any, TypeVar

import httpx

from sovit.client.batches import Batch, in_place, to_send
from sovit.client.failures import Failure, failure_of, item_failure, media_type, not_ours
from sovit.client.models import ModelInfo, read_models
from sovit.client.questions import Question
from sovit.client.retry import Answer, Wait
from sovit.client.settings import Settings

T = TypeVar("T")


@dataclass(frozen=True)
class Call:
    """One request."""

    method: str
    path: str
    params: Mapping[str, str] = field(default_factory=dict)
    content: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


Talk = Generator[Call | Wait, Answer | None, T]


def ask(settings: Settings, question: Question[T], batch: Batch) -> Talk[list[T | Failure]]:
    """The answer for each image of a batch, or its failure. Raises the error of a service that cannot answer."""
    contents = to_send(batch)
    outcomes = (yield from _ask(settings, question, contents)) if contents else []
    return in_place(batch, outcomes)


def ask_models(settings: Settings) -> Talk[list[ModelInfo]]:
    """What is served."""
    response = yield from _answer(settings, Call("GET", "/models"))
    if isinstance(response, Failure):
        raise response.error()
    return _read(settings, response, read_models)


def _ask(settings: Settings, question: Question[T], contents: Sequence[bytes]) -> Talk[list[T | Failure]]:
    options = {**question.options, "on_error": "item"} | ({"model": settings.model} if settings.model else {})
    content, content_type = multipart(contents)
    call = Call("POST", question.path, options, content, {"content-type": content_type})
    response = yield from _answer(settings, call)
    if not isinstance(response, Failure):
        return _read(settings, response, lambda document: _outcomes(settings, response, document, question, contents))
    too_large = response.status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    if too_large and len(contents) > 1:
        del content, call  # not kept while its halves are under way
        middle = len(contents) // 2
        first = yield from _ask(settings, question, contents[:middle])
        second = yield from _ask(settings, question, contents[middle:])
        return first + second
    if too_large or response.of_the_images:
        return [response] * len(contents)
    raise response.error()


def _answer(settings: Settings, call: Call) -> Talk[httpx.Response | Failure]:
    """A good reply, or the failure when there is none for the last time."""
    for attempt in count(1):
        answer = yield call
        assert answer is not None
        if isinstance(answer, httpx.Response) and answer.status_code == HTTPStatus.OK:
            return answer
        then = settings.retry.after(answer, attempt)
        if not isinstance(then, Wait):
            return failure_of(settings.url, answer, then.why, settings.timeout_seconds)
        del answer  # not kept while nothing is done
        yield then
    raise AssertionError("unreachable")


def _read(settings: Settings, response: httpx.Response, read: Callable[[Any], T]) -> T:
    try:
        document = json.loads(response.content)
    except (ValueError, RecursionError) as error:
        raise not_ours(settings.url, response, f"{media_type(response)} that is no JSON").error() from error
    try:
        return read(document)
    except (ValueError, OverflowError) as error:
        raise not_ours(settings.url, response, str(error)).error() from error


def _outcomes(
    settings: Settings, response: httpx.Response, document: Any, question: Question[T], contents: Sequence[bytes]
) -> list[T | Failure]:
    match document:
        case {"results": [*results]}:
            pass
        case _:
            raise ValueError("no results")
    if len(results) != len(contents):
        raise ValueError(f"{len(results)} results for {len(contents)} images")
    return [
        item_failure(settings.url, response, result["error"])
        if isinstance(result, dict) and "error" in result
        else question.read(result, document)
        for result in results
    ]


def multipart(contents: Sequence[bytes]) -> tuple[bytes, str]:
    """A body of files in the field `images`, and its content type."""
    boundary = secrets.token_hex(16)  # which no image holds, as nobody can know it
    head = b'--%b\r\ncontent-disposition: form-data; name="images"; filename="%d"\r\n\r\n'
    parts = [
        piece
        for index, content in enumerate(contents)
        for piece in (head % (boundary.encode(), index), content, b"\r\n")
    ]
    return b"".join([*parts, b"--%b--\r\n" % boundary.encode()]), f"multipart/form-data; boundary={boundary}"
