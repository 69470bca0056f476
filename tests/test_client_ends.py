"""A client that is closed, cancelled, interrupted or left early, alone and shared by threads."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from sovit.client import AsyncClient, Client
from sovit.errors import NotReady, ServiceError, SoViTError
from tests.standing_in import CLIENTS, Script, labels, labels_of, problem, silent, standing_in


@pytest.fixture(params=CLIENTS)
def connect(request: pytest.FixtureRequest) -> Any:
    """Either client."""
    return request.param


def no_thread_is_left() -> None:
    deadline = time.monotonic() + 20
    while any(thread.name == "sovit-client" for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_closed_client_says_so(connect: Callable[..., Any]) -> None:
    with connect("http://127.0.0.1:9") as client:
        client.close()
        for call in (client.classify, client.embed, client.classify_each, client.embed_each):
            with pytest.raises(ServiceError, match="is closed; make a new one"):
                call([b"a"])
        for call in (client.models, client.labels, client.ready):
            with pytest.raises(ServiceError, match="is closed; make a new one"):
                call()
        client.close()


def test_closing_ends_what_other_threads_wait_for() -> None:
    with silent() as (url, came), Client(url, batch_size=1, concurrency=1) as client:
        errors: list[Exception] = []

        def ask() -> None:
            try:
                client.classify([b"a", b"b"])
            except SoViTError as error:
                errors.append(error)

        thread = threading.Thread(target=ask)
        thread.start()
        assert came.wait(30)
        client.close()
        thread.join(30)
        assert "is closed; make a new one" in str(errors)
        no_thread_is_left()


def test_closing_ends_what_other_tasks_wait_for() -> None:
    async def close_while_asking(url: str, came: threading.Event) -> None:
        async with AsyncClient(url, batch_size=1, concurrency=1) as client:
            asking = asyncio.create_task(client.classify([b"a", b"b"]))
            assert await asyncio.to_thread(came.wait, 30)
            await client.close()
            with pytest.raises(ServiceError, match="is closed; make a new one"):
                await asyncio.wait_for(asking, 30)

    with silent() as (url, came):
        asyncio.run(close_while_asking(url, came))


def test_a_cancelled_task_leaves_nothing_behind() -> None:
    async def cancel(url: str, came: threading.Event) -> None:
        async with AsyncClient(url, batch_size=1, concurrency=1) as client:
            asking = asyncio.create_task(client.classify([b"a", b"b"]))
            assert await asyncio.to_thread(came.wait, 30)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            assert asyncio.all_tasks() == {asyncio.current_task()}

    with silent() as (url, came):
        asyncio.run(cancel(url, came))


def test_who_stops_early_leaves_the_client_to_others(connect: Callable[..., Any]) -> None:
    with standing_in(labels_of) as url, connect(url, batch_size=1, concurrency=2) as client:
        for _ in range(5):
            found = client.classify_each([b"a"] * 1000)
            next(found)
            found.close()
        assert labels(client.classify([b"b"])) == ["b"]


@pytest.mark.parametrize("kind", ["Client", "AsyncClient"])
def test_ctrl_c_waits_for_nobody(kind: str) -> None:
    calls = {
        "Client": "with Client(url, timeout_seconds=600, batch_size=1) as client: client.classify([b'a'] * 9)",
        "AsyncClient": (
            "async def ask():\n"
            "    async with AsyncClient(url, timeout_seconds=600, batch_size=1) as client:\n"
            "        await client.classify([b'a'] * 9)\n"
            "import asyncio; asyncio.run(ask())"
        ),
    }
    with silent() as (url, came):
        code = f"from sovit.client import Client, AsyncClient\nurl = {url!r}\n{calls[kind]}"
        process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
        assert came.wait(30)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=25)
        assert process.returncode != 0
        assert errors.strip().endswith("KeyboardInterrupt")


def test_a_wait_ends_when_nobody_waits_any_more() -> None:
    """The thread of a request that was told to come back later does not come back for nobody."""
    script = Script(*[problem(503, NotReady.title, retry_after="30")] * 99)
    with standing_in(script) as url, Client(url, batch_size=1, concurrency=1) as client:

        def images() -> Iterator[bytes]:
            yield b"a"
            while not script.asked:
                time.sleep(0.005)
            raise RuntimeError("stop")

        with pytest.raises(RuntimeError, match="stop"):
            client.classify(images())
        no_thread_is_left()
        assert len(script.asked) == 1


def test_threads_share_a_client() -> None:
    with standing_in(labels_of) as url, Client(url, batch_size=2, concurrency=2) as client:
        found: dict[int, list[str]] = {}

        def ask(number: int) -> None:
            found[number] = labels(client.classify([f"{number}-{index}".encode() for index in range(20)]))

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == {number: [f"{number}-{index}" for index in range(20)] for number in range(8)}
