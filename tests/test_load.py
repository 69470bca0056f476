"""The load generator: when it sends, from when it measures, and what it counts."""

from __future__ import annotations

import asyncio
import errno
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.stats import expon, kstest  # type: ignore[import-untyped]

import benchmarks.load.clients
from benchmarks.load.loops import Load, Tally, Target, closed_loop, load_of, observe_closed, observe_open, open_loop
from benchmarks.load.pacing import arrivals, punctual_loop
from tests.conftest import jpeg
from tests.standing_in import Asked, Reply, Script, of, problem, silent, standing_in

GOOD = Reply()
IMAGES = [jpeg(), jpeg((1, 2, 3))]


def asleep(seconds: float) -> Callable[[Asked], Reply]:
    def answer(_: Asked) -> Reply:
        time.sleep(seconds)
        return GOOD

    return answer


@pytest.mark.parametrize(("rate", "seed"), [(5.0, 0), (50.0, 1), (2000.0, 2)])
def test_gaps_between_arrivals_are_exponential(rate: float, seed: int) -> None:
    """Kolmogorov-Smirnov, on 5,000 gaps; evenly spaced arrivals of the same rate do not pass."""
    due = arrivals(rate, 5000 / rate, seed, least=5000)
    gaps = np.diff([0.0, *due])
    assert kstest(gaps, expon(scale=1 / rate).cdf).pvalue > 0.05
    assert kstest(np.full(5000, 1 / rate), expon(scale=1 / rate).cdf).pvalue < 1e-6
    # Nor does a gap say anything of the next: the deviation of a correlation of 0 is 1 / sqrt(5000) = 0.014.
    assert abs(np.corrcoef(gaps[:-1], gaps[1:])[0, 1]) < 0.05


def test_arrivals_are_of_the_seed() -> None:
    assert arrivals(10, 5, 3) == arrivals(10, 5, 3) != arrivals(10, 5, 4)


def test_the_warm_up_lies_before_zero_and_measuring_goes_on_to_the_least_count() -> None:
    due = arrivals(10, 2, warmup_seconds=3, least=100)
    assert due == sorted(due)
    assert -3 < due[0] < 0
    assert sum(after >= 0 for after in due) == 100
    assert all(after < 2 for after in arrivals(10, 2, warmup_seconds=3))


def test_the_loop_does_not_wake_early() -> None:
    async def slept(seconds: float) -> float:
        began = time.monotonic()
        await asyncio.sleep(seconds)
        return time.monotonic() - began

    with asyncio.Runner(loop_factory=punctual_loop) as runner:
        for seconds in (0.0003, 0.0017, 0.01):
            assert runner.run(slept(seconds)) >= seconds


