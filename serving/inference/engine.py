"""One queue, N lanes: valid images in, one future per image out. The door (serving/entry/door.py) bounds what is in it.

A lane is a thread with a runtime of its own. It takes what waits, up to a batch, and runs it; a batch that fails is run
again image by image, so that a bad one fails alone. A cancelled or late image never reaches a runtime. Batches have few
sizes, powers of two, and every lane is warmed on each of them before it takes work.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import zip_longest
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sovit.errors import DeadlineExceeded, NotReady, RuntimeFailure, SoViTError
from sovit.runtime.base import Runtime
from sovit.runtime.batches import batch_sizes

logger = logging.getLogger(__name__)

# How long a run may take: a few seconds, and some times what the warm-up took.
STUCK_SECONDS: Final = 3.5
STUCK_FACTOR: Final = 3
_LONG_SECONDS: Final = 0.1
_TINY_SECONDS: Final = 0.002  # below it is the runtime's own overhead, which a larger batch shares
_WORTHWHILE: Final = 0.95  # of the time for an image in the next smaller batch

Image = NDArray[np.uint8]
_NOTHING: Final = np.empty(0, np.uint8)
Outputs = dict[str, NDArray[np.float32]]


class Result(NamedTuple):
    """An image's rows of the outputs, and when its run began and ended (`time.monotonic()`)."""

    outputs: Outputs
    began: float
    ended: float


@dataclass(eq=False)
class Job:
    """An image on its way; `began` is when its run did, 0 before."""

    image_YXC: Image
    deadline: float
    future: Future[Result]
    began: float = 0.0


