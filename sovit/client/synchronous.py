"""The client for ordinary code: every request is a thread's."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping
from concurrent.futures import CancelledError, Future, InvalidStateError
from contextlib import closing, suppress
from http import HTTPStatus
from socket import SHUT_RDWR, socket
from threading import Lock, Thread
from typing import Any, Final, Self, TypeVar
from weakref import WeakSet

import httpx
import numpy as np
from numpy.typing import NDArray

from sovit.client.base import READY_SECONDS, ClientBase
from sovit.client.batches import batches
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

_CONNECTED: Final = ("connection.connect_tcp.complete", "connection.start_tls.complete")


class Client(ClientBase):
    """A connection to one service. Use it as a context manager, or call `close`; threads may share it.

    Its options are the fields of `sovit.client.settings.Settings`. Raises `ConfigError` for those that make no sense.
    Errors are those of `sovit.errors` that the service names, with the request's id at their end. What is busy or
    starting is asked again, as `Retry` says.
    """

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections. Calls that wait for an answer, in other threads, end with a `ServiceError`."""
        with self._lock:
            self._closed = True
            waiting, connections = list(self._waiting), list(self._connections)
        for future in waiting:
            with suppress(InvalidStateError):
                future.set_exception(self._closed_error())
        for connection in connections:
            _hang_up(connection)
        self._http.close()

    def classify(self, images: Iterable[ImageSource], top_k: int = DEFAULT_TOP_K) -> list[Classification]:
        """The `top_k` classes of each image. Raises the error of the first image that has none, with its index."""
        return self._all(classify_question(top_k), images)

    def classify_each(
        self, images: Iterable[ImageSource], top_k: int = DEFAULT_TOP_K
    ) -> Iterator[Classification | SoViTError]:
        """The classes of each image or its own error, in order; any number of images in constant memory.

        Images are taken as they are needed. Raises the error of a service that answers nobody.
        """
        return self._each(classify_question(top_k), images)

    def embed(self, images: Iterable[ImageSource], normalize: bool = True) -> NDArray[np.float32]:
        """Embeddings, float32 [B, D]. Raises the error of the first image that has none, with its index."""
        rows = self._all(embed_question(normalize), images)
        return stacked(rows, self.url) if rows else np.empty((0, self._model().dim), np.float32)

    def embed_each(
        self, images: Iterable[ImageSource], normalize: bool = True
    ) -> Iterator[NDArray[np.float32] | SoViTError]:
        """The embedding of each image, float32 [D], or its own error, as `classify_each` gives them."""
        return self._each(embed_question(normalize), images)

    def models(self) -> list[ModelInfo]:
        """What is served; the first is the one that answers where no model is named."""
        return self._start(ask_models(self.settings)).result()

    def labels(self) -> list[str]:
        """The labels of the model's classes."""
        return list(self._model().labels)

    def ready(self) -> bool:
        """Whether /readyz answers 200 now."""
        self._check_open()
        try:
            found = self._http.get("/readyz", timeout=READY_SECONDS, extensions=self._extensions)
            return found.status_code == HTTPStatus.OK
        except httpx.RequestError:
            return False

    def _open(self) -> None:
        self._http = httpx.Client(**self.settings.http_options())
        self._lock = Lock()
        self._waiting: set[Future[Any]] = set()
        self._queue: deque[tuple[Talk[Any], Future[Any]]] = deque()
        self._under_way = 0
        self._connections: WeakSet[socket] = WeakSet()
        self._extensions = {"trace": self._note_connection}

    def _model(self) -> ModelInfo:
        return chosen(self.models(), self.settings.model)

    def _all(self, question: Question[T], images: Iterable[ImageSource]) -> list[T]:
        outcomes = self._outcomes(question, images)
        found: list[T] = []
        with closing(outcomes):
            for outcome in outcomes:
                if isinstance(outcome, Failure):
                    raise outcome.error(len(found))
                found.append(outcome)
        return found

    def _each(self, question: Question[T], images: Iterable[ImageSource]) -> Iterator[T | SoViTError]:
        outcomes = self._outcomes(question, images)
        return _with_own_errors(outcomes)

    def _outcomes(self, question: Question[T], images: Iterable[ImageSource]) -> Generator[T | Failure, None, None]:
        self._check_open()
        check_images(images)
        return self._stream(question, images)

    def _stream(self, question: Question[T], images: Iterable[ImageSource]) -> Generator[T | Failure, None, None]:
        pending: deque[Future[list[T | Failure]]] = deque()
        try:
            for batch in batches(map(content_of, images), self.settings.batch_size):
                pending.append(self._start(ask(self.settings, question, batch)))
                while pending and (len(pending) >= self._ahead or pending[0].done()):
                    yield from pending[0].result()
                    pending.popleft()
            while pending:
                yield from pending[0].result()
                pending.popleft()
        finally:
            for future in pending:
                future.cancel()

    def _start(self, talk: Talk[T]) -> Future[T]:
        """Carry a talk out in a thread of its own. Whoever does not want its result any more cancels the future.

        The thread is one that nobody waits for, at the end of the process least of all.
        """
        future: Future[T] = Future()
        with self._lock:
            self._check_open()
            self._waiting.add(future)
            self._queue.append((talk, future))
        future.add_done_callback(self._waiting.discard)
        self._launch()
        return future

    def _launch(self) -> None:
        """Start what waits, first come first served, as long as there is room."""
        while True:
            with self._lock:
                if not self._queue or self._under_way == self.settings.concurrency:
                    return
                talk, future = self._queue.popleft()
                if future.done():
                    continue
                self._under_way += 1
            # Its place is free when nobody wants the result any more, although its thread may wait for a reply then.
            future.add_done_callback(self._leave)
            try:
                Thread(target=self._carry_out, args=(talk, future), name="sovit-client", daemon=True).start()
            except RuntimeError as error:  # no more threads
                with suppress(InvalidStateError):
                    future.set_exception(error)

    def _leave(self, _: Future[Any]) -> None:
        with self._lock:
            self._under_way -= 1
        self._launch()

    def _carry_out(self, talk: Talk[T], future: Future[T]) -> None:
        try:
            answer: Answer | None = None
            while not future.done():
                step = talk.send(answer)
                answer = None
                if isinstance(step, Wait):
                    pause(step.seconds, future)
                else:
                    answer = self._send(step)
        except StopIteration as end:
            with suppress(InvalidStateError):
                future.set_result(end.value)
        except BaseException as error:
            with suppress(InvalidStateError):
                future.set_exception(error)

    def _send(self, call: Call) -> Answer:
        request = self._http.build_request(
            call.method,
            call.path,
            params=call.params,
            content=call.content,
            headers=call.headers,
            extensions=self._extensions,
        )
        receiving = Receiving(self.settings.timeout_seconds)
        try:
            response = self._http.send(request, stream=True)
            with closing(response):
                for piece in response.iter_bytes():
                    receiving.take(piece)
            return receiving.whole(response)
        except httpx.RequestError as error:
            return error
        except (httpx.InvalidURL, UnicodeError):
            return no_url()

    def _note_connection(self, event: str, info: Mapping[str, Any]) -> None:
        """See https://www.python-httpx.org/advanced/extensions/#trace."""
        if event in _CONNECTED:
            connection = info["return_value"].get_extra_info("socket")
            with self._lock:
                self._connections.add(connection)
            if self._closed:  # while this one was being made
                _hang_up(connection)


def _hang_up(connection: socket) -> None:
    """End a connection for both sides. To close it would leave a thread that reads from it waiting."""
    with suppress(OSError):
        connection.shutdown(SHUT_RDWR)


def _with_own_errors(outcomes: Generator[T | Failure, None, None]) -> Iterator[T | SoViTError]:
    with closing(outcomes):
        for outcome in outcomes:
            yield outcome.own_error() if isinstance(outcome, Failure) else outcome


def pause(seconds: float, future: Future[Any]) -> None:
    """Wait, but not for longer than anybody waits for the future."""
    with suppress(TimeoutError, CancelledError):
        future.exception(seconds)
