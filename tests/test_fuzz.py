"""Requests nobody would write: schemathesis on the OpenAPI description, and raw bytes on the socket."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sovit.artifact import Artifact
from sovit.client import Client
from sovit.process import free_port, serving, sovit_serve
from tests.conftest import jpeg

ROOT = Path(__file__).parents[1]
TESTS = ROOT / "tests"


@pytest.fixture(scope="module")
def service(exported: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, Path]]:
    port, log = free_port(), tmp_path_factory.mktemp("fuzz") / "log"
    command = sovit_serve(exported.folder, port, "--max-body-bytes", "100000", "--max-images", "4")
    with serving(command, f"http://127.0.0.1:{port}", log):
        yield port, log
        assert "Traceback" not in log.read_text(errors="replace")


def test_schemathesis_finds_nothing(service: tuple[int, Path], tmp_path: Path) -> None:
    """Every documented operation, with data that fit the description and data that do not."""
    port, _ = service
    done = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(TESTS / "schemathesis.toml")),
            *("run", f"http://127.0.0.1:{port}/openapi.json", "--no-color", "--seed", "1", "--max-examples", "40"),
            # Bytes that fit the description of an image need not be one.
            *("--checks", "all", "--exclude-checks", "positive_data_acceptance", "--generation-database", "none"),
        ],
        cwd=tmp_path,
        env={**os.environ, "SCHEMATHESIS_HOOKS": "tests.schemathesis_hooks", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    counts = re.search(r"(\d+) generated, (\d+) passed", done.stdout)
    assert counts is not None, done.stdout[-2000:]
    assert int(counts[1]) == int(counts[2]) >= 300


def exchange(port: int, content: bytes) -> bytes:
    """Send bytes and end the sending side; all that comes back, until the service closes."""
    reply = b""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        try:
            client.sendall(content)
            client.shutdown(socket.SHUT_WR)
            while piece := client.recv(65_536):
                reply += piece
        except OSError:  # cut off in the middle
            pass
    return reply


IMAGE = jpeg()
HEAD = b"POST /embed HTTP/1.1\r\nhost: x\r\ncontent-type: image/jpeg\r\n"
MULTIPART = (
    b'--xyz\r\ncontent-disposition: form-data; name="images"; filename="a"\r\n\r\n' + IMAGE + b"\r\n"
    b'--xyz\r\ncontent-disposition: form-data; name="on_error"\r\n\r\nitem\r\n--xyz--\r\n'
)


def whole(body: bytes, content_type: bytes = b"image/jpeg") -> bytes:
    head = b"POST /embed HTTP/1.1\r\nhost: x\r\ncontent-type: %b\r\ncontent-length: %d\r\n\r\n"
    return head % (content_type, len(body)) + body


def statuses(reply: bytes) -> list[int]:
    return [int(found) for found in re.findall(rb"HTTP/1\.1 (\d{3}) ", reply)]


ODD_HEADS = [
    b"", b"\r\n", b"\x00" * 100, b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n",
    b"GET " + b"a" * 100_000, b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n",
    b"GET /%00%ff%2e%2e/ HTTP/1.1\r\nhost: x\r\n\r\n", b"GET /\xff\xfe HTTP/1.1\r\nhost: x\r\n\r\n",
    b"GET http://other/livez HTTP/1.1\r\nhost: x\r\n\r\n", b"OPTIONS * HTTP/1.1\r\nhost: x\r\n\r\n",
    b"CONNECT x:1 HTTP/1.1\r\nhost: x\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00",
    HEAD + b"content-length: -1\r\n\r\n", HEAD + b"content-length: 99999999999999999999999\r\n\r\n",
    HEAD + b"content-length: 3\r\ncontent-length: 4\r\n\r\nabcd", HEAD + b"content-length: 0x10\r\n\r\n",
    HEAD + b"content-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    HEAD + b"transfer-encoding: chunked\r\n\r\nzz\r\n",
    HEAD + b"transfer-encoding: chunked\r\n\r\n-1\r\nx\r\n0\r\n\r\n",
    HEAD + b"transfer-encoding: chunked\r\n\r\nffffffffffffffffffff\r\nx", HEAD + b"transfer-encoding: gzip\r\n\r\nx",
    HEAD + b"transfer-encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 70_000 + b"0\r\n\r\n",
    HEAD + b"x: " + b"y" * 200_000 + b"\r\n\r\n", HEAD + b"x: y\r\n" * 20_000 + b"\r\n", HEAD + b": y\r\n\r\n",
    HEAD + b" folded: y\r\n\r\n", HEAD + b"x\x00y: z\r\n\r\n",
    HEAD + b"upgrade: websocket\r\nconnection: upgrade\r\n\r\n",
    HEAD + b"expect: 100-continue\r\ncontent-length: 10\r\n\r\n",
    HEAD + b"expect: nonsense\r\ncontent-length: 1\r\n\r\nx",
    whole(IMAGE) * 20, whole(b"x") + b"GARBAGE\r\n\r\n",
]  # fmt: skip


@pytest.mark.parametrize("content", ODD_HEADS, ids=range(len(ODD_HEADS)))
def test_odd_requests_get_an_answer_or_a_closed_connection(service: tuple[int, Path], content: bytes) -> None:
    port, _ = service
    assert all(status < 500 for status in statuses(exchange(port, content)))
    with Client(f"http://127.0.0.1:{port}") as client:
        assert client.embed([IMAGE]).shape == (1, 32)


GOOD = [
    whole(IMAGE),
    whole(MULTIPART, b"multipart/form-data; boundary=xyz"),
    whole(b'{"images": ["%b"], "top_k": 2}' % b64encode(IMAGE), b"application/json"),
]


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A good request with a few bytes replaced, removed, doubled, or cut off at the end."""
    content = bytearray(
        draw(
            st.sampled_from(
                [whole(IMAGE), whole(MULTIPART, b"multipart/form-data; boundary=xyz"), whole(b'{"images": []}')]
            )
        )
    )
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, max(0, len(content) - 1)))
        # Most of what is interesting lies before the image.
        at = at % 300 if draw(st.booleans()) else at
        piece = draw(
            st.binary(max_size=8) | st.sampled_from([b"\r\n", b"\r\n\r\n", b"--xyz", b"\x00", b":", b";", b'"'])
        )
        removed = draw(st.integers(0, 8))
        content[at : at + removed] = piece
    if draw(st.booleans()):
        del content[draw(st.integers(0, len(content))) :]
    return bytes(content)


@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=mutated())
def test_mutated_requests_never_make_it_fail(service: tuple[int, Path], content: bytes) -> None:
    port, _ = service
    assert all(status < 500 for status in statuses(exchange(port, content)))


def test_after_all_that_it_still_works(service: tuple[int, Path]) -> None:
    with Client(f"http://127.0.0.1:{service[0]}") as client:
        assert client.ready()
        assert client.embed([IMAGE] * 3).shape == (3, 32)
