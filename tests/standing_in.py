"""What the tests of the client share: both clients with one face, a real service, and servers that stand in for one."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
from numpy.typing import NDArray

from sovit.artifact import Artifact
from sovit.client import AsyncClient, Client, ModelInfo
from sovit.errors import QueueFull, SoViTError
from sovit.predict import Classification
from sovit.process import free_port, serving, sovit_serve

KEY = "open-sesame"
MANY = 4  # images that the real service takes at most in a request


class Blocking:
    """`AsyncClient` with the face of `Client`, so that each test is one of both."""

    def __init__(self, url: str, **options: Any) -> None:
        self._runner = asyncio.Runner()
        self._client = AsyncClient(url, **options)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        self._runner.close()

    def close(self) -> None:
        self._runner.run(self._client.close())

    def classify(self, images: Iterable[Any], top_k: int = 5) -> list[Classification]:
        return self._runner.run(self._client.classify(images, top_k))

    def embed(self, images: Iterable[Any], normalize: bool = True) -> NDArray[np.float32]:
        return self._runner.run(self._client.embed(images, normalize))

    def classify_each(self, images: Iterable[Any], top_k: int = 5) -> Iterator[Classification | SoViTError]:
        return self._each(self._client.classify_each(images, top_k))

    def embed_each(self, images: Iterable[Any], normalize: bool = True) -> Iterator[NDArray[np.float32] | SoViTError]:
        return self._each(self._client.embed_each(images, normalize))

    def models(self) -> list[ModelInfo]:
        return self._runner.run(self._client.models())

    def labels(self) -> list[str]:
        return self._runner.run(self._client.labels())

    def ready(self) -> bool:
        return self._runner.run(self._client.ready())

    def _each(self, found: Any) -> Iterator[Any]:
        try:
            while True:
                yield self._runner.run(anext(found))
        except StopAsyncIteration:
            pass
        finally:
            self._runner.run(found.aclose())


CLIENTS = (pytest.param(Client, id="sync"), pytest.param(Blocking, id="async"))


@contextmanager
def keyed_service(artifact: Artifact, folder: Path) -> Iterator[str]:
    """A real service, which takes few images at a time and wants a key."""
    (folder / "keys.json").write_text(json.dumps([{"name": "us", "sha256": sha256(KEY.encode()).hexdigest()}]))
    port = free_port()
    options = ("--max-images", str(MANY), "--keys", str(folder / "keys.json"))
    with serving(sovit_serve(artifact.folder, port, *options), f"http://127.0.0.1:{port}", folder / "log"):
        yield f"http://127.0.0.1:{port}"


def noise(seed: int, *shape: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def labels(found: Iterable[Any]) -> list[str]:
    return [one.predictions[0].label for one in found]


@dataclass
class Asked:
    """A request as a stand-in gets it."""

    path: str
    headers: Any
    images: list[bytes]


@dataclass
class Reply:
    """What a stand-in says. Without a status it closes the connection and says nothing."""

    status: int = 200
    body: bytes = b"{}"
    headers: dict[str, str] = field(default_factory=dict)
    length: int | None = None  # when it announces another one than the body has


def labels_of(asked: Asked) -> Reply:
    """The reply of a good service whose classes are the images' own bytes."""
    if asked.path.startswith("/embed"):
        rows = [np.frombuffer(image[:1], np.uint8).astype("<f4").tobytes() for image in asked.images]
        return of({"dim": 1, "results": [{"embedding": b64encode(row).decode()} for row in rows]})
    return of({"results": [{"predictions": [prediction(image.decode())]} for image in asked.images]})


def prediction(label: str) -> dict[str, Any]:
    return {"label": label, "index": 0, "score": 1.0}


def of(document: Any, status: int = 200, **headers: str) -> Reply:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply(status, json.dumps(document).encode(), {"content-type": "application/json", **named})


def problem(status: int, title: str, detail: str = "it is as it is.", **headers: str) -> Reply:
    return of({"title": title, "detail": detail, "status": status}, status, **headers)


QUEUE_FULL = problem(429, QueueFull.title, "the queue is full.", retry_after="3", x_request_id="abc")


@contextmanager
def standing_in(answer: Callable[[Asked], Reply]) -> Iterator[str]:
    """A server that answers as it is told."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            _, _, boundary = self.headers.get("content-type", "").partition("boundary=")
            parts = body.split(f"--{boundary}".encode())[1:-1] if boundary else []
            reply = answer(Asked(self.path, self.headers, [part.partition(b"\r\n\r\n")[2][:-2] for part in parts]))
            if not reply.status:
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            (self.send_response_only if "date" in reply.headers else self.send_response)(reply.status)
            length = len(reply.body) if reply.length is None else reply.length
            for name, value in {"content-length": str(length), **reply.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(reply.body)
            if length != len(reply.body):
                self.close_connection = True

        do_GET = do_POST

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        server.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients that hang up
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


class Script:
    """Replies one after another, and good ones when they are over."""

    def __init__(self, *replies: Reply) -> None:
        self._replies = list(replies)
        self.asked: list[Asked] = []
        self._lock = threading.Lock()

    def __call__(self, asked: Asked) -> Reply:
        with self._lock:
            self.asked.append(asked)
            return self._replies.pop(0) if self._replies else labels_of(asked)


@contextmanager
def silent() -> Iterator[tuple[str, threading.Event]]:
    """A stand-in that says nothing before its end, and an event for when it was asked."""
    came, over = threading.Event(), threading.Event()

    def answer(_: Asked) -> Reply:
        came.set()
        over.wait(30)
        return Reply(0)

    with standing_in(answer) as url:
        try:
            yield url, came
        finally:
            over.set()


@contextmanager
def trickling() -> Iterator[str]:
    """A server that sends a body without end, a byte at a time."""
    over = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.end_headers()
            with suppress(OSError):
                while not over.wait(0.05):
                    self.wfile.write(b" ")

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    over.set()
    server.shutdown()
    server.server_close()
