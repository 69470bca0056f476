"""The images of one request on their way: each is decoded in a thread and handed on to the engine from there.

An image is run as soon as it is decoded, while its neighbours still are being decoded. Where one bad image fails the
request, the others stop when all are decoded, so that every bad one is named.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from functools import partial

from serving.engine import Outputs
from serving.worker import Worker
from sovit.errors import DeadlineExceeded, SoViTError


class Work:
    """`done` is an event loop's future, set once: from other threads the loop is woken once for a whole request."""

    def __init__(self, worker: Worker, images: Sequence[bytes], deadline: float, *, all_of_them: bool) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._worker = worker
        self.deadline = deadline
        self._all_of_them = all_of_them
        self._lock = threading.Lock()
        self._undecoded = self._unfinished = len(images)
        self._bad = False
        self._futures: list[Future[Outputs]] = [Future() for _ in images]
        for future in self._futures:
            future.add_done_callback(self._on_finished)
        worker.decoders.submit(
            [partial(self._decode, future, content) for future, content in zip(self._futures, images, strict=True)]
        )

    def results(self) -> list[Outputs | SoViTError]:
        """Outputs or error of each image, in order. Of a request that fails, only images with an error are sure."""
        results: list[Outputs | SoViTError] = []
        for future in self._futures:
            error = future.exception() if future.done() and not future.cancelled() else None
            if isinstance(error, SoViTError):
                results.append(error)
            elif error is not None:
                raise error
            else:
                results.append(future.result() if future.done() and not future.cancelled() else {})
        return results

    def fail(self, error: Exception) -> None:
        """End the wait with an error, unless the work is done."""
        if not self.done.done():
            self.done.set_exception(error)

    def give_up(self) -> None:
        """Take what has not run yet out of the way."""
        self._worker.engine.forget(self._futures)

    def _decode(self, future: Future[Outputs], content: bytes) -> None:
        failed = True
        try:
            if not future.cancelled():
                if time.monotonic() > self.deadline:
                    raise DeadlineExceeded("the request's time ran out before the image was decoded.")
                image = self._worker.spec.preprocess(content, self._worker.config.decode)
                failed = False
        except Exception as error:
            with suppress(InvalidStateError):  # nobody waits for it any more
                future.set_exception(error)
        finally:
            self._on_decoded(failed)
        if not failed:
            self._worker.engine.submit(image, self.deadline, future)

    def _on_decoded(self, failed: bool) -> None:
        with self._lock:
            self._undecoded -= 1
            self._bad |= failed
            over = self._bad and not self._all_of_them and not self._undecoded
        if over:
            self._wake()

    def _on_finished(self, _: Future[Outputs]) -> None:
        with self._lock:
            self._unfinished -= 1
            over = not self._unfinished
        if over:
            self._wake()

    def _wake(self) -> None:
        loop = self.done.get_loop()
        loop.call_soon_threadsafe(self._set_done)

    def _set_done(self) -> None:
        if not self.done.done():
            self.done.set_result(None)
