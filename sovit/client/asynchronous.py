"""The client for asyncio: every request is a task's."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator
from contextlib import aclosing
from http import HTTPStatus
from typing import Any, Self, TypeVar

import httpx
import numpy as np
from numpy.typing import NDArray

from sovit.client.base import READY_SECONDS, ClientBase
from sovit.client.batches import Batch, batches
from sovit.client.exchange import Call, Talk, ask, ask_models
from sovit.client.failures import Failure
from sovit.client.images import check_images, content_of
from sovit.client.models import ModelInfo, chosen
from sovit.client.questions import Question, classify_question, embed_question, stacked
from sovit.client.receiving import Receiving, no_url
from sovit.client.retry import Answer, Wait
from sovit.decode import ImageSource
from sovit.errors import SoViTError
from sovit.predict import DEFAULT_TOP_K, Classification

T = TypeVar("T")


class AsyncClient(ClientBase):
    """`Client` for one event loop. Images are read in a thread: `images` is iterated there, never twice at a time."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections. Calls that wait for an answer, in other tasks, end with a `ServiceError`."""
        self._closed = True
        waiting = list(self._waiting)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        await self._http.aclose()

    async def classify(self, images: Iterable[ImageSource], top_k: int = DEFAULT_TOP_K) -> list[Classification]:
        """The `top_k` classes of each image. Raises the error of the first image that has none, with its index."""
        return await self._all(classify_question(top_k), images)

    def classify_each(
        self, images: Iterable[ImageSource], top_k: int = DEFAULT_TOP_K
    ) -> AsyncIterator[Classification | SoViTError]:
        """The classes of each image or its own error, in order; any number of images in constant memory.

        Images are taken as they are needed. Raises the error of a service that answers nobody.
        """
        return self._each(classify_question(top_k), images)

    async def embed(self, images: Iterable[ImageSource], normalize: bool = True) -> NDArray[np.float32]:
        """Embeddings, float32 [B, D]. Raises the error of the first image that has none, with its index."""
        rows = await self._all(embed_question(normalize), images)
        return stacked(rows, self.url) if rows else np.empty((0, (await self._model()).dim), np.float32)

    def embed_each(
        self, images: Iterable[ImageSource], normalize: bool = True
    ) -> AsyncIterator[NDArray[np.float32] | SoViTError]:
        """The embedding of each image, float32 [D], or its own error, as `classify_each` gives them."""
        return self._each(embed_question(normalize), images)

    async def models(self) -> list[ModelInfo]:
        """What is served; the first is the one that answers where no model is named."""
        return await self._result(self._start(ask_models(self.settings)))

    async def labels(self) -> list[str]:
        """The labels of the model's classes."""
        return list((await self._model()).labels)

    async def ready(self) -> bool:
        """Whether /readyz answers 200 now."""
        self._check_open()
        try:
            return (await self._http.get("/readyz", timeout=READY_SECONDS)).status_code == HTTPStatus.OK
        except httpx.RequestError:
            return False

    def _open(self) -> None:
        self._http = httpx.AsyncClient(**self.settings.http_options())
        self._slots = asyncio.Semaphore(self.settings.concurrency)
        self._waiting: set[asyncio.Task[Any]] = set()

    async def _model(self) -> ModelInfo:
        return chosen(await self.models(), self.settings.model)

    async def _all(self, question: Question[T], images: Iterable[ImageSource]) -> list[T]:
        outcomes = self._outcomes(question, images)
        found: list[T] = []
        async with aclosing(outcomes):
            async for outcome in outcomes:
                if isinstance(outcome, Failure):
                    raise outcome.error(len(found))
                found.append(outcome)
        return found

    def _each(self, question: Question[T], images: Iterable[ImageSource]) -> AsyncIterator[T | SoViTError]:
        outcomes = self._outcomes(question, images)
        return _with_own_errors(outcomes)

    def _outcomes(self, question: Question[T], images: Iterable[ImageSource]) -> AsyncGenerator[T | Failure, None]:
        self._check_open()
        check_images(images)
        return self._stream(question, batches(map(content_of, images), self.settings.batch_size))

    async def _stream(self, question: Question[T], source: Iterator[Batch]) -> AsyncGenerator[T | Failure, None]:
        pending: deque[asyncio.Task[list[T | Failure]]] = deque()
        try:
            while (batch := await asyncio.to_thread(next, source, None)) is not None:
                pending.append(self._start(ask(self.settings, question, batch)))
                while pending and (len(pending) >= self._ahead or pending[0].done()):
                    for outcome in await self._result(pending[0]):
                        yield outcome
                    pending.popleft()
            while pending:
                for outcome in await self._result(pending[0]):
                    yield outcome
                pending.popleft()
        finally:
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)

    def _start(self, talk: Talk[T]) -> asyncio.Task[T]:
        """Carry a talk out in a task of its own."""
        self._check_open()
        task = asyncio.create_task(self._carry_out(talk))
        self._waiting.add(task)
        task.add_done_callback(self._waiting.discard)
        return task

    async def _result(self, task: asyncio.Task[T]) -> T:
        try:
            return await task
        except asyncio.CancelledError:
            if self._closed and task.cancelled():
                raise self._closed_error() from None
            raise

    async def _carry_out(self, talk: Talk[T]) -> T:
        async with self._slots:
            answer: Answer | None = None
            try:
                while True:
                    step = talk.send(answer)
                    answer = None
                    if isinstance(step, Wait):
                        await pause(step.seconds)
                    else:
                        answer = await self._send(step)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]

    async def _send(self, call: Call) -> Answer:
        request = self._http.build_request(
            call.method, call.path, params=call.params, content=call.content, headers=call.headers
        )
        receiving = Receiving(self.settings.timeout_seconds)
        try:
            async with asyncio.timeout(self.settings.timeout_seconds):
                response = await self._http.send(request, stream=True)
                async with aclosing(response):
                    async for piece in response.aiter_bytes():
                        receiving.take(piece)
            return receiving.whole(response)
        except httpx.RequestError as error:
            return error
        except TimeoutError:
            return httpx.ReadTimeout("it did not end in time")
        except (httpx.InvalidURL, UnicodeError):
            return no_url()


async def _with_own_errors(outcomes: AsyncGenerator[T | Failure, None]) -> AsyncIterator[T | SoViTError]:
    async with aclosing(outcomes):
        async for outcome in outcomes:
            yield outcome.own_error() if isinstance(outcome, Failure) else outcome


async def pause(seconds: float) -> None:
    """Wait."""
    await asyncio.sleep(seconds)
