"""What a service goes through in its life, on real processes: told to stop, killed, left by its clients."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path

import psutil
import pytest

from serving.wire.connections import ConnectionLimits
from sovit.artifact import Artifact
from sovit.client import Client
from sovit.process import free_port, serving, sovit_serve
from tests.conftest import jpeg

ROOT = Path(__file__).parents[1]
GONE = (ConnectionError, http.client.RemoteDisconnected, http.client.BadStatusLine)


def send(port: int, method: str = "POST", path: str = "/embed", **headers: str) -> tuple[int, dict[str, str]]:
    """One request on a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        body = jpeg() if path == "/embed" else None
        connection.request(method, path, body, {"content-type": "image/jpeg"} | headers)
        reply = connection.getresponse()
        reply.read()
        return reply.status, {name.lower(): value for name, value in reply.headers.items()}
    finally:
        connection.close()


@contextmanager
def half_sent(port: int) -> Iterator[socket.socket]:
    """A request whose client has sent half of its image, and which the service has begun to read."""
    image = jpeg()
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        head = f"POST /embed HTTP/1.1\r\nhost: x\r\ncontent-type: image/jpeg\r\ncontent-length: {len(image)}\r\n\r\n"
        client.sendall(head.encode() + image[:100])
        time.sleep(0.2)
        yield client


def finish(client: socket.socket) -> bytes:
    client.sendall(jpeg()[100:])
    return client.recv(65_536)


