"""The client against a real service, and against stand-ins that answer as no good service does."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from email.utils import formatdate
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

import sovit
import sovit.client.asynchronous
import sovit.client.synchronous
from sovit.artifact import Artifact
from sovit.cli import main
from sovit.client import AsyncClient, Client, ModelInfo, Retry
from sovit.client.batches import batches
from sovit.client.failures import Failure
from sovit.client.retry import GiveUp, Wait
from sovit.client.settings import Settings
from sovit.errors import (
    BadRequest,
    ConfigError,
    DeadlineExceeded,
    Draining,
    Forbidden,
    InvalidImage,
    NotReady,
    QueueFull,
    RateLimited,
    Refused,
    RuntimeFailure,
    ServiceError,
    SoViTError,
    TooLarge,
    Unauthorized,
    UnsupportedImage,
    UnsupportedMediaType,
)
from sovit.predict import Classification, Predictor
from sovit.process import free_port, serving, sovit_serve
from tests.conftest import jpeg, png

ROOT = Path(__file__).parents[1]
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


@pytest.fixture(params=[Client, Blocking], ids=["sync", "async"])
def connect(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Either client."""
    kind: Callable[..., Any] = request.param
    return kind


@pytest.fixture(scope="module")
def url(exported: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real service, which takes few images at a time and wants a key."""
    folder = tmp_path_factory.mktemp("service")
    (folder / "keys.json").write_text(json.dumps([{"name": "us", "sha256": sha256(KEY.encode()).hexdigest()}]))
    port = free_port()
    options = ("--max-images", str(MANY), "--keys", str(folder / "keys.json"))
    with serving(sovit_serve(exported.folder, port, *options), f"http://127.0.0.1:{port}", folder / "log"):
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def predictor(exported: Artifact) -> Predictor:
    return sovit.load_artifact(exported.folder)


@pytest.fixture
def client(url: str, connect: Callable[..., Any]) -> Iterator[Any]:
    with connect(url, api_key=KEY, batch_size=MANY) as client:
        yield client


def noise(seed: int, *shape: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def truncated_png() -> bytes:
    return png(noise(0, 64, 64, 3))[:-500]


def sideways() -> Image.Image:
    """A photograph that its EXIF data turn upright, opened and not read yet."""
    image = Image.fromarray(noise(0, 20, 30, 3))
    exif = image.getexif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95, exif=exif)
    return Image.open(io.BytesIO(buffer.getvalue()))


def test_every_kind_of_image_gives_what_a_predictor_gives(client: Any, predictor: Predictor, tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(jpeg())
    images: list[Any] = [
        str(tmp_path / "photo.jpg"), tmp_path / "photo.jpg", jpeg((1, 2, 3)), png(noise(1, 9, 9, 3)), sideways(),
        Image.fromarray(noise(2, 20, 30, 4)), Image.fromarray(noise(3, 20, 30)), Image.new("P", (7, 8), 3),
        noise(4, 24, 24, 3), noise(5, 40, 17), noise(6, 30, 20, 3)[::2, ::-1],
    ]  # fmt: skip
    for normalize in (True, False):
        embeddings = client.embed(images, normalize=normalize)
        assert (embeddings.shape, embeddings.dtype) == ((len(images), 32), np.float32)
        np.testing.assert_allclose(embeddings, predictor.embed(images, normalize), rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(client.classify(images, top_k=2), predictor.classify(images, top_k=2), strict=True):
        assert [one.label for one in ours.predictions] == [one.label for one in theirs.predictions]
        np.testing.assert_allclose(
            [one.score for one in ours.predictions], [one.score for one in theirs.predictions], rtol=1e-4
        )


def test_embeddings_are_the_very_floats_of_the_service(client: Any, url: str) -> None:
    image = jpeg()
    headers = {"authorization": f"Bearer {KEY}", "content-type": "image/jpeg", "accept": "application/x-npy"}
    reply = httpx.post(f"{url}/embed", content=image, headers=headers)
    assert client.embed([image]).tobytes() == np.load(io.BytesIO(reply.content)).tobytes()


def test_many_images_keep_their_order(url: str, connect: Callable[..., Any], predictor: Predictor) -> None:
    images = [noise(seed, 16, 16, 3) for seed in range(100)]
    with connect(url, api_key=KEY, batch_size=3, concurrency=5) as client:
        np.testing.assert_allclose(client.embed(images), predictor.embed(images), rtol=1e-3, atol=1e-5)
        assert len(list(client.classify_each(iter(images)))) == 100


def test_a_request_with_too_many_images_is_halved(url: str, connect: Callable[..., Any], predictor: Predictor) -> None:
    images = [noise(seed, 16, 16, 3) for seed in range(19)]
    with connect(url, api_key=KEY, batch_size=16) as client:
        np.testing.assert_allclose(client.embed(images), predictor.embed(images), rtol=1e-3, atol=1e-5)


def test_bad_images_have_their_own_errors_in_their_places(client: Any, tmp_path: Path) -> None:
    images: list[Any] = [
        jpeg(), b"text", jpeg(), truncated_png(), b"", tmp_path / "none.jpg", "a\0b", jpeg(),
        noise(0, 5, 5, 2), noise(0, 5, 5).astype(np.float32), None, Image.open(io.BytesIO(truncated_png())), jpeg(),
    ]  # fmt: skip
    found = list(client.embed_each(images))
    good = [index for index, one in enumerate(found) if isinstance(one, np.ndarray)]
    assert good == [0, 2, 7, 12]
    assert len({found[index].tobytes() for index in good}) == 1
    kinds = [type(one) for one in found if isinstance(one, SoViTError)]
    assert kinds == [UnsupportedImage, *[InvalidImage] * 8]
    for index, words in (
        (1, "no image"), (3, "truncated"), (4, "empty"), (5, "none.jpg cannot be read: No such file"),
        (6, "cannot be read: embedded null"), (8, "not uint8 with shape [5, 5, 2]"), (9, "not float32"),
        (10, "not NoneType"), (11, "PngImageFile cannot be read"),
    ):  # fmt: skip
        assert words in str(found[index])
        assert str(found[index]).endswith(".")
    with pytest.raises(UnsupportedImage, match=r"answered 415: image 9: .* \(request \w{32}\)\.$"):
        client.classify([*[jpeg()] * 9, b"text", *[jpeg()] * 9, b""])
    with pytest.raises(InvalidImage, match=r"^image 5: .*none.jpg cannot be read: No such file or directory\.$"):
        client.classify([*[jpeg()] * 5, tmp_path / "none.jpg"])


def test_what_is_served(client: Any) -> None:
    (model,) = client.models()
    assert isinstance(model, ModelInfo)
    assert (model.name, model.precision, model.image_size, model.dim) == ("tiny", "fp32", (16, 16), 32)
    assert (model.labels, model.ready) == (("ant", "bee", "cat"), True)
    assert client.labels() == ["ant", "bee", "cat"]
    assert client.ready()


def test_no_images_are_no_request(client: Any) -> None:
    assert client.classify([]) == []
    assert client.embed([]).shape == (0, 32)
    assert list(client.embed_each(iter(()))) == []


def test_the_model_is_chosen_by_its_name(url: str, connect: Callable[..., Any]) -> None:
    with connect(url, api_key=KEY, model="tiny") as client:
        assert client.embed([jpeg()]).shape == (1, 32)
    with connect(url, api_key=KEY, model="huge") as client:
        with pytest.raises(BadRequest, match=r"answered 400: .*tiny \(request \w{32}\)\.$"):
            client.embed([jpeg()])
        with pytest.raises(ConfigError, match="no model 'huge' is served; there is tiny"):
            client.labels()


def test_a_missing_key_is_said_once_for_all(url: str, connect: Callable[..., Any]) -> None:
    with connect(url) as client:
        with pytest.raises(Unauthorized, match="answered 401: this service needs a key"):
            next(client.classify_each([jpeg()] * 100))
        with pytest.raises(Unauthorized):
            client.models()
        assert client.ready()


@pytest.mark.parametrize(
    "images", ["photo.jpg", Path("photo.jpg"), b"abc", Image.new("L", (1, 1)), io.BytesIO(b"a"), noise(0, 4, 4, 3), 5]
)
def test_one_image_is_no_list(connect: Callable[..., Any], images: Any) -> None:
    with connect("http://127.0.0.1:9") as client:
        for call in (client.classify, client.embed):
            with pytest.raises(ConfigError, match="pass a list of images"):
                call(images)


def test_a_batch_in_one_array_is_a_list(client: Any) -> None:
    assert client.embed(noise(0, 5, 16, 16, 3)).shape == (5, 32)


def test_without_torch(url: str) -> None:
    code = (
        "import sys\nsys.modules['torch'] = None\nimport numpy as np\nfrom sovit.client import Client\n"
        f"with Client({url!r}, api_key={KEY!r}) as client:\n"
        "    print(client.embed([np.zeros((9, 9, 3), np.uint8)] * 3).shape)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout == "(3, 32)\n", done.stderr


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(words)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_commands_ask_a_service(
    url: str, predictor: Predictor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [str(tmp_path / f"{index}.png") for index in range(9)]
    for index, path in enumerate(paths):
        Path(path).write_bytes(png(noise(index, 16, 16, 3)) if index != 4 else b"text")
    (tmp_path / "key").write_text(f"{KEY}\n")
    key = ("--key-file", str(tmp_path / "key"), "--model", "tiny")
    code, out, _ = run(capsys, "classify", "--url", url, *key, "--top-k", "2", "--json", *paths)
    results = json.loads(out)["results"]
    assert code == 1
    assert [one["image"] for one in results] == paths
    assert [len(one.get("predictions", ())) for one in results] == [2, 2, 2, 2, 0, 2, 2, 2, 2]
    assert "are no image" in results[4]["error"]
    array = tmp_path / "e.npy"
    assert run(capsys, "embed", url, *paths[:4], *key, "--out", str(array))[0] == 0
    np.testing.assert_allclose(np.load(array), predictor.embed(paths[:4]), rtol=1e-3, atol=1e-5)
    code, out, _ = run(capsys, "embed", *paths[3:5], "--url", url, *key, "--no-normalize", "--out", str(array))
    assert code == 1
    assert np.isnan(np.load(array)).all(axis=1).tolist() == [False, True]
    assert run(capsys, "classify", "--url", url, paths[0], *key)[0] == 0
    code, out, errors = run(capsys, "classify", "--url", url, paths[0])
    assert (code, out, errors.count("\n")) == (1, "", 1)
    assert "answered 401" in errors


# --- Stand-ins


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


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the clients would have waited, instead of waiting."""
    found: list[float] = []

    async def note(seconds: float) -> None:
        found.append(seconds)

    monkeypatch.setattr(sovit.client.synchronous, "pause", lambda seconds, _: found.append(seconds))
    monkeypatch.setattr(sovit.client.asynchronous, "pause", note)
    return found


def labels(found: Iterable[Any]) -> list[str]:
    return [one.predictions[0].label for one in found]


def test_retry_after_is_waited_for(connect: Callable[..., Any], waits: list[float]) -> None:
    date = {"date": formatdate(1_000_000, usegmt=True), "retry_after": formatdate(1_000_007, usegmt=True)}
    past = {"date": formatdate(1_000_000, usegmt=True), "retry_after": formatdate(999_000, usegmt=True)}
    script = Script(
        QUEUE_FULL,
        problem(503, NotReady.title, **date),
        problem(503, NotReady.title, **past),
        problem(429, RateLimited.title, retry_after="0"),
    )
    with standing_in(script) as url, connect(url) as client:
        assert labels(client.classify([b"a", b"b"])) == ["a", "b"]
    assert waits[2:] == [0, 0]
    assert 3 <= waits[0] <= 4.5, "as long as it asks, and some"
    assert 14 <= waits[1] <= 21, "the second time twice as long"
    assert [asked.images for asked in script.asked] == [[b"a", b"b"]] * 5


def test_without_retry_after_waits_double_and_are_not_all_the_same(
    connect: Callable[..., Any], waits: list[float]
) -> None:
    replies = [Reply(0), problem(503, NotReady.title, retry_after="soon"), Reply(502), Reply(429), Reply(503)]
    retry = Retry(attempts=6, first_wait_seconds=4, longest_wait_seconds=20)
    with standing_in(Script(*replies)) as url, connect(url, retry=retry) as client:
        assert labels(client.classify([b"a"])) == ["a"]
    for wait, most in zip(waits, [4, 8, 16, 20, 20], strict=True):
        assert most / 2 <= wait <= most


def test_a_connection_that_breaks_is_tried_again(connect: Callable[..., Any], waits: list[float]) -> None:
    whole = labels_of(Asked("/classify", {}, [b"a"]))
    cut = Reply(200, whole.body[:-5], whole.headers, length=len(whole.body))
    with standing_in(Script(Reply(0), cut, Reply(0))) as url, connect(url) as client:
        assert labels(client.classify([b"a"])) == ["a"]
    assert len(waits) == 3


def test_when_all_attempts_are_used_up_the_last_error_says_so(connect: Callable[..., Any], waits: list[float]) -> None:
    script = Script(*[QUEUE_FULL] * 9)
    with standing_in(script) as url, connect(url, retry=Retry(attempts=1, busy_attempts=3)) as client:
        with pytest.raises(QueueFull, match=r"answered 429: the queue is full; tried 3 times \(request abc\)\.$") as e:
            client.classify([b"a"])
        assert e.value.retry_after == 3
        assert (len(script.asked), len(waits)) == (3, 2)
    with connect(f"http://127.0.0.1:{free_port()}") as client:
        with pytest.raises(ServiceError, match=r"cannot be reached: .*; tried 5 times\.$"):
            client.embed([b"a"])
        assert not client.ready()


def test_whoever_asks_for_too_long_a_wait_is_not_asked_again(connect: Callable[..., Any], waits: list[float]) -> None:
    script = Script(QUEUE_FULL, problem(503, Draining.title, retry_after="100"))
    with standing_in(script) as url, connect(url, retry=Retry(longest_wait_seconds=20)) as client:
        words = r"tried 2 times, it asks for a wait of 100 s, and the longest allowed is 20 s\.$"
        with pytest.raises(Draining, match=words):
            client.classify([b"a"])
    assert len(waits) == 1


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (problem(400, BadRequest.title), BadRequest),
        (problem(400, ConfigError.title), ConfigError),
        (problem(401, Unauthorized.title), Unauthorized),
        (problem(403, Forbidden.title), Forbidden),
        (problem(404, "Not Found"), ServiceError),
        (problem(415, UnsupportedImage.title), UnsupportedImage),
        (problem(415, UnsupportedMediaType.title), UnsupportedMediaType),
        (problem(422, InvalidImage.title), InvalidImage),
        (problem(429, QueueFull.title), QueueFull),
        (problem(429, RateLimited.title), RateLimited),
        (problem(503, NotReady.title), NotReady),
        (problem(503, Draining.title), Draining),
        (problem(503, "Something else"), NotReady),
        (problem(500, RuntimeFailure.title), RuntimeFailure),
        (problem(500, "Internal error"), ServiceError),
        (problem(504, DeadlineExceeded.title), DeadlineExceeded),
    ],
)
def test_each_problem_is_an_error_of_ours(connect: Callable[..., Any], reply: Reply, kind: type[SoViTError]) -> None:
    script = Script(reply)
    with standing_in(script) as url, connect(url, retry=Retry(attempts=1)) as client:
        with pytest.raises(kind, match=f"^{url} answered {reply.status}: (image 0: )?it is as it is.$") as caught:
            client.classify([b"a"])
        assert type(caught.value) is kind
        assert len(script.asked) == 1


