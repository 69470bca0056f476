from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from serving.inference.engine import STUCK_FACTOR, STUCK_SECONDS, Engine, Result
from sovit.errors import DeadlineExceeded, NotReady, RuntimeFailure
from sovit.runtime.batches import batch_sizes
from sovit.runtime.fake import POISON, FakeRuntime
from tests.conftest import tiny_spec

MODEL = tiny_spec().model
FAR = float("inf")


def image(value: int) -> NDArray[np.uint8]:
    return np.full((16, 16, 3), value, np.uint8)


def value_of(future: Future[Result]) -> int:
    return round(float(future.result(10).outputs["pre_logits"][0]) * 255)


def submit(engine: Engine, image_YXC: NDArray[np.uint8], deadline: float = FAR) -> Future[Result]:
    future: Future[Result] = Future()
    engine.submit(image_YXC, deadline, future)
    return future


def started(*runtimes: FakeRuntime, max_batch: int = 4) -> Engine:
    engine = Engine(runtimes, max_batch=max_batch)
    engine.start(image(0))
    for runtime in runtimes:
        runtime.batches.clear()
    return engine


def occupy(engine: Engine, runtime: FakeRuntime) -> Future[Result]:
    """Let one image into the runtime and hold it there."""
    runtime.gate.clear()
    future = submit(engine, image(1))
    while not future.running():
        time.sleep(0.001)
    return future


def test_every_image_gets_its_own_result() -> None:
    engine = started(FakeRuntime(MODEL))
    futures = [submit(engine, image(value)) for value in range(50)]
    assert [value_of(future) for future in futures] == list(range(50))
    engine.close()


def test_what_waits_becomes_one_batch_and_a_lone_image_does_not_wait() -> None:
    runtime = FakeRuntime(MODEL)
    engine = started(runtime)
    first = occupy(engine, runtime)
    rest = [submit(engine, image(value)) for value in range(2, 8)]
    runtime.gate.set()
    assert [value_of(future) for future in [first, *rest]] == [1, *range(2, 8)]
    assert runtime.batches == [1, 4, 2]
    engine.close()


def test_it_is_warmed_on_the_shapes_to_be_served() -> None:
    runtime = FakeRuntime(MODEL)
    engine = Engine([runtime], max_batch=4)
    assert not engine.ready
    with pytest.raises(NotReady):
        submit(engine, image(0)).result(10)
    engine.start(image(0))
    assert set(runtime.batches) == {1, 2, 4}
    assert engine.ready
    engine.close()
    assert not engine.ready


def test_sizes_that_gain_nothing_are_left_out() -> None:
    runtime = FakeRuntime(MODEL, seconds_per_call=0.02)
    engine = Engine([runtime, runtime], max_batch=8)
    engine.start(image(0), every_size=False)
    assert engine._sizes == (1, 2, 4, 8), "a call costs the same for any size: each is twice as fast as the last"
    engine.close()
    slow = FakeRuntime(MODEL)
    slow.seconds_per_image = 0.02
    engine = Engine([slow], max_batch=8)
    engine.start(image(0), every_size=False)
    assert engine._sizes == (1,)
    assert set(slow.batches) == {1, 2}
    engine.close()
    engine = Engine([slow], max_batch=8)
    engine.start(image(0))
    assert engine._sizes == (1, 2, 4, 8)
    engine.close()


@given(st.integers(1, 300))
def test_batches_have_few_sizes(most: int) -> None:
    sizes = batch_sizes(1, most)
    assert (sizes[0], sizes[-1]) == (1, most)
    assert all(b <= 2 * a for a, b in pairwise(sizes))
    assert len(sizes) <= most.bit_length() + 1


def test_only_warmed_sizes_are_run() -> None:
    runtime = FakeRuntime(MODEL)
    engine = started(runtime, max_batch=6)
    first = occupy(engine, runtime)
    rest = [submit(engine, image(value)) for value in range(2, 15)]
    runtime.gate.set()
    assert [value_of(future) for future in [first, *rest]] == [1, *range(2, 15)]
    assert runtime.batches == [1, 6, 6, 1]
    engine.close()


def test_what_nobody_waits_for_leaves_no_batch_of_a_size_that_was_not_warmed() -> None:
    runtime = FakeRuntime(MODEL)
    engine = started(runtime)
    first = occupy(engine, runtime)
    late = submit(engine, image(2), time.monotonic() - 1)
    rest = [submit(engine, image(value)) for value in range(3, 6)]
    runtime.gate.set()
    assert [value_of(future) for future in [first, *rest]] == [1, 3, 4, 5]
    with pytest.raises(DeadlineExceeded):
        late.result(10)
    assert runtime.batches == [1, 2, 1]
    engine.close()


