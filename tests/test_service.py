"""The service as real processes: start, poll /readyz, call, terminate."""

from __future__ import annotations

import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import sovit
from sovit.artifact import Artifact
from sovit.client import Client
from sovit.errors import InvalidImage, ServiceError, UnsupportedImage
from sovit.parity import relative_error
from sovit.process import free_port, serving, sovit_serve
from tests.conftest import jpeg, png

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def port(exported: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    number = free_port()
    log = tmp_path_factory.mktemp("service") / "log"
    with serving(sovit_serve(exported.folder, number), f"http://127.0.0.1:{number}", log):
        yield number


@pytest.fixture
def client(port: int) -> Iterator[Client]:
    with Client(f"http://127.0.0.1:{port}") as client:
        yield client


def test_a_runtime_that_cannot_be_had_ends_the_start_in_a_sentence(exported: Artifact) -> None:
    words = sovit_serve(exported.folder, free_port(), "--runtime", "onnxruntime-cuda")
    done = subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert "sovit: this onnxruntime has no CUDAExecutionProvider" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_it_gives_the_artifacts_own_numbers(client: Client, exported: Artifact) -> None:
    images, reference = exported.reference()
    embeddings = client.embed(list(images), normalize=False)
    assert relative_error(embeddings, reference["pre_logits"]) < 1e-5
    served = client.classify([png(image) for image in images], top_k=3)
    local = sovit.load_artifact(exported.folder).classify(list(images), top_k=3)
    for ours, theirs in zip(served, local, strict=True):
        assert [p.label for p in ours.predictions] == [p.label for p in theirs.predictions]
        np.testing.assert_allclose(
            [p.score for p in ours.predictions], [p.score for p in theirs.predictions], rtol=1e-4
        )
    assert client.labels() == ["ant", "bee", "cat"]


def test_bad_images_come_back_as_our_errors_and_hurt_nobody(client: Client) -> None:
    with pytest.raises(UnsupportedImage, match="answered 415: image 0"):
        client.embed([b"text"])
    with pytest.raises(InvalidImage, match="answered 422: image 1"):
        client.embed([jpeg(), truncated_png()])
    assert client.embed([jpeg()]).shape == (1, 32)


def truncated_png() -> bytes:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    return png(noise)[:-500]


def test_seven_good_neighbours_of_a_bad_image_all_succeed(port: int) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)

    def send(content: bytes) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("POST", "/classify", content, {"content-type": "image/jpeg"})
        status = connection.getresponse().status
        connection.close()
        return status

    with ThreadPoolExecutor(8) as pool:
        for _ in range(10):
            statuses = list(pool.map(send, [png(noise)] * 7 + [png(noise)[:-500]]))
            assert statuses == [200] * 7 + [422]


def test_bentomls_own_routes_do_not_show(port: int) -> None:
    for path in ("/schema.json", "/docs.json", "/healthz", "/nothing"):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("GET", path)
        response = connection.getresponse()
        assert (response.status, response.headers["content-type"]) == (404, "application/problem+json")
        connection.close()


def test_a_huge_upload_is_cut_off_early(port: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.putrequest("POST", "/classify")
    connection.putheader("content-type", "image/jpeg")
    connection.putheader("content-length", str(10**12))
    connection.endheaders()
    assert connection.getresponse().status == 413
    connection.close()


def test_clients_that_go_away_leave_it_working(port: int, client: Client) -> None:
    for sent in (
        b"",
        b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nabc",
        b"\x00\xff garbage\r\n\r\n",
    ):
        with socket.create_connection(("127.0.0.1", port)) as raw:
            raw.sendall(sent)
    assert client.embed([jpeg()]).shape == (1, 32)


def test_sigterm_stops_everything_and_frees_the_port(exported: Artifact, tmp_path: Path) -> None:
    number = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", *sovit_serve(exported.folder, number)],
        cwd=ROOT,
        stdout=(tmp_path / "log").open("wb"),
        stderr=subprocess.STDOUT,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        start_new_session=True,
    )
    with Client(f"http://127.0.0.1:{number}") as client:
        deadline = time.monotonic() + 60
        while not client.ready():
            assert time.monotonic() < deadline
            assert process.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.05)
        assert client.embed([jpeg()]).shape == (1, 32)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", number))
    assert not list(tmp_path.glob("sovit-serve-*"))


def test_uvicorn_runs_the_same_application(exported: Artifact, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(f'{{"artifacts": {{"bare": "{exported.folder}"}}}}')
    number = free_port()
    command = ["uvicorn", "serving.app:app", "--port", str(number)]
    env = {"SOVIT_SERVE_CONFIG": str(tmp_path / "config.json")}
    url = f"http://127.0.0.1:{number}"
    with serving(command, url, tmp_path / "log", env=env), Client(url) as client:
        assert client.embed([jpeg()]).shape == (1, 32)


def refused(*words: str, env: dict[str, str] | None = None) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", *words],
        cwd=ROOT,
        env={**os.environ, **(env or {}), "BENTOML_DO_NOT_TRACK": "True"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stderr


def test_a_damaged_artifact_is_refused_at_start_with_one_sentence(exported: Artifact, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(exported.folder, tmp_path / "artifact"))
    content = bytearray((folder / "model.onnx").read_bytes())
    content[-1] ^= 1
    (folder / "model.onnx").write_bytes(content)
    code, errors = refused(*sovit_serve(folder, free_port()))
    assert code == 2
    assert errors.count("\n") == 1
    assert "model.onnx does not have the hash" in errors
    (tmp_path / "config.json").write_text(f'{{"artifacts": {{"a": "{folder}"}}, "colour": "red"}}')
    env = {"SOVIT_SERVE_CONFIG": str(tmp_path / "config.json")}
    code, errors = refused("bentoml", "serve", "serving.service:SoViTService", env=env)
    assert code == 2
    assert "colour: unknown field" in errors


def test_an_address_in_use_or_wrong_is_refused(exported: Artifact, port: int) -> None:
    code, errors = refused(*sovit_serve(exported.folder, port))
    assert (code, errors.count("\n")) == (1, 1)
    assert "cannot listen on 127.0.0.1 port" in errors
    for words, message in ((["--host", "example"], "no IP address"), (["--port", "70000"], "not in 1..65535")):
        code, errors = refused(*sovit_serve(exported.folder, free_port()), *words)
        assert code == 2
        assert message in errors


def test_an_unreachable_service_is_one_sentence() -> None:
    with Client(f"http://127.0.0.1:{free_port()}") as client, pytest.raises(ServiceError, match="cannot be reached"):
        client.embed([jpeg()])
