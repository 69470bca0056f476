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
from dataclasses import dataclass
from functools import partial
from typing import Final

from serving.entry.decode_memory import Reservation
from serving.inference.decoders import Decoders
from serving.inference.engine import Job, Outputs, Result
from serving.inference.model import ServedModel
from serving.observing.record import Outcome, Stage, StageName
from sovit.decode import DecodeOptions
from sovit.errors import DeadlineExceeded, SoViTError

_FAULT_OF_OURS: Final = 500


@dataclass(slots=True)
class _Image:
    """One image on its way; of its times 0 is not yet."""

    future: Future[Result]
    decode_began: float = 0.0
    decode_ended: float = 0.0
    job: Job | None = None

    @property
    def was_bad(self) -> bool:
        """Whether it failed, other than by its time."""
        error = self.future.exception() if _has_ended(self.future) else None
        return error is not None and not isinstance(error, DeadlineExceeded)

    def stages(self, began: float, now: float) -> list[Stage]:
        """What it came through since `began`; the last one is where it is `now`, unless it is done."""
        result = self.future.result() if _has_ended(self.future) and self.future.exception() is None else None
        run_began = result.began if result else self.job.began if self.job else 0.0
        way: tuple[tuple[StageName, float], ...] = (
            ("queue", self.decode_began),
            ("decode", self.decode_ended),
            ("queue", run_began),
            ("infer", result.ended if result else 0.0),
        )
        found = []
        for name, end in way:
            found.append(Stage(name, began, end or now))
            if not end:
                break
            began = end
        return found


class Work:
    """`done` is an event loop's future, set once: from other threads the loop is woken once for a whole request.

    `sizes` are what each image takes of the reservation until it is decoded.
    """

    def __init__(
        self,
        model: ServedModel,
        decoders: Decoders,
        decode: DecodeOptions,
        images: Sequence[bytes],
        sizes: Sequence[int],
        reservation: Reservation,
        deadline: float,
        *,
        all_of_them: bool,
    ) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.deadline = deadline
        self._model = model
        self._decode_options = decode
        self._reservation = reservation
        self._all_of_them = all_of_them
        self._lock = threading.Lock()
        self._undecoded = self._unfinished = len(images)
        self._bad = False
        self._began = time.monotonic()
        self._images = [_Image(Future()) for _ in images]
        for image in self._images:
            image.future.add_done_callback(self._on_finished)
        decoders.submit(
            [
                partial(self._decode, image, content, size)
                for image, content, size in zip(self._images, images, sizes, strict=True)
            ]
        )

    def results(self) -> list[Outputs | SoViTError]:
        """Outputs or error of each image, in order. Of a request that fails, only images with an error are sure."""
        results: list[Outputs | SoViTError] = []
        for future in self._futures():
            has_ended = _has_ended(future)  # asked once: it may end between two looks
            error = future.exception() if has_ended else None
            if isinstance(error, SoViTError):
                results.append(error)
            elif error is not None:
                raise error
            else:
                results.append(future.result().outputs if has_ended else {})
        return results

    def outcomes(self) -> dict[Outcome, int]:
        """How many images have a result, were bad, or failed by us: in their run, or as their time ran out."""
        found: dict[Outcome, int] = {"ok": 0, "invalid": 0, "failed": 0}
        for future in self._futures():
            if _has_ended(future):
                error = future.exception()
                is_theirs = isinstance(error, SoViTError) and error.status < _FAULT_OF_OURS
                found["ok" if error is None else "invalid" if is_theirs else "failed"] += 1
            elif time.monotonic() >= self.deadline:
                found["failed"] += 1
        return found

    def stages(self) -> list[Stage]:
        """The way of the image that was ready last; of one that never was, where it has come to."""
        now = time.monotonic()
        ways = [image.stages(self._began, now) for image in self._images if not image.was_bad]
        return max(ways, key=lambda way: way[-1].ended, default=[])

    def fail(self, error: Exception) -> None:
        """End the wait with an error, unless the work is done."""
        if not self.done.done():
            self.done.set_exception(error)

    def give_up(self) -> None:
        """Take what has not run yet out of the way."""
        self._model.engine.forget(self._futures())

    def _futures(self) -> list[Future[Result]]:
        return [image.future for image in self._images]

    def _decode(self, image: _Image, content: bytes, size: int) -> None:
        future = image.future
        failed = True
        image.decode_began = time.monotonic()
        try:
            if not future.cancelled():
                if image.decode_began > self.deadline:
                    raise DeadlineExceeded("the request's time ran out before the image was decoded.")
                pixels = self._model.spec.preprocess(content, self._decode_options)
                failed = False
        except SoViTError as error:
            # Its traceback knows this future, and the image: both would stay until Python looks for such circles.
            error.__cause__ = error.__context__ = None
            _fail(future, error.with_traceback(None))
        except Exception as error:
            _fail(future, error)
        finally:
            image.decode_ended = time.monotonic()
            self._reservation.give_back(size)
            self._on_decoded(failed)
        if not failed:
            image.job = self._model.engine.submit(pixels, self.deadline, future)

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


def _fail(future: Future[Result], error: Exception) -> None:
    with suppress(InvalidStateError):  # nobody waits for it any more
        future.set_exception(error)


def _has_ended(future: Future[Result]) -> bool:
    return future.done() and not future.cancelled()