class Engine:
    """Runs images in batches. `on_batch(images, seconds)` is told of every batch a runtime finished."""

    def __init__(
        self,
        runtimes: Sequence[Runtime],
        *,
        max_batch: int,
        on_batch: Callable[[int, float], None] | None = None,
    ) -> None:
        self._runtimes = list(runtimes)
        self._on_batch = on_batch
        self._queue: deque[Job] = deque()
        self._changed = threading.Condition()
        self._open = False
        self.seconds_per_image = 0.0  # as the warm-up found it
        self._lanes: list[threading.Thread] = []
        self._sizes = batch_sizes(1, max_batch)
        self._expected: dict[int, float] = {}  # seconds by size
        self._stuck_at: list[float | None] = [None] * len(self._runtimes)  # when each lane's run counts as stuck

    def start(self, image_YXC: Image, *, every_size: bool = True) -> None:
        """Warm every lane on every size of batch with this image, then take work. Raises when that fails.

        Unless `every_size` is wanted, a size that is no faster for an image than the one before, and all above it, are
        left out: such company only makes images wait for each other. Large models on a CPU have no use for any.
        """
        first, *others = self._runtimes
        best = math.inf
        sizes = []
        for size in self._sizes:
            self._expected[size] = seconds = _warm(first, image_YXC, size)
            if not every_size and seconds > _TINY_SECONDS and seconds / size > _WORTHWHILE * best:
                break
            sizes.append(size)
            best = min(best, seconds / size)
        self._sizes = tuple(sizes)
        for other in others:
            for size in sizes:
                _warm(other, image_YXC, size)
        self.seconds_per_image = best / len(self._runtimes)
        self._open = True
        for number in range(len(self._runtimes)):
            lane = threading.Thread(target=self._run_lane, args=(number,), name=f"lane-{number}", daemon=True)
            lane.start()
            self._lanes.append(lane)

    @property
    def ready(self) -> bool:
        """Warmed, taking work, and no lane has died."""
        return self._open and self.alive

    @property
    def alive(self) -> bool:
        """Whether every lane's thread runs, and none has been in one run for longer than any run may take."""
        now = time.monotonic()
        stuck = any(limit is not None and now > limit for limit in list(self._stuck_at))
        return not stuck and all(lane.is_alive() for lane in self._lanes)

    @property
    def longest_seconds(self) -> float:
        """How long a run may take before it counts as stuck."""
        return self._patience(self._sizes[-1])

    def _patience(self, size: int) -> float:
        # Lanes slow each other down, and other processes all of them.
        return STUCK_SECONDS + STUCK_FACTOR * self._expected.get(size, 0.0) * len(self._runtimes)

    @property
    def running(self) -> bool:
        """Whether a lane is in a run now."""
        return any(limit is not None for limit in self._stuck_at)

    @property
    def depth(self) -> int:
        """Images waiting."""
        return len(self._queue)

    def submit(self, image_YXC: Image, deadline: float, future: Future[Result]) -> Job:
        """Queue one image; `deadline` is a `time.monotonic()` value. The future gets its result.

        It raises `DeadlineExceeded`, `RuntimeFailure`, or `NotReady` where no work is taken; cancelling it while it
        waits frees its place.
        """
        job = Job(image_YXC, deadline, future)
        with self._changed:
            if self._open:
                self._queue.append(job)
                self._changed.notify()
                return job
        if future.set_running_or_notify_cancel():
            future.set_exception(NotReady("the service is not ready."))
        return job

    def forget(self, futures: Sequence[Future[Result]]) -> None:
        """Cancel what still waits of these and take it out of the queue at once."""
        for future in futures:
            future.cancel()
        # Some may have been cancelled by whoever waited for them: their places are freed here all the same.
        if any(future.cancelled() for future in futures):
            with self._changed:
                self._queue = deque(job for job in self._queue if not job.future.cancelled())

    def close(self) -> None:
        """Take no more work, finish what is queued, stop the lanes."""
        with self._changed:
            self._open = False
            self._changed.notify_all()
        for lane in self._lanes:
            lane.join(self.longest_seconds)
        # What is stuck is left to the end of the process: freeing an engine that runs would crash it.
        for runtime, lane in zip_longest(self._runtimes, self._lanes):  # a start that failed has no lanes
            if lane is None or not lane.is_alive():
                runtime.close()

    def _run_lane(self, number: int) -> None:
        while jobs := self._next_batch():
            while jobs:  # some may have been cancelled after they were taken: what is left goes in warmed sizes too
                size = max(size for size in self._sizes if size <= len(jobs))
                batch, jobs = jobs[:size], jobs[size:]
                began = time.monotonic()
                self._run_batch(number, batch)
                if self._on_batch is not None:
                    self._on_batch(size, time.monotonic() - began)

    def _next_batch(self) -> list[Job]:
        """Wait for work; an empty list means the engine is closed and the queue is done."""
        jobs: list[Job] = []
        with self._changed:
            while not jobs:
                while not self._queue:
                    if not self._open:
                        return []
                    self._changed.wait()
                # Only what is still wanted counts, or what is left of a batch would have a size that was never warmed.
                self._queue = deque(job for job in self._queue if _wanted(job))
                most = max((size for size in self._sizes if size <= len(self._queue)), default=0)
                taken = [self._queue.popleft() for _ in range(most)]
                jobs = [job for job in taken if job.future.set_running_or_notify_cancel()]
        return jobs

    def _run_batch(self, number: int, jobs: list[Job]) -> None:
        began = time.monotonic()
        for job in jobs:
            job.began = began
        try:
            self._stuck_at[number] = began + self._patience(len(jobs))
            try:
                outputs = self._runtimes[number].run(np.stack([job.image_YXC for job in jobs]))
            finally:
                self._stuck_at[number] = None
            if not all(np.isfinite(values).all() for values in outputs.values()):
                raise RuntimeFailure("the model's outputs for this image are not finite.")
            ended = time.monotonic()
            rows = [{name: values[row] for name, values in outputs.items()} for row in range(len(jobs))]
        except Exception as error:
            if len(jobs) > 1:
                for job in jobs:
                    self._run_batch(number, [job])
                return
            logger.exception("the runtime failed on an image")
            failure = error if isinstance(error, SoViTError) else RuntimeFailure("the model failed on this image.")
            jobs[0].image_YXC = _NOTHING
            jobs[0].future.set_exception(failure)
            return
        for job, row in zip(jobs, rows, strict=True):
            job.image_YXC = _NOTHING  # the job may be kept for its time
            job.future.set_result(Result(row, began, ended))


def _warm(runtime: Runtime, image_YXC: Image, size: int) -> float:
    """The seconds that a batch takes: the best of a few runs, where these are short."""
    batch = np.stack([image_YXC] * size)
    seconds = _timed(runtime, batch)
    if size > 1 and seconds > _LONG_SECONDS:  # what the first run of a size costs on top does not show in it
        return seconds
    return min(_timed(runtime, batch) for _ in range(1 if seconds > _LONG_SECONDS else 3))


def _timed(runtime: Runtime, batch_BYXC: Image) -> float:
    began = time.perf_counter()
    runtime.run(batch_BYXC)
    return time.perf_counter() - began


def _wanted(job: Job) -> bool:
    """Whether anybody still waits for a job. One whose time ran out is told so."""
    if not job.future.cancelled() and time.monotonic() < job.deadline:
        return True
    if job.future.set_running_or_notify_cancel():
        job.future.set_exception(DeadlineExceeded("the request's time ran out while it was queued."))
    return False