@pytest.mark.parametrize("reply", [problem(500, "Internal error"), problem(504, DeadlineExceeded.title), Reply(413)])
def test_a_request_that_fails_costs_its_own_images_alone(connect: Callable[..., Any], reply: Reply) -> None:
    def answer(asked: Asked) -> Reply:
        return reply if b"bad" in asked.images else labels_of(asked)

    images = [b"0", b"1", b"2", b"bad", b"4", b"5"]
    with standing_in(answer) as url, connect(url, batch_size=2) as client:
        found = list(client.classify_each(images))
    failed = [index for index, one in enumerate(found) if isinstance(one, SoViTError)]
    assert failed == ([3] if reply.status == 413 else [2, 3])
    assert {one.status for one in found if isinstance(one, SoViTError)} == {reply.status}


HTML = Reply(200, b"<html></html>", {"content-type": "text/html; charset=utf-8", "x-request-id": "abc"})


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (HTML, r"answered 200: the answer is not in a form that is sovit's: text/html that is no JSON \(request abc\)"),
        (Reply(404, HTML.body, HTML.headers), "answered 404: the answer is not sovit's, it is text/html"),
        (Reply(404, b"", {}), "answered 404: the answer is not sovit's, it is of no content type"),
        (Reply(308, b"", {"location": "https://other/"}), "answered 308: it redirects to https://other/, which may be"),
        (Reply(200, b"\xff\xfe", {}), "no JSON"),
        (Reply(200, b"[" * 100_000, {}), "no JSON"),
        (of([]), "no results"),
        (of({"results": {}}), "no results"),
        (of({"results": []}), "0 results for 1 images"),
        (of({"results": [{}, {}]}), "2 results for 1 images"),
        (of({"results": [7]}), "a result without"),
        (of({"results": [{"embedding": [1.0], "predictions": 3}]}), "a result without"),
        (of({"results": [{"error": "bad"}]}), "an image's error without status, title and detail"),
        (of({"results": [{"error": {"status": "422", "title": "x", "detail": "y"}}]}), "an image's error without"),
    ],
)  # fmt: skip
def test_what_is_no_sovit_is_one_sentence(connect: Callable[..., Any], reply: Reply, words: str) -> None:
    with standing_in(lambda _: reply) as url, connect(url) as client:
        for call in (client.classify, client.embed):
            with pytest.raises(ServiceError, match=words) as caught:
                call([b"a"])
            assert "\n" not in str(caught.value)


