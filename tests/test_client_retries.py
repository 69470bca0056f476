"""When the client asks again, how long it waits before it does, and when it gives up."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from email.utils import formatdate
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

import sovit.client.asynchronous
import sovit.client.synchronous
from sovit.client import Client, Retry
from sovit.client.retry import GiveUp, Wait
from sovit.errors import ConfigError, DeadlineExceeded, Draining, NotReady, QueueFull, RateLimited, ServiceError
from sovit.process import free_port
from tests.standing_in import (
    CLIENTS,
    QUEUE_FULL,
    Asked,
    Reply,
    Script,
    labels,
    labels_of,
    problem,
    standing_in,
    trickling,
)


@pytest.fixture(params=CLIENTS)
def connect(request: pytest.FixtureRequest) -> Any:
    """Either client."""
    return request.param


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the clients would have waited, instead of waiting."""
    found: list[float] = []

    async def note(seconds: float) -> None:
        found.append(seconds)

    monkeypatch.setattr(sovit.client.synchronous, "pause", lambda seconds, _: found.append(seconds))
    monkeypatch.setattr(sovit.client.asynchronous, "pause", note)
    return found


def test_retry_after_is_waited_for(connect: Callable[..., Any], waits: list[float]) -> None:
    date = {"date": formatdate(1_000_000, usegmt=True), "retry_after": formatdate(1_000_007, usegmt=True)}
    past = {"date": formatdate(1_000_000, usegmt=True), "retry_after": formatdate(999_000, usegmt=True)}
    script = Script(
        QUEUE_FULL,
        problem(503, NotReady.title, **date),
        problem(503, NotReady.title, **past),
        problem(429, RateLimited.title, retry_after="0"),
    )
    with standing_in(script) as url, connect(url) as client:
        assert labels(client.classify([b"a", b"b"])) == ["a", "b"]
    assert waits[2:] == [0, 0]
    assert 3 <= waits[0] <= 4.5, "as long as it asks, and some"
    assert 14 <= waits[1] <= 21, "the second time twice as long"
    assert [asked.images for asked in script.asked] == [[b"a", b"b"]] * 5


def test_without_retry_after_waits_double_and_are_not_all_the_same(
    connect: Callable[..., Any], waits: list[float]
) -> None:
    replies = [Reply(0), problem(503, NotReady.title, retry_after="soon"), Reply(502), Reply(429), Reply(503)]
    retry = Retry(attempts=6, first_wait_seconds=4, longest_wait_seconds=20)
    with standing_in(Script(*replies)) as url, connect(url, retry=retry) as client:
        assert labels(client.classify([b"a"])) == ["a"]
    for wait, most in zip(waits, [4, 8, 16, 20, 20], strict=True):
        assert most / 2 <= wait <= most


def test_a_connection_that_breaks_is_tried_again(connect: Callable[..., Any], waits: list[float]) -> None:
    whole = labels_of(Asked("/classify", {}, [b"a"]))
    cut = Reply(200, whole.body[:-5], whole.headers, length=len(whole.body))
    with standing_in(Script(Reply(0), cut, Reply(0))) as url, connect(url) as client:
        assert labels(client.classify([b"a"])) == ["a"]
    assert len(waits) == 3


def test_when_all_attempts_are_used_up_the_last_error_says_so(connect: Callable[..., Any], waits: list[float]) -> None:
    script = Script(*[QUEUE_FULL] * 9)
    with standing_in(script) as url, connect(url, retry=Retry(attempts=1, busy_attempts=3)) as client:
        with pytest.raises(QueueFull, match=r"answered 429: the queue is full; tried 3 times \(request abc\)\.$") as e:
            client.classify([b"a"])
        assert e.value.retry_after == 3
        assert (len(script.asked), len(waits)) == (3, 2)
    with connect(f"http://127.0.0.1:{free_port()}") as client:
        with pytest.raises(ServiceError, match=r"cannot be reached: .*; tried 5 times\.$"):
            client.embed([b"a"])
        assert not client.ready()


