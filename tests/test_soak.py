"""A hundred thousand requests, good and bad, answered and left: memory, files and threads stay as they were.

pytest tests/test_soak.py               (10^5, a minute or two)
pytest tests/test_soak.py -m slow       (10^6)
"""

from __future__ import annotations

import asyncio
import faulthandler
import json
from base64 import b64encode
from collections import Counter
from pathlib import Path

import numpy as np
import psutil
import pytest

from sovit.artifact import Artifact
from tests.conftest import jpeg, png
from tests.test_reliability import started, worker_process

CLIENTS = 8
LEAVES_EVERY = 50  # requests: one client goes away without its answer


def request(path: str, body: bytes, content_type: str = "image/png") -> bytes:
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: {content_type}\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


IMAGE = png(np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8))
MULTIPART = b"".join(
    b'--x\r\ncontent-disposition: form-data; name="images"; filename="a"\r\n\r\n' + image + b"\r\n"
    for image in (IMAGE, jpeg())
)
EXPECTED = [
    (request("/embed", IMAGE), 200),
    (request("/classify?top_k=2", IMAGE), 200),
    (request("/embed?encoding=arrow&dtype=float16", IMAGE), 200),
    (request("/classify", json.dumps({"images": [b64encode(IMAGE).decode()]}).encode(), "application/json"), 200),
    (request("/embed?encoding=npy", MULTIPART + b"--x--\r\n", "multipart/form-data; boundary=x"), 200),
    (request("/embed", IMAGE), 200),
    (request("/embed", IMAGE[:-9]), 422),
    (request("/embed", b"no image"), 415),
    (request("/classify?top_k=0", IMAGE), 400),
    (request("/embed?on_error=item", b"no image"), 200),
]


async def client(port: int, count: int, first: int) -> Counter[int]:
    """Requests one after the other on a kept connection, and a new one after each that was left."""
    answers: Counter[int] = Counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for number in range(first, first + count):
        content, expected = EXPECTED[number % len(EXPECTED)]
        writer.write(content)
        if number % LEAVES_EVERY == 0:
            writer.close()
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            continue
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].split(b"\r", 1)[0])
        body = await reader.readexactly(length)
        status = int(head[9:12])
        assert status == expected, body
        answers[status] += 1
    writer.close()
    return answers


def send(port: int, count: int) -> Counter[int]:
    async def run() -> Counter[int]:
        found = await asyncio.gather(*(client(port, count // CLIENTS, 7 * number) for number in range(CLIENTS)))
        return sum(found, Counter())

    return asyncio.run(run())


def state(worker: psutil.Process) -> tuple[int, int, int]:
    return worker.memory_info().rss, worker.num_fds(), worker.num_threads()


@pytest.mark.parametrize(
    "count", [pytest.param(10**5, id="100000"), pytest.param(10**6, id="1000000", marks=pytest.mark.slow)]
)
def test_a_soak_leaves_memory_files_and_threads_as_they_were(exported: Artifact, tmp_path: Path, count: int) -> None:
    # The limit for other tests is not for this one.
    faulthandler.cancel_dump_traceback_later()
    faulthandler.dump_traceback_later(count / 100, exit=True)
    with started(exported, tmp_path) as (process, port):
        worker = worker_process(process)
        send(port, count // 10)
        memory, files, threads = state(worker)
        answers = send(port, count)
        assert sum(answers.values()) == pytest.approx(count * (1 - 1 / LEAVES_EVERY), rel=1e-3)
        assert set(answers) == {200, 400, 415, 422}
        after = state(worker)
        assert after[0] <= 1.02 * memory
        assert after[1] <= files + 2
        assert after[2] <= threads + 2  # the loop's pool grows as it is needed, up to a few
    assert "Traceback" not in (tmp_path / "log").read_text(errors="replace")