def test_results_of_the_wrong_form_are_refused(connect: Callable[..., Any]) -> None:
    row = np.ones(1, "<f4").tobytes()
    embeddings: list[tuple[dict[str, Any], str]] = [
        ({"dim": 1, "results": [{"embedding": b64encode(row + row).decode()}]}, "of another length than"),
        ({"dim": 0, "results": [{"embedding": ""}]}, "of another length than"),
        ({"dim": {}, "results": [{"embedding": b64encode(row).decode()}]}, "of another length than"),
        ({"results": [{"embedding": b64encode(row).decode()}]}, "of another length than"),
        ({"dim": 1, "results": [{"embedding": "*"}]}, "answered 200"),
    ]
    for document, words in embeddings:
        with (
            standing_in(lambda _, document=document: of(document)) as url,  # type: ignore[misc]
            connect(url) as client,
            pytest.raises(ServiceError, match=words),
        ):
            client.embed([b"a"])
    predictions: list[Any] = [{}, prediction("a") | {"label": 3}, prediction("a") | {"score": "b"}, 7]
    for one in predictions:
        with (
            standing_in(lambda _, one=one: of({"results": [{"predictions": [one]}]})) as url,  # type: ignore[misc]
            connect(url) as client,
            pytest.raises(ServiceError, match="without label, index and score"),
        ):
            client.classify([b"a"])
    models: list[dict[str, Any]] = [{}, {"models": []}, {"models": [3]}, {"models": [{"name": "a"}]}]
    for document in models:
        with (
            standing_in(lambda _, document=document: of(document)) as url,  # type: ignore[misc]
            connect(url) as client,
            pytest.raises(ServiceError, match="not in a form that is sovit's"),
        ):
            client.labels()


