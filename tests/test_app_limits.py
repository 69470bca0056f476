"""What bounds a request, and what becomes of it when it is late, left, or too much."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient
from starlette.types import Message

from sovit.artifact import Artifact
from sovit.runtime.fake import POISON, FakeRuntime
from tests.conftest import jpeg, png
from tests.served import (
    JPEG,
    assert_problem,
    huge_png,
    model_of,
    post_in_thread,
    post_raw,
    running,
    truncated_jpeg,
    until,
    worker_of,
)


def test_a_full_queue_answers_429_and_recovers(exported: Artifact) -> None:
    runtime = FakeRuntime(exported.manifest.model)
    with running(exported, runtime, max_queue=3, max_images=2, max_batch=1) as client:
        runtime.gate.clear()
        runtime.calls = 0
        engine = model_of(client).engine
        first, first_threads = post_in_thread(client, 1)
        until(lambda: runtime.calls == 1)
        responses, threads = post_in_thread(client, 2)
        until(lambda: engine.depth == 2)
        refused = client.post("/embed", content=jpeg(), headers=JPEG)
        document = assert_problem(refused, 429, "queue is full")
        assert int(refused.headers["retry-after"]) == document["retry_after_seconds"] >= 1
        runtime.gate.set()
        for thread in first_threads + threads:
            thread.join()
        assert [response.status_code for response in first + responses] == [200] * 3
        assert client.post("/embed", content=jpeg(), headers=JPEG).status_code == 200


def test_a_deadline_answers_504_and_what_waited_never_runs(exported: Artifact) -> None:
    runtime = FakeRuntime(exported.manifest.model)
    with running(exported, runtime, timeout_seconds=0.3, max_batch=1) as client:
        runtime.batches.clear()
        runtime.gate.clear()
        responses, threads = post_in_thread(client, 3)
        for thread in threads:
            thread.join()
        assert {response.status_code for response in responses} == {504}
        assert model_of(client).engine.depth == 0
        runtime.gate.set()
        assert client.post("/embed", content=jpeg(), headers=JPEG).status_code == 200
        assert sum(runtime.batches) == 2  # the one that was under way, and the good one


def test_a_request_may_ask_for_less_time_but_not_for_more(exported: Artifact) -> None:
    runtime = FakeRuntime(exported.manifest.model)
    with running(exported, runtime, timeout_seconds=0.4) as client:
        for wrong in ("0", "-1", "nan", "inf", "soon", "", "1_0", "0x5", "1 "):
            headers = JPEG | {"x-request-timeout": wrong}
            assert_problem(client.post("/embed", content=jpeg(), headers=headers), 400, "X-Request-Timeout")
        assert client.post("/embed", content=jpeg(), headers=JPEG | {"x-request-timeout": "60"}).status_code == 200
        runtime.gate.clear()
        for asked, given in (("0.05", "longer than 0.05 s"), ("60", "longer than 0.4 s")):
            headers = JPEG | {"x-request-timeout": asked}
            assert_problem(client.post("/embed", content=jpeg(), headers=headers), 504, given)


def test_a_client_that_goes_away_leaves_nothing_behind(exported: Artifact) -> None:
    runtime = FakeRuntime(exported.manifest.model)
    with running(exported, runtime, max_batch=1) as client:
        worker = worker_of(client)
        runtime.batches.clear()
        runtime.gate.clear()
        _, first = post_in_thread(client, 1)
        until(lambda: model_of(client).engine.running)
        messages: list[Message] = [{"type": "http.request", "body": jpeg(), "more_body": False}]

        async def once_it_waits() -> Message:
            if messages:
                return messages.pop()
            while not model_of(client).engine.depth:
                await asyncio.sleep(0.001)
            return {"type": "http.disconnect"}

        post_raw(client, once_it_waits)
        assert (model_of(client).engine.depth, worker.door.requests, worker.door.images) == (0, 1, 1)
        runtime.gate.set()
        first[0].join()
        assert client.post("/embed", content=jpeg(), headers=JPEG).status_code == 200
        assert runtime.batches == [1, 1], "what nobody waits for has never run"
        assert 'sovit_requests_total{code="499",route="/embed"} 1.0' in client.get("/metrics").text


def test_a_client_that_goes_away_while_it_sends_leaves_nothing_behind(client: TestClient) -> None:
    messages: list[Message] = [
        {"type": "http.disconnect"},
        {"type": "http.request", "body": jpeg()[:50], "more_body": True},
    ]

    async def receive() -> Message:
        return messages.pop()

    post_raw(client, receive)
    assert (worker_of(client).door.requests, worker_of(client).door.bytes) == (0, 0)


def test_bodies_under_way_are_bounded_in_bytes(exported: Artifact) -> None:
    runtime = FakeRuntime(exported.manifest.model)
    size = len(jpeg())
    with running(exported, runtime, max_body_bytes=2 * size, max_queue_bytes=3 * size) as client:
        runtime.gate.clear()
        responses, threads = post_in_thread(client, 2)
        until(lambda: worker_of(client).door.bytes == 2 * size)
        padded = jpeg() + b"x"
        assert_problem(client.post("/embed", content=padded, headers=JPEG), 429, "fill the memory")
        chunks = iter([jpeg(), b"x"])
        assert_problem(client.post("/embed", content=chunks, headers=JPEG), 429, "fill the memory")
        runtime.gate.set()
        for thread in threads:
            thread.join()
        assert [response.status_code for response in responses] == [200] * 2
        assert client.post("/embed", content=padded, headers=JPEG).status_code == 200
        assert 'sovit_rejected_total{reason="queue"} 2.0' in client.get("/metrics").text


def test_a_client_that_announces_much_and_sends_little_keeps_nobody_out(exported: Artifact) -> None:
    with running(exported, max_queue=2, max_images=1) as client:
        worker = worker_of(client)
        go_on = threading.Event()

        async def receive() -> Message:
            while not go_on.is_set():
                await asyncio.sleep(0.001)
            return {"type": "http.disconnect"}

        headers = [(b"content-type", b"image/jpeg"), (b"content-length", b"30000000")]
        slow = [threading.Thread(target=post_raw, args=(client, receive, headers)) for _ in range(20)]
        for thread in slow:
            thread.start()
        until(lambda: worker.door.requests == 20)
        assert (worker.door.images, worker.door.bytes) == (0, 0)
        hasty = JPEG | {"x-request-timeout": "2"}
        assert [client.post("/embed", content=jpeg(), headers=hasty).status_code for _ in range(5)] == [200] * 5
        go_on.set()
        for thread in slow:
            thread.join()
        assert worker.door.requests == 0


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_stuck_lane_and_a_dead_one_are_no_life(exported: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = FakeRuntime(exported.manifest.model)
    with running(exported, runtime) as client:
        monkeypatch.setattr("serving.inference.engine.STUCK_SECONDS", 0.05)
        runtime.gate.clear()
        responses, threads = post_in_thread(client, 1)
        until(lambda: client.get("/livez").status_code == 503)
        assert_problem(client.get("/livez"), 503, "dead or stuck")
        assert_problem(client.get("/readyz"), 503)
        runtime.gate.set()
        threads[0].join()
        assert responses[0].status_code == 200
        assert client.get("/livez").status_code == client.get("/readyz").status_code == 200
        monkeypatch.undo()

        def end_the_thread(_: object) -> dict[str, Any]:
            raise SystemExit

        monkeypatch.setattr(runtime, "run", end_the_thread)
        client.post("/embed", content=jpeg(), headers=JPEG | {"x-request-timeout": "0.2"})
        assert_problem(client.get("/livez"), 503, "dead or stuck")
        assert_problem(client.get("/readyz"), 503)


def test_an_image_that_breaks_the_runtime_is_a_500_that_says_nothing(client: TestClient) -> None:
    poison = png(np.full((16, 16, 3), POISON, np.uint8))
    assert_problem(client.post("/embed", content=poison, headers={"content-type": "image/png"}), 500)
    assert client.post("/embed", content=jpeg(), headers=JPEG).status_code == 200
    files = [("images", ("x", jpeg())), ("images", ("x", poison))]
    reply = client.post("/embed?on_error=item", files=files).json()
    assert [set(result) for result in reply["results"]] == [{"embedding"}, {"error"}]


def test_one_bad_image_never_hurts_its_neighbours(exported: Artifact) -> None:
    """Seven good requests and a bad one at once, many times: every good one succeeds."""
    bad = [truncated_jpeg(), b"text", huge_png(), png(np.full((16, 16, 3), POISON, np.uint8))]
    with running(exported) as client:
        for number in range(12):
            responses, threads = post_in_thread(client, 7)
            status = client.post("/embed", content=bad[number % 4], headers=JPEG).status_code
            for thread in threads:
                thread.join()
            assert status in (415, 422, 500)
            assert [response.status_code for response in responses] == [200] * 7