def test_what_is_cancelled_as_it_is_taken_leaves_warmed_sizes_too(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = FakeRuntime(MODEL)
    engine = started(runtime)
    first = occupy(engine, runtime)
    rest = [submit(engine, image(value)) for value in range(2, 6)]
    # As if its client went away between the look at the queue and the start of the batch.
    monkeypatch.setattr("serving.inference.engine._wanted", lambda job: True)
    rest[1].cancel()
    runtime.gate.set()
    assert [value_of(future) for future in [first, rest[0], *rest[2:]]] == [1, 2, 4, 5]
    assert runtime.batches == [1, 2, 1]
    engine.close()


def test_a_stuck_run_is_no_life(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = FakeRuntime(MODEL)
    engine = started(runtime)
    future = occupy(engine, runtime)
    assert engine.alive
    now = time.monotonic()
    monkeypatch.setattr("serving.inference.engine.time.monotonic", lambda: now + STUCK_SECONDS - 0.5)
    assert engine.alive
    monkeypatch.setattr("serving.inference.engine.time.monotonic", lambda: now + STUCK_SECONDS + 0.5)
    assert not engine.alive
    assert not engine.ready
    monkeypatch.undo()
    runtime.gate.set()
    assert value_of(future) == 1
    assert engine.alive, "it came back"
    engine.close()


def test_a_slow_model_may_take_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = started(FakeRuntime(MODEL, seconds_per_call=0.3), max_batch=1)
    assert engine.longest_seconds >= STUCK_SECONDS + STUCK_FACTOR * 0.3
    engine.close()


def test_a_failed_warm_up_is_a_failed_start() -> None:
    engine = Engine([FakeRuntime(MODEL)], max_batch=4)
    with pytest.raises(RuntimeFailure):
        engine.start(image(POISON))
    assert not engine.ready


def test_one_image_that_breaks_the_runtime_fails_alone() -> None:
    runtime = FakeRuntime(MODEL)
    engine = started(runtime)
    first = occupy(engine, runtime)
    values = [2, POISON, 3, 4]
    futures = [submit(engine, image(value)) for value in values]
    runtime.gate.set()
    assert value_of(first) == 1
    for value, future in zip(values, futures, strict=True):
        if value == POISON:
            with pytest.raises(RuntimeFailure):
                future.result(10)
        else:
            assert value_of(future) == value
    assert runtime.batches == [1, 4, 1, 1, 1, 1]
    assert engine.alive
    engine.close()


def test_a_cancelled_image_frees_its_place_and_never_runs() -> None:
    runtime = FakeRuntime(MODEL)
    engine = started(runtime)
    first = occupy(engine, runtime)
    waiting = [submit(engine, image(2)) for _ in range(2)]
    engine.forget(waiting)
    assert engine.depth == 0
    last = submit(engine, image(3))
    runtime.gate.set()
    assert (value_of(first), value_of(last)) == (1, 3)
    assert runtime.batches == [1, 1]
    engine.close()


def test_a_late_image_never_runs() -> None:
    runtime = FakeRuntime(MODEL)
    engine = started(runtime)
    first = occupy(engine, runtime)
    late = submit(engine, image(2), time.monotonic() - 1)
    good = submit(engine, image(3))
    runtime.gate.set()
    with pytest.raises(DeadlineExceeded):
        late.result(10)
    assert (value_of(first), value_of(good)) == (1, 3)
    assert runtime.batches == [1, 1]
    engine.close()


def test_closing_finishes_what_was_accepted() -> None:
    runtime = FakeRuntime(MODEL)
    engine = started(runtime)
    futures = [occupy(engine, runtime)] + [submit(engine, image(2)) for _ in range(5)]
    closing = threading.Thread(target=engine.close)
    closing.start()
    runtime.gate.set()
    closing.join(10)
    assert not closing.is_alive()
    assert [value_of(future) for future in futures] == [1, 2, 2, 2, 2, 2]
    with pytest.raises(NotReady):
        submit(engine, image(3)).result(10)


def test_lanes_run_side_by_side() -> None:
    runtimes = [FakeRuntime(MODEL), FakeRuntime(MODEL)]
    engine = started(*runtimes, max_batch=1)
    for runtime in runtimes:
        runtime.gate.clear()
    futures = [submit(engine, image(value)) for value in (5, 6)]
    while not all(future.running() for future in futures):
        time.sleep(0.001)
    for runtime in runtimes:
        runtime.gate.set()
    assert [value_of(future) for future in futures] == [5, 6]
    assert [runtime.batches for runtime in runtimes] == [[1], [1]]
    engine.close()


def test_many_threads_at_once_lose_nothing() -> None:
    runtimes = [FakeRuntime(MODEL), FakeRuntime(MODEL)]
    engine = started(*runtimes)
    found: dict[int, int] = {}

    def client(start: int) -> None:
        for number in range(start, 250, 10):
            if number != POISON:
                found[number] = value_of(submit(engine, image(number)))

    threads = [threading.Thread(target=client, args=(start,)) for start in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    engine.close()
    assert found == {number: number for number in range(250) if number != POISON}
    assert sum(sum(runtime.batches) for runtime in runtimes) >= 249