def test_embeddings_of_two_models_are_no_array(connect: Callable[..., Any]) -> None:
    def answer(asked: Asked) -> Reply:
        row = b64encode(np.ones(len(asked.images[0]), "<f4").tobytes()).decode()
        return of({"dim": len(asked.images[0]), "results": [{"embedding": row}]})

    with standing_in(answer) as url, connect(url, batch_size=1) as client:
        assert [len(row) for row in client.embed_each([b"a", b"bb"])] == [1, 2]
        with pytest.raises(ServiceError, match="of different lengths"):
            client.embed([b"a", b"bb"])


def test_what_a_stranger_says_is_short_and_on_one_line(connect: Callable[..., Any]) -> None:
    reply = problem(400, BadRequest.title, "a\nb\x1b[31m" + "c" * 10_000)
    with (
        standing_in(lambda _: reply) as url,
        connect(url) as client,
        pytest.raises(BadRequest, match=r"a\?b\?\[31mc") as caught,
    ):
        client.classify([b"a"])
    assert len(str(caught.value)) < 400


def test_requests_are_bounded_and_go_on_side_by_side(connect: Callable[..., Any]) -> None:
    """Nobody gets an answer before three are there, and there never are four."""
    together, lock = threading.Barrier(3), threading.Lock()
    inside = peak = 0

    def answer(asked: Asked) -> Reply:
        nonlocal inside, peak
        with lock:
            inside += 1
            peak = max(peak, inside)
        together.wait(30)
        with lock:
            inside -= 1
        return labels_of(asked)

    images = [str(index).encode() for index in range(48)]
    with standing_in(answer) as url, connect(url, batch_size=2, concurrency=3) as client:
        assert labels(client.classify(images)) == [image.decode() for image in images]
    assert peak == 3


