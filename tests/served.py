"""The ASGI application with a fake runtime, and what its tests send to it."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient
from starlette.types import Message

import serving.app
import serving.inference.model
import serving.process.loader
from serving.config import ServeConfig
from serving.inference.model import ServedModel
from serving.process.loader import Loader
from serving.worker import Worker
from sovit.artifact import Artifact
from sovit.errors import SoViTError
from sovit.runtime.fake import FakeRuntime
from tests.conftest import jpeg, png

JPEG = {"content-type": "image/jpeg"}


@contextmanager
def running(artifact: Artifact, runtime: FakeRuntime | None = None, **changes: Any) -> Iterator[TestClient]:
    settings = {"artifacts": {"tiny": str(artifact.folder)}, "runtime": "fake"} | changes
    config = ServeConfig(**settings)
    patch = pytest.MonkeyPatch()
    if runtime is not None:
        patch.setattr(serving.inference.model, "open_lanes", lambda *_, **__: [runtime])
    failures: list[SoViTError] = []
    app = serving.app.create_app(Loader(failures.append), lambda: config)
    try:
        with TestClient(app, raise_server_exceptions=False) as client:
            try:
                until(lambda: failures or client.get("/readyz").status_code == 200)
                assert not failures
                yield client
            finally:
                if runtime is not None:
                    runtime.gate.set()  # or closing would wait for ever behind a failed test
    finally:
        patch.undo()


def worker_of(client: TestClient) -> Worker:
    worker: Worker = client.app.state.loader.worker  # type: ignore[attr-defined]
    return worker


def model_of(client: TestClient) -> ServedModel:
    return worker_of(client).models.find(None)


def assert_problem(response: Any, status: int, detail: str = "") -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    document: dict[str, Any] = response.json()
    assert document["status"] == status
    assert document["type"].startswith("urn:sovit:problem:")
    assert document["title"]
    assert detail in document["detail"]
    assert document["instance"] == f"urn:request:{response.headers['x-request-id']}"
    return document


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def truncated_jpeg() -> bytes:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    return encoded(Image.fromarray(noise), "JPEG")[:-500]


def huge_png() -> bytes:
    content = bytearray(png(np.zeros((1, 1, 3), np.uint8)))
    content[16:24] = (60_000).to_bytes(4, "big") * 2
    import zlib

    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    return bytes(content)


def post_in_thread(client: TestClient, count: int) -> tuple[list[Any], list[threading.Thread]]:
    responses: list[Any] = []
    threads = [
        threading.Thread(target=lambda: responses.append(client.post("/embed", content=jpeg(), headers=JPEG)))
        for _ in range(count)
    ]
    for thread in threads:
        thread.start()
    return responses, threads


def until(condition: Any) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def post_raw(
    client: TestClient,
    receive: Callable[[], Awaitable[Message]],
    headers: Sequence[tuple[bytes, bytes]] = ((b"content-type", b"image/jpeg"),),
) -> list[Message]:
    """A request at the level of ASGI, whose client can go away."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {
        "type": "http", "method": "POST", "path": "/embed", "raw_path": b"/embed", "query_string": b"",
        "headers": list(headers), "http_version": "1.1", "scheme": "http", "root_path": "",
        "server": ("x", 80), "client": ("y", 1),
    }  # fmt: skip
    assert client.portal is not None
    client.portal.call(client.app, scope, receive, send)
    return sent
