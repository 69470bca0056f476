"""Connections that clients leave open: thousands of them under a low limit of open files, and each kind's end."""

from __future__ import annotations

import asyncio
import http.client
import json
import re
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from serving.wire.connections import ConnectionTable
from sovit.artifact import Artifact
from sovit.process import free_port, sovit_serve
from tests.conftest import jpeg
from tests.test_reliability import ROOT, kill, until_ready

OPEN_FILES = 512
CONNECTIONS = 2_000
IMAGE = jpeg()
HEAD = b"POST /embed HTTP/1.1\r\nhost: x\r\ncontent-type: image/jpeg\r\ncontent-length: %d\r\n" % len(IMAGE)
LARGE = b"GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n" * 16
KINDS = {
    "idle": b"",
    "half a head": b"POST /embed HTTP/1.1\r\nhost: x",
    "half a body": HEAD + b"\r\n" + IMAGE[:100],
    "upgrade offered": HEAD
    + b"connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-key: a\r\n\r\n"
    + IMAGE[:100],
    "reads nothing": LARGE,
    "pipelines without end": b"GET /x HTTP/1.1\r\n\r\n" * 16,
}


@contextmanager
def served_with_few_files(artifact: Artifact, folder: Path) -> Iterator[tuple[int, int]]:
    """The service with `OPEN_FILES` descriptors: its port and its operations port."""
    port, operations_port = free_port(), free_port()
    command = sovit_serve(artifact.folder, port, "--operations-port", str(operations_port))
    process = subprocess.Popen(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        stdout=(folder / "log").open("wb"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES, OPEN_FILES)),  # noqa: PLW1509
    )
    try:
        until_ready(process, operations_port, folder)
        yield port, operations_port
    finally:
        kill(process)


def ask(port: int, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
    """As a client that is some way off: its request comes a while after its connection."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.connect()
        time.sleep(0.03)
        connection.request(method, path, body, {"content-type": "image/jpeg"})
        reply = connection.getresponse()
        return reply.status, reply.read()
    finally:
        connection.close()


def metric(text: bytes, name: str, **labels: str) -> float:
    inside = ",".join(f'{key}="{value}"' for key, value in labels.items())
    found = re.search(rf"^{name}{{{inside}}} (\S+)$".encode(), text, re.MULTILINE)
    return float(found[1]) if found else 0.0


class FakeConnection:
    """A connection that has been silent since a time."""

    loop: asyncio.AbstractEventLoop

    def __init__(self, last_active: float, *, waits: bool = True) -> None:
        self.last_active = last_active
        self.loop = asyncio.get_running_loop()
        self.closed: list[str] = []
        self._waits = waits

    def check(self, now: float) -> None:
        pass

    def waits_for_client(self) -> bool:
        return self._waits

    def close_now(self, reason: str) -> None:
        self.closed.append(reason)


def test_a_newcomer_takes_the_place_of_who_has_been_silent_longest() -> None:
    async def scenario() -> None:
        table = ConnectionTable(3)
        answered, old, new = FakeConnection(0, waits=False), FakeConnection(1), FakeConnection(2)
        assert all(table.add(connection) for connection in (answered, new, old))
        assert table.add(FakeConnection(3))
        assert (old.closed, new.closed, answered.closed) == (["descriptors"], [], [])
        assert table.add(FakeConnection(4, waits=False))
        assert new.closed == ["descriptors"]
        assert len(table) == 3

    asyncio.run(scenario())


def test_where_every_client_waits_for_an_answer_a_newcomer_is_refused() -> None:
    async def scenario() -> None:
        table = ConnectionTable(2)
        inside = [FakeConnection(0, waits=False) for _ in range(2)]
        assert all(table.add(connection) for connection in inside)
        assert not table.add(FakeConnection(1))
        table.discard(inside[0])
        assert table.add(FakeConnection(2))

    asyncio.run(scenario())


def test_thousands_of_connections_under_a_low_limit_keep_nobody_out(exported: Artifact, tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2 * CONNECTIONS:
        pytest.skip(f"the test itself needs {2 * CONNECTIONS} open files, and may have {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2 * CONNECTIONS), hard))
    held: list[socket.socket] = []
    try:
        with served_with_few_files(exported, tmp_path) as (port, operations_port):
            kinds = list(KINDS.values())
            for number in range(CONNECTIONS):
                client = socket.create_connection(("127.0.0.1", port), timeout=30)
                held.append(client)
                with suppress(ConnectionError):  # closed already, to make room
                    client.sendall(kinds[number % len(kinds)])
                if number % 200 == 199:
                    assert ask(port, "POST", "/embed", IMAGE)[0] == 200
                    assert ask(operations_port, "GET", "/readyz")[0] == 200
            _, metrics = ask(operations_port, "GET", "/metrics")
            assert 100 < metric(metrics, "sovit_connections_limit", port="service") < OPEN_FILES
            evicted = metric(metrics, "sovit_connections_closed_total", port="service", reason="descriptors")
            assert evicted >= CONNECTIONS - OPEN_FILES
            assert metric(metrics, "process_open_fds") < OPEN_FILES
            # None of those that are left outlives its time.
            deadline = time.monotonic() + 30
            while (
                metric(ask(operations_port, "GET", "/metrics")[1], "sovit_connections", port="service")
                > CONNECTIONS / 10
            ):
                assert time.monotonic() < deadline
                time.sleep(0.5)
            assert ask(port, "POST", "/embed", IMAGE)[0] == 200
        lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines() if line.startswith("{")]
        warnings = [line for line in lines if "connection limit reached" in line["message"]]
        assert len(warnings) == 1
    finally:
        for client in held:
            client.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