def test_images_are_taken_as_they_are_needed(connect: Callable[..., Any]) -> None:
    taken = 0

    def endless() -> Iterator[bytes]:
        nonlocal taken
        while True:
            yield str(taken).encode()
            taken += 1

    with standing_in(labels_of) as url, connect(url, batch_size=2, concurrency=3) as client:
        assert taken == 0
        found = client.classify_each(endless())
        assert taken == 0
        for index in range(100):
            assert labels([next(found)]) == [str(index)]
            assert taken <= index + 2 * 2 * 3 + 2
        found.close()


def test_a_slow_answer_does_not_hold_up_those_after_it(connect: Callable[..., Any]) -> None:
    later = threading.Event()

    def answer(asked: Asked) -> Reply:
        if asked.images == [b"0"]:
            later.wait(30)
        if asked.images == [b"3"]:
            later.set()
        return labels_of(asked)

    with standing_in(answer) as url, connect(url, batch_size=1, concurrency=2) as client:
        assert labels(client.classify([b"0", b"1", b"2", b"3", b"4"])) == list("01234")


def test_an_error_of_the_images_themselves_comes_out(connect: Callable[..., Any]) -> None:
    def broken() -> Iterator[bytes]:
        yield b"a"
        raise RuntimeError("no more")

    with standing_in(labels_of) as url, connect(url) as client, pytest.raises(RuntimeError, match="no more"):
        client.classify(broken())