@contextmanager
def started(artifact: Artifact, tmp_path: Path, *options: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", *sovit_serve(artifact.folder, port, *options)],
        cwd=ROOT,
        stdout=(tmp_path / "log").open("wb"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        until_ready(process, port, tmp_path)
        yield process, port
    finally:
        kill(process)


def kill(process: subprocess.Popen[bytes]) -> None:
    """With all below it: BentoML's workers are in process groups of their own."""
    with suppress(psutil.NoSuchProcess):
        for below in psutil.Process(process.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                below.kill()
    process.kill()
    process.wait()


def until_ready(process: subprocess.Popen[bytes], port: int, tmp_path: Path) -> None:
    deadline = time.monotonic() + 60
    with Client(f"http://127.0.0.1:{port}") as client:
        while not client.ready():
            assert time.monotonic() < deadline
            assert process.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.05)


def worker_process(process: subprocess.Popen[bytes]) -> psutil.Process:
    """The process that runs the model, below BentoML's supervisor."""
    workers = [
        child
        for child in psutil.Process(process.pid).children(recursive=True)
        if "worker" in " ".join(child.cmdline()) and "bentoml" in " ".join(child.cmdline())
    ]
    assert len(workers) == 1
    return workers[0]


def test_a_worker_that_takes_anothers_place_serves_what_was_swapped_in(exported: Artifact, tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    keys.write_text(f'[{{"name": "ops", "sha256": "{sha256(b"secret").hexdigest()}", "admin": true}}]')
    moved = shutil.copytree(exported.folder, tmp_path / "moved")
    with started(exported, tmp_path, "--keys", str(keys)) as (process, port):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        headers = {"authorization": "Bearer secret"}
        connection.request("POST", "/admin/models/tiny", json.dumps({"artifact": str(moved)}), headers)
        assert connection.getresponse().status == 200
        connection.close()
        before = worker_process(process)
        settings = before.environ()["SOVIT_SERVE_CONFIG"]
        before.kill()
        psutil.wait_procs([before], 10)
        until_ready(process, port, tmp_path)
        assert worker_process(process).pid != before.pid
        assert json.loads(Path(settings).read_text())["artifacts"] == {"tiny": str(moved)}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_it_finishes_what_it_accepted_and_refuses_newcomers(
    exported: Artifact, tmp_path: Path, number: signal.Signals
) -> None:
    with started(exported, tmp_path) as (process, port), half_sent(port) as client:
        process.send_signal(number)
        deadline = time.monotonic() + 10
        while (newcomer := send(port))[0] == 200:
            assert time.monotonic() < deadline
        for _ in range(5):
            assert newcomer[0] == 503
            assert newcomer[1]["connection"] == "close"
            assert int(newcomer[1]["retry-after"]) >= 1
            newcomer = send(port)
        assert send(port, "GET", "/readyz")[0] == 503
        assert send(port, "GET", "/livez")[0] == 200
        assert finish(client).startswith(b"HTTP/1.1 200 OK")
        statuses = []
        with pytest.raises(GONE):
            while True:
                statuses.append(send(port)[0])
        assert set(statuses) <= {503}
        assert process.wait(30) == 0
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_told_to_stop_under_load_every_request_has_an_answer(exported: Artifact, tmp_path: Path) -> None:
    answers: list[int] = []
    late: list[str] = []
    stopped = threading.Event()

    def client() -> None:
        while True:
            try:
                answers.append(send(port)[0])
            except GONE as error:
                if not stopped.is_set():
                    late.append(repr(error))
                return

    with started(exported, tmp_path) as (process, port):
        threads = [threading.Thread(target=client) for _ in range(8)]
        for thread in threads:
            thread.start()
        while len(answers) < 200:
            time.sleep(0.01)
        stopped.set()
        process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive(), "a newcomer was left hanging"
        assert process.wait(30) == 0
    assert set(answers) <= {200, 503}
    assert not late


@pytest.mark.parametrize("seconds", [1.0, 2.0])
def test_told_to_stop_while_it_starts_it_stops(exported: Artifact, seconds: float) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", *sovit_serve(exported.folder, free_port())],
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        time.sleep(seconds)
        process.send_signal(signal.SIGTERM)
        below = psutil.Process(process.pid).children(recursive=True)
        assert process.wait(30) == 0
        assert not psutil.wait_procs(below, timeout=10)[1]
    finally:
        kill(process)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_worker_that_dies_is_replaced(exported: Artifact, tmp_path: Path, number: signal.Signals) -> None:
    with started(exported, tmp_path) as (process, port):
        worker = worker_process(process)
        worker.send_signal(number)
        worker.wait(20)
        until_ready(process, port, tmp_path)
        assert worker_process(process).pid != worker.pid
        assert send(port)[0] == 200


def test_with_a_killed_supervisor_the_worker_ends_too(exported: Artifact, tmp_path: Path) -> None:
    with started(exported, tmp_path) as (process, port):
        worker = worker_process(process)
        supervisor = worker.parent()
        assert supervisor is not None
        with half_sent(port) as client:
            supervisor.kill()
            assert process.wait(20) != 0
            assert finish(client).startswith(b"HTTP/1.1 200 OK"), "what was accepted is finished all the same"
        worker.wait(20)


def until_closed(client: socket.socket) -> bytes:
    received = b""
    with suppress(ConnectionError):
        while piece := client.recv(65_536):
            received += piece
    return received


def test_a_head_without_end_and_requests_without_answers_are_cut_off(exported: Artifact, tmp_path: Path) -> None:
    with started(exported, tmp_path) as (process, port):
        worker = worker_process(process)
        before = worker.memory_info().rss
        with socket.create_connection(("127.0.0.1", port), timeout=30) as client, suppress(ConnectionError):
            client.sendall(b"GET /livez HTTP/1.1\r\nx: ")
            for _ in range(1000):
                client.sendall(b"y" * 65_536)
            pytest.fail("it took a head of 64 MB")
        with socket.create_connection(("127.0.0.1", port), timeout=30) as client, suppress(ConnectionError):
            for _ in range(20_000):  # more than the sockets' own buffers take
                client.sendall(b"GET /docs HTTP/1.1\r\nhost: x\r\n\r\n" * 100)
            pytest.fail("it took two million requests of a client that reads no answer")
        with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
            client.sendall(b"POST /nosuch HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
            with suppress(ConnectionError):
                for _ in range(200_000):
                    client.sendall(b"10000\r\n" + b"z" * 65_536 + b"\r\n")
                pytest.fail("it went on to take a body that it had refused")
        assert worker.memory_info().rss < before + 30e6
        assert send(port)[0] == 200


def test_a_head_that_takes_too_long_is_cut_off(exported: Artifact, tmp_path: Path) -> None:
    with started(exported, tmp_path) as (_, port):
        began = time.monotonic()
        with (
            socket.create_connection(("127.0.0.1", port), timeout=60) as silent,
            socket.create_connection(("127.0.0.1", port), timeout=60) as slow,
        ):
            slow.sendall(b"GET /livez HTTP/1.1\r\n")
            assert until_closed(silent) == until_closed(slow) == b""
        assert time.monotonic() - began >= ConnectionLimits().head_seconds - 1


def test_told_to_stop_it_does_not_wait_for_a_client_that_reads_nothing(exported: Artifact, tmp_path: Path) -> None:
    with started(exported, tmp_path) as (process, port), socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", port))
        for _ in range(14):
            client.sendall(b"GET /docs HTTP/1.1\r\nhost: x\r\n\r\n" * 10)
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


def test_five_hundred_clients_go_away_in_mid_upload_and_mid_queue(exported: Artifact, tmp_path: Path) -> None:
    image = jpeg()
    head = (
        f"POST /embed HTTP/1.1\r\nhost: x\r\ncontent-type: image/jpeg\r\ncontent-length: {len(image)}\r\n\r\n".encode()
    )
    with started(exported, tmp_path, "--max-queue", "64") as (process, port):
        worker = worker_process(process)
        descriptors = worker.num_fds()
        threads = worker.num_threads()
        clients = []
        for number in range(500):
            client = socket.create_connection(("127.0.0.1", port), timeout=30)
            client.sendall(head + (image[: number % len(image)] if number % 2 else image))
            clients.append(client)
            if len(clients) == 50:
                for left in clients:
                    left.close()
                clients.clear()
        deadline = time.monotonic() + 20
        while worker.num_fds() > descriptors + 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert worker.num_threads() <= threads + 4
        assert send(port)[0] == 200
        connection = http.client.HTTPConnection("127.0.0.1", port)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        connection.close()
    gauges = dict(line.split() for line in text.splitlines() if line.startswith(("sovit_inflight", "sovit_queue")))
    assert gauges == {"sovit_inflight": "0.0", 'sovit_queue_images{model="tiny"}': "0.0"}


def test_operations_have_a_port_of_their_own(exported: Artifact, tmp_path: Path) -> None:
    port, operations = free_port(), free_port()
    keys = tmp_path / "keys.json"
    keys.write_text(json.dumps([{"name": "a", "sha256": sha256(b"secret").hexdigest()}]))
    command = sovit_serve(exported.folder, port, "--operations-port", str(operations), "--keys", str(keys))
    with serving(command, f"http://127.0.0.1:{operations}", tmp_path / "log"):
        for path in ("/livez", "/readyz", "/metrics"):
            assert send(operations, "GET", path)[0] == 200
            assert send(port, "GET", path)[0] == 404
        assert send(operations)[0] == 404
        assert send(port)[0] == 401
        assert send(port, authorization="Bearer secret")[0] == 200
        assert send(port, "POST", "/drain")[0] == 404
        assert send(operations, "POST", "/drain")[0] == 200
        assert send(port, authorization="Bearer secret")[0] == 503
        assert send(operations, "GET", "/readyz")[0] == 503


def test_an_artifact_is_served_from_the_model_store(exported: Artifact, tmp_path: Path) -> None:
    home = {"BENTOML_HOME": str(tmp_path / "bentoml"), "BENTOML_DO_NOT_TRACK": "True"}
    code = (
        "import sys, shutil, bentoml\n"
        "with bentoml.models.create('tiny:one') as model:\n"
        "    shutil.copytree(sys.argv[1], model.path, dirs_exist_ok=True)"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(exported.folder)], env={**os.environ, **home}, check=True, capture_output=True
    )
    port = free_port()
    command = ["sovit", "serve", "bentoml:tiny:one", "--port", str(port)]
    with serving(command, f"http://127.0.0.1:{port}", tmp_path / "log", env=home):
        assert send(port)[0] == 200
    done = subprocess.run(
        [sys.executable, "-m", "sovit", "serve", "bentoml:tiny:two"],
        cwd=ROOT, env={**os.environ, **home}, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    assert "the model store has no 'tiny:two'" in done.stderr