@pytest.mark.skipif(sys.platform != "linux", reason="asyncio's own loop is used elsewhere")
def test_a_wait_is_not_rounded_up_to_milliseconds(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    def waited(reading: list[int], _: list[int], __: list[int], timeout: float) -> Any:
        waits.append(timeout)
        return select.select(reading, [], [], timeout)

    monkeypatch.setattr("benchmarks.load.pacing.select", waited)
    with asyncio.Runner(loop_factory=punctual_loop) as runner:
        runner.run(asyncio.sleep(0.0003))
    assert any(0 < wait < 0.0004 for wait in waits), "epoll would have been asked for a whole millisecond"


def test_latencies_are_no_lower_than_a_known_sleep() -> None:
    with standing_in(asleep(0.02)) as url:
        loads = [
            closed_loop(Target(url=url), IMAGES, concurrency=2, seconds=0.4),
            open_loop(Target(url=url), IMAGES, rate=50, seconds=0.4),
        ]
    for load in loads:
        assert load.statuses == {"200": load.offered}
        assert load.p50_ms is not None
        assert load.p90_ms is not None
        assert load.p99_ms is not None
        assert load.max_ms is not None
        assert 20 <= load.p50_ms <= load.p90_ms <= load.p99_ms <= load.max_ms
        assert load.throughput == load.goodput == load.offered / load.seconds
        assert load.seconds >= 0.4
    closed, opened = loads
    assert closed.offered <= 2 * (closed.seconds / 0.02 + 1)  # two clients, one request each in 20 ms
    assert closed.late_p99_ms is None
    assert opened.late_p99_ms is not None
    assert 0 <= opened.late_p99_ms <= (opened.late_max_ms or 0)


def test_a_stall_counts_for_all_who_would_have_come_meanwhile() -> None:
    """The server stands still for half a second when it is first asked. Nobody is answered before its end."""
    turn = threading.Lock()
    asked: list[Asked] = []

    def answer(request: Asked) -> Reply:
        with turn:
            if not asked:
                time.sleep(0.5)
            asked.append(request)
        return GOOD

    due = arrivals(100, 0.8, seed=5)
    with standing_in(answer) as url:
        observed = observe_open(Target(url=url), IMAGES, rate=100, seconds=0.8, seed=5)
    found = load_of(observed)
    assert found.statuses == {"200": len(due)}
    # A request was due at `after`, and is answered after due[0] + 0.5 at the earliest.
    least = sorted(max(0.0, due[0] + 0.5 - after) for after in due)
    assert all(latency >= low for latency, low in zip(sorted(observed.measured.latencies[200]), least, strict=True))
    slow = sum(latency >= 0.25 for latency in observed.measured.latencies[200])
    assert slow >= sum(after <= due[0] + 0.25 for after in due) > 10
    assert found.p90_ms is not None
    assert found.p90_ms >= 1000 * least[int(0.9 * len(due)) - 1] > 250


def test_failures_are_counted_each_and_are_no_throughput() -> None:
    replies = [
        *[problem(429, "Queue full")] * 3, *[problem(503, "Not ready")] * 2, of({}, 500), Reply(0), Reply(0),
    ]  # fmt: skip
    server = Script(*replies)
    with standing_in(server) as url:
        load = load_of(observe_open(Target(url=url), IMAGES, rate=100, seconds=0, least=20))
    assert load.statuses == {"200": 12, "429": 3, "500": 1, "503": 2}
    assert (load.connection_failures, load.timeouts, load.unsent, load.unfinished) == (2, 0, 0, 0)
    assert len(server.asked) == load.offered == 20
    assert (load.completed, load.failures) == (18, 8)
    assert load.throughput == load.goodput == 12 / load.seconds
    assert load.reject_ms is not None


def test_where_all_fail_there_is_no_latency() -> None:
    with standing_in(lambda _: of({}, 500)) as url:
        load = closed_loop(Target(url=url), IMAGES, concurrency=1, seconds=0.1)
    assert load.statuses == {"500": load.offered}
    assert load.throughput == load.goodput == 0
    assert load.p50_ms is load.p99_ms is load.max_ms is load.reject_ms is None


def test_goodput_is_of_the_answers_in_time() -> None:
    with standing_in(asleep(0.01)) as url:
        load = closed_loop(Target(url=url, limit_ms=9), IMAGES, concurrency=1, seconds=0.1)
    assert load.statuses == {"200": load.offered}
    assert load.goodput == 0 < load.throughput


def test_who_gets_no_answer_is_a_timeout() -> None:
    with silent() as (url, _):
        load = open_loop(Target(url=url, timeout_seconds=0.1), IMAGES, rate=50, seconds=0.2)
    assert load.timeouts == load.offered == len(arrivals(50, 0.2))
    assert load.completed == load.throughput == 0


def test_a_server_that_is_gone_is_a_connection_failure() -> None:
    with standing_in(lambda _: GOOD) as url:
        pass
    load = open_loop(Target(url=url), IMAGES, rate=50, seconds=0.2)
    assert load.connection_failures == load.offered == load.failures > 0


def test_what_this_machine_could_not_send_is_no_failure_of_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    async def no_more(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, "too many open files")

    monkeypatch.setattr(asyncio.BaseEventLoop, "create_connection", no_more)
    load = open_loop(Target(url="http://127.0.0.1:9"), IMAGES, rate=50, seconds=0.2)
    assert load.unsent == load.offered > 0
    assert load.connection_failures == 0


def test_connections_have_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmarks.load.clients, "MAX_CONNECTIONS", 2)
    with silent() as (url, _):
        load = open_loop(Target(url=url, timeout_seconds=1), IMAGES, rate=100, seconds=0.2)
    assert load.timeouts >= 2
    assert load.unsent == load.offered - load.timeouts > 0