def test_bytes_of_a_request_are_bounded(connect: Callable[..., Any]) -> None:
    script = Script()
    images = [b"a" * size for size in (3_000_000, 3_000_000, 3_000_000, 9_000_000, 10)]
    with standing_in(script) as url, connect(url, concurrency=1) as client:
        assert [len(label) for label in labels(client.classify(images))] == [len(image) for image in images]
    assert [[len(image) for image in asked.images] for asked in script.asked] == [
        [3_000_000, 3_000_000], [3_000_000], [9_000_000], [10],
    ]  # fmt: skip


def test_too_large_a_request_is_halved_and_too_large_an_image_named(connect: Callable[..., Any]) -> None:
    def answer(asked: Asked) -> Reply:
        # As a proxy says it.
        return Reply(413, b"<html>") if sum(map(len, asked.images)) > 3 else labels_of(asked)

    images = [b"a", b"b", b"cccc", b"d", b"e", b"ff", b"g"]
    with standing_in(answer) as url, connect(url) as client:
        found = list(client.classify_each(images))
        assert isinstance(found.pop(2), TooLarge)
        assert labels(found) == ["a", "b", "d", "e", "ff", "g"]
        with pytest.raises(TooLarge, match="answered 413: image 2: request too large"):
            client.classify(images)