def test_whoever_asks_for_too_long_a_wait_is_not_asked_again(connect: Callable[..., Any], waits: list[float]) -> None:
    script = Script(QUEUE_FULL, problem(503, Draining.title, retry_after="100"))
    with standing_in(script) as url, connect(url, retry=Retry(longest_wait_seconds=20)) as client:
        words = r"tried 2 times, it asks for a wait of 100 s, and the longest allowed is 20 s\.$"
        with pytest.raises(Draining, match=words):
            client.classify([b"a"])
    assert len(waits) == 1


def test_no_answer_in_time(connect: Callable[..., Any]) -> None:
    over = threading.Event()

    def answer(_: Asked) -> Reply:
        over.wait(30)
        return Reply(0)

    with standing_in(answer) as url, connect(url, timeout_seconds=0.2) as client:
        with pytest.raises(DeadlineExceeded, match=r"did not answer within 0\.2 s\.$"):
            client.classify([b"a"])
        over.set()


def test_an_answer_without_end_is_given_up(connect: Callable[..., Any]) -> None:
    late = pytest.raises(DeadlineExceeded, match=r"did not answer within 0\.5 s")
    with trickling() as url, connect(url, timeout_seconds=0.5) as client, late:
        client.classify([b"a"])


# The decision by itself


@given(st.integers(1, 200), st.floats(0, 1), st.floats(0, 1e6), st.floats(0, 1e6))
def test_no_wait_is_longer_than_allowed(attempt: int, chance: float, first: float, longest: float) -> None:
    retry = Retry(attempts=201, first_wait_seconds=first, longest_wait_seconds=longest)
    then = retry.after(httpx.ConnectError("x"), attempt, lambda: chance)
    assert isinstance(then, Wait)
    assert 0 <= then.seconds <= longest


@given(st.integers(1, 200), st.floats(0, 1), st.integers(0, 1000))
def test_a_busy_service_is_waited_for_at_least_as_long_as_it_asks(attempt: int, chance: float, asked: int) -> None:
    retry = Retry(busy_attempts=201, longest_wait_seconds=1000)
    then = retry.after(httpx.Response(429, headers={"retry-after": str(asked)}), attempt, lambda: chance)
    assert isinstance(then, Wait)
    assert asked <= then.seconds <= 1000


@pytest.mark.parametrize("status", [400, 401, 403, 404, 408, 413, 415, 422, 500, 501, 504])
def test_other_statuses_are_final(status: int) -> None:
    assert Retry().after(httpx.Response(status, headers={"retry-after": "1"}), 1) == GiveUp()


@pytest.mark.parametrize(
    "error", [httpx.ReadTimeout("x"), httpx.WriteTimeout("x"), httpx.DecodingError("x"), httpx.UnsupportedProtocol("x")]
)
def test_a_request_that_took_all_its_time_is_final(error: httpx.RequestError) -> None:
    assert Retry().after(error, 1) == GiveUp()


@pytest.mark.parametrize("given", ["-1", "1.5", "", "soon", "٣", "Wed, 99 Foo 2026 00:00:00 GMT", "1e3"])
def test_a_retry_after_of_no_form_is_none(given: str) -> None:
    headers = [(b"retry-after", given.encode())]
    then = Retry().after(httpx.Response(429, headers=headers), 1, lambda: 0)
    assert then == Wait(Retry().first_wait_seconds)


def test_a_date_without_the_services_clock_is_read_by_ours() -> None:
    headers = {"retry-after": formatdate(time.time() + 20, usegmt=True)}
    then = Retry(longest_wait_seconds=1000).after(httpx.Response(429, headers=headers), 1)
    assert isinstance(then, Wait)
    assert 0 < then.seconds <= 30
    huge = Retry().after(httpx.Response(429, headers={"retry-after": "9" * 5000}), 1)
    assert isinstance(huge, GiveUp)


def test_what_to_try_is_checked() -> None:
    for options in ({"attempts": 0}, {"first_wait_seconds": -1.0}, {"longest_wait_seconds": float("inf")}):
        with pytest.raises(ConfigError, match=f"{next(iter(options))} is "):
            Retry(**options)
    with Client("http://127.0.0.1:9") as client, pytest.raises(ConfigError, match="top_k is 0"):
        client.classify([], top_k=0)
