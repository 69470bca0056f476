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

from serving.inference.decoders import Decoders
from serving.inference.engine import Outputs, Result
from serving.inference.model import ServedModel
from serving.observing.record import Stage
from sovit.decode import DecodeOptions
from sovit.errors import DeadlineExceeded, SoViTError


class Work:
    """`done` is an event loop's future, set once: from other threads the loop is woken once for a whole request."""

    def __init__(
        self,
        model: ServedModel,
        decoders: Decoders,
        decode: DecodeOptions,
        images: Sequence[bytes],
        deadline: float,
        *,
        all_of_them: bool,
    ) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.deadline = deadline
        self._model = model
        self._decode_options = decode
        self._all_of_them = all_of_them
        self._lock = threading.Lock()
        self._undecoded = self._unfinished = len(images)
        self._bad = False
        self._began = time.monotonic()
        self._decoded = [(0.0, 0.0)] * len(images)  # began, ended
        self._futures: list[Future[Result]] = [Future() for _ in images]
        for future in self._futures:
            future.add_done_callback(self._on_finished)
        decoders.submit([partial(self._decode, index, content) for index, content in enumerate(images)])

    def results(self) -> list[Outputs | SoViTError]:
        """Outputs or error of each image, in order. Of a request that fails, only images with an error are sure."""
        results: list[Outputs | SoViTError] = []
        for future in self._futures:
            error = future.exception() if _has_ended(future) else None
            if isinstance(error, SoViTError):
                results.append(error)
            elif error is not None:
                raise error
            else:
                results.append(future.result().outputs if _has_ended(future) else {})
        return results

    def stages(self) -> list[Stage]:
        """The way of the image that was ready last."""
        ran = [
            (future.result(), decoded)
            for future, decoded in zip(self._futures, self._decoded, strict=True)
            if _has_ended(future) and future.exception() is None
        ]
        if not ran:
            return []
        result, (began, ended) = max(ran, key=lambda one: one[0].ended)
        return [
            Stage("queue", self._began, began),
            Stage("decode", began, ended),
            Stage("queue", ended, result.began),
            Stage("infer", result.began, result.ended),
        ]

    def fail(self, error: Exception) -> None:
        """End the wait with an error, unless the work is done."""
        if not self.done.done():
            self.done.set_exception(error)

    def give_up(self) -> None:
        """Take what has not run yet out of the way."""
        self._model.engine.forget(self._futures)

    def _decode(self, index: int, content: bytes) -> None:
        future = self._futures[index]
        failed = True
        began = time.monotonic()
        try:
            if not future.cancelled():
                if began > self.deadline:
                    raise DeadlineExceeded("the request's time ran out before the image was decoded.")
                image = self._model.spec.preprocess(content, self._decode_options)
                failed = False
        except Exception as error:
            with suppress(InvalidStateError):  # nobody waits for it any more
                future.set_exception(error)
        finally:
            self._decoded[index] = began, time.monotonic()
            self._on_decoded(failed)
        if not failed:
            self._model.engine.submit(image, self.deadline, future)

    def _on_decoded(self, failed: bool) -> None:
        with self._lock:
            self._undecoded -= 1
            self._bad |= failed
            over = self._bad and not self._all_of_them and not self._undecoded
        if over:
            self._wake()

    def _on_finished(self, _: Future[Result]) -> None:
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


def _has_ended(future: Future[Result]) -> bool:
    return future.done() and not future.cancelled()