def test_the_request_says_who_asks_for_what(connect: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    script = Script()
    with standing_in(script) as url, connect(f"{url}/below/", model="a b", timeout_seconds=10) as client:
        client.classify([b"a"], top_k=3)
    (asked,) = script.asked
    assert asked.path == "/below/classify?top_k=3&on_error=item&model=a+b"
    assert asked.headers["authorization"] is None
    assert asked.headers["user-agent"] == f"sovit/{sovit.__version__}"
    assert asked.headers["x-request-timeout"] == "9.000"


def test_no_answer_in_time(connect: Callable[..., Any]) -> None:
    over = threading.Event()

    def answer(_: Asked) -> Reply:
        over.wait(30)
        return Reply(0)

    with standing_in(answer) as url, connect(url, timeout_seconds=0.2) as client:
        with pytest.raises(DeadlineExceeded, match=r"did not answer within 0\.2 s\.$"):
            client.classify([b"a"])
        over.set()


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


def no_thread_is_left() -> None:
    deadline = time.monotonic() + 20
    while any(thread.name == "sovit-client" for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


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


# --- The parts by themselves


@given(
    st.lists(st.binary(max_size=30) | st.just(Failure(kind=InvalidImage, detail="bad"))),
    st.integers(1, 6),
    st.integers(1, 60),
)
def test_batches_hold_every_image_once_in_order_and_within_bounds(
    contents: list[bytes | Failure], most_images: int, most_bytes: int
) -> None:
    found = list(batches(iter(contents), most_images, most_bytes))
    assert [content for batch in found for content in batch] == contents

    def size(batch: Sequence[bytes | Failure]) -> int:
        return sum(len(content) for content in batch if isinstance(content, bytes))

    for batch in found:
        assert 1 <= len(batch) <= most_images
        alone = sum(bool(size([content])) for content in batch) == 1
        assert size(batch) <= most_bytes or alone
    for batch, following in pairwise(found):  # none could have held one more
        assert len(batch) == most_images or size(batch) + size(following[:1]) > most_bytes


@given(st.integers(1, 200), st.floats(0, 1), st.floats(0, 1e6), st.floats(0, 1e6))
def test_no_wait_is_longer_than_allowed(attempt: int, chance: float, first: float, longest: float) -> None:
    retry = Retry(attempts=201, first_wait_seconds=first, longest_wait_seconds=longest)
    then = retry.after(httpx.ConnectError("x"), attempt, lambda: chance)
    assert isinstance(then, Wait)
    assert 0 <= then.seconds <= longest


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


def test_an_answer_without_end_is_given_up(connect: Callable[..., Any]) -> None:
    late = pytest.raises(DeadlineExceeded, match=r"did not answer within 0\.5 s")
    with trickling() as url, connect(url, timeout_seconds=0.5) as client, late:
        client.classify([b"a"])


def test_an_answer_without_bounds_is_given_up(connect: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sovit.client.receiving.MAX_BYTES", 1_000_000)
    bomb = Reply(200, gzip.compress(bytes(50_000_000)), {"content-encoding": "gzip"})
    script = Script(Reply(200, bytes(2_000_000)), bomb)
    with standing_in(script) as url, connect(url) as client:
        for _ in range(2):
            with pytest.raises(ServiceError, match="no whole answer: it is longer than 1,000,000 bytes"):
                client.classify([b"a"])
        assert labels(client.classify([b"a"])) == ["a"]
    assert {asked.headers["accept-encoding"] for asked in script.asked} == {"identity"}


@pytest.mark.parametrize("location", ["javascript:alert(1)", "http://xn--/", "http://[", "//"])
def test_a_redirect_to_nowhere_is_a_sentence(connect: Callable[..., Any], location: str) -> None:
    script, said = Script(Reply(302, b"", {"location": location})), pytest.raises(ServiceError, match="redirect")
    with standing_in(script) as url, connect(url) as client, said:
        client.classify([b"a"])


def test_a_number_beyond_all_numbers_is_no_score(connect: Callable[..., Any]) -> None:
    body = b'{"results": [{"predictions": [{"label": "a", "index": 0, "score": 1' + b"0" * 400 + b"}]}]}"
    said = pytest.raises(ServiceError, match="not in a form that is sovit's")
    with standing_in(Script(Reply(200, body))) as url, connect(url) as client, said:
        client.classify([b"a"])


def test_certificates_that_are_none_are_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("nothing")
    for name in ("ca.pem", "nowhere.pem"):
        with pytest.raises(ConfigError, match="holds no certificates that can be read"):
            Client("https://127.0.0.1", ca_file=str(tmp_path / name))


@given(st.integers(1, 200), st.floats(0, 1), st.integers(0, 1000))
def test_a_busy_service_is_waited_for_at_least_as_long_as_it_asks(attempt: int, chance: float, asked: int) -> None:
    retry = Retry(busy_attempts=201, longest_wait_seconds=1000)
    then = retry.after(httpx.Response(429, headers={"retry-after": str(asked)}), attempt, lambda: chance)
    assert isinstance(then, Wait)
    assert asked <= then.seconds <= 1000


def test_a_key_that_may_ask_once_at_a_time_gets_all_its_answers(exported: Artifact, tmp_path: Path) -> None:
    """Four requests at a time, of which the service takes one: the others wait their turn."""
    keys = tmp_path / "keys.json"
    keys.write_text(json.dumps([{"name": "a", "sha256": sha256(b"secret").hexdigest(), "max_in_flight": 1}]))
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = sovit_serve(exported.folder, port, "--keys", str(keys))
    with serving(command, url, tmp_path / "log"), Client(url, api_key="secret", batch_size=1) as client:
        assert client.embed([jpeg()] * 12).shape == (12, 32)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 408, 413, 415, 422, 500, 501, 504])
def test_other_statuses_are_final(status: int) -> None:
    assert Retry().after(httpx.Response(status, headers={"retry-after": "1"}), 1) == GiveUp()


@pytest.mark.parametrize(
    "error", [httpx.ReadTimeout("x"), httpx.WriteTimeout("x"), httpx.DecodingError("x"), httpx.UnsupportedProtocol("x")]
)
def test_a_request_that_took_all_its_time_is_final(error: httpx.RequestError) -> None:
    assert Retry().after(error, 1) == GiveUp()


@pytest.mark.parametrize("given", ["-1", "1.5", "", "soon", "٣", "Wed, 99 Foo 2026 00:00:00 GMT", "1e3"])
def test_a_retry_after_of_no_form_is_none(given: str) -> None:
    headers = [(b"retry-after", given.encode())]
    then = Retry().after(httpx.Response(429, headers=headers), 1, lambda: 0)
    assert then == Wait(Retry().first_wait_seconds)


def test_a_date_without_the_services_clock_is_read_by_ours() -> None:
    headers = {"retry-after": formatdate(time.time() + 20, usegmt=True)}
    then = Retry(longest_wait_seconds=1000).after(httpx.Response(429, headers=headers), 1)
    assert isinstance(then, Wait)
    assert 0 < then.seconds <= 30
    huge = Retry().after(httpx.Response(429, headers={"retry-after": "9" * 5000}), 1)
    assert isinstance(huge, GiveUp)


@pytest.mark.parametrize(
    ("url", "options", "words"),
    [
        ("http://[::1", {}, "is no URL"),
        ("localhost:3000", {}, "is no URL of a service such as http://"),
        ("runs/artifact", {}, "is no URL of a service"),
        ("", {}, "is no URL of a service"),
        ("http://", {}, "is no URL of a service"),
        ("http://x:99999", {}, "is no URL of a service"),
        ("ftp://x", {}, "is no URL of a service"),
        ("http://" + "a" * 70, {}, "is no URL"),
        ("http://x/?a=b", {}, "holds more than the address"),
        ("http://me:secret@x", {}, "holds a user or a password"),
        ("http://x", {"api_key": "a\nb"}, "the API key holds spaces"),
        ("http://x", {"api_key": "clé"}, "the API key holds spaces"),
        ("http://x", {"batch_size": 0}, "batch_size is 0"),
        ("http://x", {"concurrency": 0}, "concurrency is 0"),
        ("http://x", {"timeout_seconds": 0}, "timeout_seconds is 0"),
        ("http://x", {"timeout_seconds": float("nan")}, "timeout_seconds is nan"),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    connect: Callable[..., AbstractContextManager[Any]], url: str, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        connect(url, **options)
    assert "secret" not in str(caught.value)


def test_what_to_try_is_checked() -> None:
    for options in ({"attempts": 0}, {"first_wait_seconds": -1.0}, {"longest_wait_seconds": float("inf")}):
        with pytest.raises(ConfigError, match=f"{next(iter(options))} is "):
            Retry(**options)
    with Client("http://127.0.0.1:9") as client, pytest.raises(ConfigError, match="top_k is 0"):
        client.classify([], top_k=0)


def test_a_key_is_not_shown() -> None:
    assert "sesame" not in repr(Settings(url="http://x", api_key=KEY))


def test_refusals_keep_what_they_ask_for() -> None:
    error = Failure(kind=QueueFull, detail="full", retry_after=2.5).error()
    assert isinstance(error, Refused)
    assert error.retry_after == 3
    assert os.linesep not in str(error)
