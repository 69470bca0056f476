"""The hostile corpus against a running service: every body its exact status, and no neighbour ever hurt.

pytest tests/test_hostile.py
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from sovit.artifact import Artifact
from sovit.decode import DecodeOptions, decode
from sovit.errors import SoViTError
from tests.conftest import jpeg
from tests.hostile import Case, corpus
from tests.test_reliability import started, worker_process

NEIGHBOURS = 7
MAX_BODY_BYTES = 4 * 2**20
MAX_IMAGES = 8
LIMITS = ("--max-body-bytes", str(MAX_BODY_BYTES), "--max-images", str(MAX_IMAGES))


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    return corpus(max_body_bytes=MAX_BODY_BYTES, max_images=MAX_IMAGES)


def test_the_corpus_is_large_and_has_every_kind(cases: list[Case]) -> None:
    assert len(cases) >= 300
    assert len({case.name for case in cases}) == len(cases)
    kinds = Counter(case.kind for case in cases)
    assert all(count > 1 for count in kinds.values()), kinds


@pytest.mark.filterwarnings("ignore")  # Pillow's, about what is in the files
def test_what_is_taken_decodes_to_the_right_pixels(cases: list[Case]) -> None:
    compared = 0
    for case in cases:
        if case.pixels is None or case.content_type.lower().startswith(("multipart", "application/json")):
            continue
        try:
            np.testing.assert_array_equal(np.asarray(decode(case.body, DecodeOptions())), case.pixels, case.name)
        except SoViTError as error:
            pytest.fail(f"{case.name}: {error}")
        compared += 1
    assert compared >= 150


async def exchange(port: int, head: bytes, body: bytes) -> tuple[int, bytes]:
    """One request on a connection of its own. A service that refuses early may do so before all is sent."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(head)
        writer.write(body)
        reply = b""
        while (piece := await reader.read(65_536)) or not reply:
            reply += piece
        return int(reply.split(b" ", 2)[1]), reply
    finally:
        writer.close()


def request(case: Case) -> tuple[bytes, bytes]:
    lines = [f"POST {case.route}{'?' + case.query if case.query else ''} HTTP/1.1", "host: x", "connection: close"]
    if case.content_type:
        lines.append(f"content-type: {case.content_type}")
    lines += [f"{name}: {value}" for name, value in case.headers]
    body = case.body
    if case.chunked:
        lines.append("transfer-encoding: chunked")
        pieces = [body[start : start + 65_536] for start in range(0, len(body), 65_536)]
        body = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
    else:
        lines.append(f"content-length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1"), body


GOOD = request(Case("good", "good", 200, jpeg()))


def attack(port: int, cases: Sequence[Case]) -> list[str]:
    """Send every case with seven good requests at the same time; what went wrong."""
    wrong: list[str] = []

    async def run() -> None:
        for case in cases:
            try:
                mine, *neighbours = await asyncio.gather(
                    exchange(port, *request(case)), *(exchange(port, *GOOD) for _ in range(NEIGHBOURS))
                )
            except ConnectionError as error:
                wrong.append(f"{case.name}: {error!r}")
                continue
            status, reply = mine
            if status != case.status:
                wrong.append(f"{case.name}: {status} instead of {case.status}: {reply[-300:]!r}")
            if any(neighbour != 200 for neighbour, _ in neighbours):
                wrong.append(f"{case.name} hurt a neighbour: {[neighbour for neighbour, _ in neighbours]}")
            if status != 200:
                wrong.extend(leaks(case, reply))

    asyncio.run(run())
    return wrong


def leaks(case: Case, reply: bytes) -> Iterator[str]:
    """A problem document says nothing of a decoder's, of the server's files, or of what was sent."""
    head, _, body = reply.partition(b"\r\n\r\n")
    document = json.loads(body)
    if b"application/problem+json" not in head or document["status"] != case.status:
        yield f"{case.name}: no problem document"
    for word in ("0x", "/usr", "/home", "/tmp", "object at", "Traceback", "PIL", "Error", ".py", "libjpeg"):
        if word in document["detail"]:
            yield f"{case.name}: {word!r} in {document['detail']!r}"


def test_every_case_gets_its_status_and_hurts_nobody(exported: Artifact, cases: list[Case], tmp_path: Path) -> None:
    with started(exported, tmp_path, *LIMITS) as (process, port):
        worker = worker_process(process)
        # Caches fill and the allocator settles on the largest images first; after that nothing may stay.
        assert attack(port, cases) == []
        files = worker.num_fds(), worker.num_threads()
        before = worker.memory_info().rss
        assert attack(port, cases) == []
        assert worker.memory_info().rss <= 1.05 * before
        assert (worker.num_fds(), worker.num_threads()) <= (files[0] + 1, files[1])
        assert worker.is_running()
        assert not list(Path(worker.cwd()).glob("core*"))
    log = (tmp_path / "log").read_text(errors="replace")
    assert "Traceback" not in log
    assert len(log.splitlines()) < 10, log