def test_the_warm_up_is_counted_apart() -> None:
    server = Script(*[of({}, 503)] * 2)
    due = arrivals(100, 0.3, seed=1, warmup_seconds=0.3)
    with standing_in(server) as url:
        observed = observe_open(Target(url=url), IMAGES, rate=100, seconds=0.3, seed=1, warmup_seconds=0.3)
    assert observed.warmup.offered == sum(after < 0 for after in due)
    assert observed.measured.offered == sum(after >= 0 for after in due)
    assert len(server.asked) == len(due)
    assert observed.warmup.failed == 2
    assert load_of(observed).statuses == {"200": observed.measured.offered}

    server = Script(of({}, 503))
    with standing_in(server) as url:
        observed = observe_closed(Target(url=url), IMAGES, concurrency=1, seconds=0.1, warmup_seconds=0.1)
    assert observed.warmup.failed == 1
    assert observed.measured.failed == 0
    assert len(server.asked) == observed.warmup.offered + observed.measured.offered
    assert observed.seconds >= 0.1


def test_a_run_stops_when_it_is_decided() -> None:
    planned: set[int] = set()

    def decided(tally: Tally, requests: int) -> bool:
        planned.add(requests)
        return tally.offered >= 3

    with standing_in(lambda _: GOOD) as url:
        observed = observe_open(Target(url=url), IMAGES, rate=50, seconds=60, least=10, decided=decided)
    assert observed.decided
    assert not observed.interrupted
    assert observed.measured.offered == 3
    assert observed.seconds < 60
    assert planned == {len(arrivals(50, 60))}


def test_ctrl_c_keeps_what_has_come_back() -> None:
    asked: list[Asked] = []

    def answer(request: Asked) -> Reply:
        asked.append(request)
        if len(asked) == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return GOOD

    with standing_in(answer) as url:
        observed = observe_closed(Target(url=url), IMAGES, concurrency=1, seconds=600)
        assert observed.interrupted
        load = load_of(observed)
        assert load.statuses["200"] >= 4
        assert load.offered == load.completed + load.unfinished
        assert load.unfinished <= 1
        assert load.failures == 0
        assert load.seconds < 600
        asked.clear()
        with pytest.raises(KeyboardInterrupt):
            open_loop(Target(url=url), IMAGES, rate=100, seconds=600)


def test_requests_name_the_model_and_carry_the_key() -> None:
    server = Script()
    with standing_in(server) as url:
        target = Target(url=f"{url}/behind/", model="a b&c", api_key="open-sesame")
        assert "open-sesame" not in repr(target)
        closed_loop(target, IMAGES, concurrency=1, seconds=0.01)
    for asked in server.asked:
        assert asked.path == "/behind/embed?model=a%20b%26c"
        assert asked.headers["authorization"] == "Bearer open-sesame"
        assert asked.headers["content-type"] == "image/jpeg"
        assert int(asked.headers["content-length"]) in {len(image) for image in IMAGES}


def test_every_request_has_one_end() -> None:
    assert {field for field in Load.__dataclass_fields__ if field.startswith("un")} == {"unsent", "unfinished"}
    tally = Tally(limit_seconds=0.1, offered=6, connection_failures=1, timeouts=1, unsent=1)
    tally.add(200, 0.1)
    tally.add(200, 0.2)
    assert (tally.answered, tally.succeeded, tally.good) == (2, 2, 1)
    assert (tally.ended, tally.failed) == (5, 3)
