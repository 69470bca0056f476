"""The ASGI application with a fake runtime: every route, form and status of the HTTP contract."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import threading
import time
from base64 import b64decode, b64encode
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.ipc
import pytest
from PIL import Image
from starlette.testclient import TestClient
from starlette.types import Message

import serving.app
import serving.loader
import serving.worker
from serving.config import ServeConfig
from serving.failed_start import end_process
from serving.loader import Loader
from serving.schema import ARROW, JSON, NPY
from serving.worker import Worker, start_worker
from sovit.artifact import Artifact
from sovit.decode import DecodeOptions
from sovit.errors import SoViTError
from sovit.runtime.fake import POISON, FakeRuntime
from tests.conftest import jpeg, png

JPEG = {"content-type": "image/jpeg"}


@contextmanager
def running(artifact: Artifact, runtime: FakeRuntime | None = None, **changes: Any) -> Iterator[TestClient]:
    config = ServeConfig(artifact=str(artifact.folder), runtime="fake", **changes)
    patch = pytest.MonkeyPatch()
    if runtime is not None:
        patch.setattr(serving.worker, "open_lanes", lambda *_, **__: [runtime])
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


@pytest.fixture
def client(exported: Artifact) -> Iterator[TestClient]:
    with running(exported) as client:
        yield client


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


def test_classify_replies_in_the_contracts_form(client: TestClient) -> None:
    reply = client.post("/classify?top_k=2", content=jpeg(), headers=JPEG).json()
    assert set(reply) == {"model", "results"}
    assert reply["model"] == {
        "name": "tiny", "artifact": reply["model"]["artifact"], "precision": "fp32", "runtime": "fake",
    }  # fmt: skip
    predictions = reply["results"][0]["predictions"]
    assert [set(prediction) for prediction in predictions] == [{"label", "index", "score"}] * 2
    assert predictions[0]["score"] >= predictions[1]["score"]


def test_all_input_forms_give_the_same(client: TestClient) -> None:
    image = jpeg()
    encoded = b64encode(image).decode()
    replies = [
        client.post("/embed", content=image, headers=JPEG),
        client.post("/embed", content=image, headers={"content-type": "application/octet-stream"}),
        client.post("/embed", files={"images": ("a.jpg", image, "image/jpeg")}),
        client.post("/embed", json={"images": [encoded]}),
        client.post("/embed", json={"images": [f"data:image/jpeg;base64,{encoded}"]}),
    ]
    assert [reply.status_code for reply in replies] == [200] * 5
    assert len({json.dumps(reply.json()["results"]) for reply in replies}) == 1


def test_many_images_keep_their_order(client: TestClient) -> None:
    images = [png(np.full((16, 16, 3), 10 * index, np.uint8)) for index in range(20)]
    reply = client.post("/embed?normalize=false", files=[("images", ("x", image)) for image in images]).json()
    assert [round(result["embedding"][0] * 255) for result in reply["results"]] == [10 * index for index in range(20)]
    assert reply["dim"] == 32


def test_embeddings_in_every_encoding(client: TestClient) -> None:
    images = [("images", ("x", jpeg(color))) for color in ((1, 2, 3), (200, 100, 50))]
    plain = np.array([r["embedding"] for r in client.post("/embed", files=images).json()["results"]], np.float32)
    np.testing.assert_allclose(np.linalg.norm(plain, axis=1), 1, rtol=1e-5)
    for headers, params in (({"accept": "application/x-npy"}, None), (None, {"encoding": "npy"})):
        reply = client.post("/embed", files=images, headers=headers, params=params)
        assert reply.headers["content-type"] == "application/x-npy"
        array = np.load(io.BytesIO(reply.content), allow_pickle=False)
        assert (array.dtype, array.shape) == (np.float32, (2, 32))
        np.testing.assert_array_equal(array, plain)
    reply = client.post("/embed", files=images, params={"encoding": "base64"})
    decoded = [np.frombuffer(b64decode(r["embedding"]), "<f4") for r in reply.json()["results"]]
    np.testing.assert_array_equal(decoded, plain)


def arrow(content: bytes) -> Any:
    table = pyarrow.ipc.open_stream(content).read_all()
    table.validate(full=True)
    return table


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_embeddings_as_arrow_and_in_half_precision(client: TestClient, dtype: str) -> None:
    images = [("images", ("x", image)) for image in (jpeg((1, 2, 3)), b"text", jpeg((200, 100, 50)))]
    good = [images[0], images[2]]
    exact = np.load(io.BytesIO(client.post("/embed?encoding=npy", files=good).content))
    expected = exact.astype(dtype)
    reply = client.post(f"/embed?dtype={dtype}&on_error=item", files=images, headers={"accept": ARROW})
    assert reply.headers["content-type"] == ARROW
    table = arrow(reply.content)
    assert table.schema.field("embedding").type.list_size == 32
    assert table.schema.field("embedding").type.value_type.to_pandas_dtype() == np.dtype(dtype)
    rows = table.to_pylist()
    np.testing.assert_array_equal([rows[0]["embedding"], rows[2]["embedding"]], expected)
    assert (rows[1]["embedding"], rows[1]["status"], rows[0]["status"]) == (None, 415, None)
    assert "no image of a format" in rows[1]["error"]
    array = np.load(io.BytesIO(client.post(f"/embed?dtype={dtype}&encoding=npy", files=good).content))
    assert array.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(array, expected)
    for encoding in ("json", "base64"):
        reply = client.post(f"/embed?dtype={dtype}&encoding={encoding}", files=good).json()
        values = [result["embedding"] for result in reply["results"]]
        if encoding == "base64":
            values = [np.frombuffer(b64decode(value), np.dtype(dtype).newbyteorder("<")) for value in values]
        np.testing.assert_array_equal(np.array(values, dtype), expected)
    all_bad = client.post("/embed?on_error=item&encoding=arrow", files=[images[1]])
    assert arrow(all_bad.content).to_pylist()[0]["embedding"] is None


def test_classes_in_every_encoding(client: TestClient) -> None:
    images = [("images", ("x", image)) for image in (jpeg((1, 2, 3)), b"text", jpeg((200, 100, 50)))]
    good = [images[0], images[2]]
    plain = client.post("/classify?top_k=3", files=good).json()["results"]
    by_index = [{p["index"]: p["score"] for p in result["predictions"]} for result in plain]
    scores = np.load(io.BytesIO(client.post("/classify", files=good, headers={"accept": NPY}).content))
    assert (scores.dtype, scores.shape) == (np.float32, (2, 3))
    np.testing.assert_allclose(scores, [[row[index] for index in range(3)] for row in by_index], rtol=1e-6)
    encoded = client.post("/classify?encoding=base64&dtype=float16&on_error=item", files=images).json()["results"]
    assert encoded[1]["error"]["status"] == 415
    decoded = [np.frombuffer(b64decode(encoded[index]["scores"]), "<f2") for index in (0, 2)]
    np.testing.assert_array_equal(decoded, scores.astype(np.float16))
    reply = client.post("/classify?top_k=2&encoding=arrow&on_error=item", files=images)
    rows = arrow(reply.content).to_pylist()
    for row, result in zip((rows[0], rows[2]), plain, strict=True):
        assert row["label"] == [p["label"] for p in result["predictions"][:2]]
        assert row["index"] == [p["index"] for p in result["predictions"][:2]]
        np.testing.assert_allclose(row["score"], [p["score"] for p in result["predictions"][:2]], rtol=1e-6)
    assert (rows[1]["label"], rows[1]["status"]) == (None, 415)


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", JSON),
        ("*/*", JSON),
        ("text/html, */*;q=0.1", JSON),
        (f"{JSON};q=0.5, {NPY}", NPY),
        (f"{NPY};q=0.2, {ARROW};q=0.8, {JSON};q=0.5", ARROW),
        (f"{NPY};q=0, {JSON}", JSON),
    ],
)
def test_the_form_of_the_reply_is_what_is_preferred(client: TestClient, accept: str, expected: str) -> None:
    for path in ("/embed", "/classify"):
        reply = client.post(path, content=jpeg(), headers={"content-type": "image/jpeg", "accept": accept})
        assert reply.headers["content-type"] == expected


def test_an_option_may_come_in_any_place_but_only_once(client: TestClient) -> None:
    encoded = b64encode(jpeg()).decode()
    for response in (
        client.post("/classify?top_k=1", content=jpeg(), headers=JPEG),
        client.post("/classify", files={"images": jpeg()}, data={"top_k": "1"}),
        client.post("/classify", json={"images": [encoded], "top_k": 1}),
    ):
        assert len(response.json()["results"][0]["predictions"]) == 1
    twice = client.post("/classify?top_k=1", json={"images": [encoded], "top_k": 1})
    assert_problem(twice, 400, "given twice")


@pytest.mark.parametrize(
    ("path", "options", "detail"),
    [
        ("/classify", {"colour": "red"}, "colour: unknown field (known: "),
        ("/classify", {"normalize": "true"}, "normalize: unknown field"),
        ("/embed", {"top_k": "3"}, "top_k: unknown field"),
        ("/classify", {"top_k": "0"}, "top_k: "),
        ("/classify", {"top_k": "many"}, "top_k: "),
        ("/classify", {"top_k": "1_0"}, "top_k: must be a whole number"),
        ("/embed", {"normalize": "maybe"}, "normalize: "),
        ("/embed", {"encoding": "xml"}, "encoding: "),
        ("/embed", {"on_error": "ignore"}, "on_error: "),
        ("/embed", {"model": "gpt"}, "no such model"),
    ],
)
def test_wrong_options(client: TestClient, path: str, options: dict[str, str], detail: str) -> None:
    assert_problem(client.post(path, params=options, content=jpeg(), headers=JPEG), 400, detail)
    assert client.post(path, content=jpeg(), headers=JPEG).status_code == 200


def test_a_field_name_is_not_echoed_at_length(client: TestClient) -> None:
    problem = assert_problem(
        client.post("/classify", params={"\x00" * 9 + "x" * 9000: "1"}, content=jpeg(), headers=JPEG), 400
    )
    assert len(problem["detail"]) <= 201
    assert "\x00" not in problem["detail"]


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


@pytest.mark.parametrize(
    ("content", "status", "detail"),
    [
        (b"", 400, "empty"),
        (b"I am a jpeg, honestly", 415, "no image of a format"),
        (b"%PDF-1.4", 415, "no image of a format"),
        (truncated_jpeg(), 422, "truncated or corrupt"),
        (jpeg()[:20], 422, "image 0"),
        (huge_png(), 422, "more than 50,000,000 pixels"),
    ],
    ids=["empty", "text", "pdf", "truncated", "header only", "60000 x 60000"],
)
@pytest.mark.parametrize("path", ["/classify", "/embed"])
def test_bad_images_get_their_status_and_hurt_nobody(
    client: TestClient, path: str, content: bytes, status: int, detail: str
) -> None:
    assert_problem(client.post(path, content=content, headers=JPEG), status, detail)
    assert client.post(path, content=jpeg(), headers=JPEG).status_code == 200


def test_bad_images_among_good_ones_are_named_by_index(client: TestClient) -> None:
    images = [jpeg(), truncated_jpeg(), jpeg(), b"text"]
    files = [("images", ("x", image)) for image in images]
    problem = assert_problem(client.post("/embed", files=files), 422, "image 1")
    assert [(error["index"], error["status"]) for error in problem["errors"]] == [(1, 422), (3, 415)]
    reply = client.post("/embed?on_error=item", files=files)
    assert reply.status_code == 200
    assert ["embedding" in result for result in reply.json()["results"]] == [True, False, True, False]
    assert [result.get("error", {}).get("status") for result in reply.json()["results"]] == [None, 422, None, 415]
    reply = client.post("/classify?on_error=item", files=files)
    assert ["predictions" in result for result in reply.json()["results"]] == [True, False, True, False]
    assert_problem(client.post("/embed?on_error=item&encoding=npy", files=files), 422, "image 1")
    reply = client.post("/classify?on_error=item", content=b"text", headers=JPEG)
    assert reply.json()["results"][0]["error"]["status"] == 415


def test_unusual_images_are_served(client: TestClient) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    images = [
        png(np.zeros((1, 1, 3), np.uint8)),
        encoded(Image.new("L", (9, 9), 5), "JPEG"),
        encoded(Image.new("CMYK", (9, 9)), "JPEG"),
        encoded(Image.fromarray(np.full((9, 9), 40_000, np.uint16)), "PNG"),
        encoded(Image.new("RGB", (9, 9)).quantize(2), "PNG", transparency=0),
        encoded(Image.new("RGB", (9, 4)), "JPEG", exif=exif),
        encoded(Image.new("LA", (9, 9)), "PNG"),
        encoded(Image.new("RGB", (9, 9)), "WEBP"),
        encoded(Image.new("RGB", (9, 9)), "GIF"),
    ]
    for image in images:
        assert client.post("/classify", content=image, headers=JPEG).status_code == 200
    reply = client.post("/classify", files=[("images", ("x", image)) for image in images])
    assert len(reply.json()["results"]) == len(images)


def test_limits(exported: Artifact) -> None:
    limits: dict[str, Any] = {"max_body_bytes": 5000, "max_images": 2, "decode": DecodeOptions(max_pixels=40 * 30)}
    with running(exported, **limits) as client:
        assert_problem(client.post("/embed", content=b"x" * 5001, headers=JPEG), 413, "limit of 5,000 bytes")
        assert client.post("/embed", content=b"x" * 5001, headers=JPEG).headers["connection"] == "close"
        chunks = (b"x" * 1000 for _ in range(50))
        assert_problem(client.post("/embed", content=chunks, headers=JPEG), 413, "limit of 5,000 bytes")
        files = [("images", ("x", jpeg(size=(4, 4)))) for _ in range(3)]
        assert_problem(client.post("/embed", files=files), 413, "more than 2 images")
        assert_problem(client.post("/embed", content=jpeg(size=(41, 30)), headers=JPEG), 422, "limit of 1,200 pixels")
        assert client.post("/embed", content=jpeg(size=(40, 30)), headers=JPEG).status_code == 200


def test_content_types_methods_and_paths(client: TestClient) -> None:
    assert_problem(client.post("/classify", content=b"x", headers={"content-type": "text/html"}), 415, "send multipart")
    zipped = JPEG | {"content-encoding": "gzip"}
    assert_problem(client.post("/classify", content=gzip.compress(jpeg()), headers=zipped), 415, "content encoding")
    assert client.post("/classify", content=jpeg(), headers=JPEG | {"content-encoding": "identity"}).status_code == 200
    response = client.get("/classify")
    assert_problem(response, 405)
    assert response.headers["allow"] == "POST"
    assert_problem(client.get("/nothing/here"), 404)
    assert_problem(client.post("/embed", content=jpeg(), headers=JPEG | {"accept": "text/html"}), 406)
    assert_problem(client.post("/classify", content=jpeg(), headers=JPEG | {"accept": "image/png"}), 406)


def test_the_request_id_is_kept_or_made(client: TestClient) -> None:
    assert client.get("/livez", headers={"x-request-id": "abc-1.2_3"}).headers["x-request-id"] == "abc-1.2_3"
    for given in ("a b", "x" * 129, "<script>"):
        made = client.get("/livez", headers={"x-request-id": given}).headers["x-request-id"]
        assert made != given
        assert len(made) == 32


def test_a_model_without_a_head_only_embeds(exported: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = replace(
        exported.manifest,
        model=replace(exported.manifest.model, num_classes=0),
        labels=(),
        outputs=exported.manifest.outputs[:1],
    )
    monkeypatch.setattr(serving.worker, "read_manifest", lambda _: manifest)
    with running(exported) as client:
        assert_problem(client.post("/classify", content=jpeg(), headers=JPEG), 400, "no classification head")
        assert client.post("/embed", content=jpeg(), headers=JPEG).status_code == 200


def test_the_other_routes(client: TestClient) -> None:
    client.post("/embed", content=jpeg(), headers=JPEG)
    client.post("/embed", content=b"", headers=JPEG)
    model = client.get("/models").json()["models"][0]
    assert (model["name"], model["dim"], model["labels"]) == ("tiny", 32, ["ant", "bee", "cat"])
    assert client.get("/livez").json() == {"status": "alive"}
    assert client.get("/readyz").json() == {"status": "ready"}
    metrics = client.get("/metrics").text
    assert 'sovit_requests_total{code="200",route="/embed"} 1.0' in metrics
    assert 'sovit_requests_total{code="400",route="/embed"} 1.0' in metrics
    assert "sovit_batch_images_count" in metrics
    page = client.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    for path in client.get("/openapi.json").json()["paths"]:
        assert path in page.text


def test_openapi_names_every_route_and_every_status(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    routes = set(client.app.paths)  # type: ignore[attr-defined]
    assert set(document["paths"]) == routes - {"/openapi.json", "/docs"}
    for path, extra in (("/classify", {"top_k"}), ("/embed", {"normalize"})):
        operation = document["paths"][path]["post"]
        assert {"200", "400", "401", "413", "415", "422", "429", "503", "504"} <= set(operation["responses"])
        names = {parameter["name"] for parameter in operation["parameters"]}
        assert names == extra | {"model", "on_error", "dtype", "encoding", "x-request-timeout"}


def test_the_committed_description_is_the_servers(client: TestClient) -> None:
    committed = json.loads((Path(__file__).parents[1] / "docs" / "openapi.json").read_text(encoding="utf-8"))
    assert committed == client.get("/openapi.json").json(), "write it anew: python -m serving.docs > docs/openapi.json"


def test_before_it_has_started_it_is_alive_but_not_ready(exported: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()
    monkeypatch.setattr(serving.loader, "start_worker", lambda config: (go_on.wait(10), start_worker(config))[1])
    config = ServeConfig(artifact=str(exported.folder), runtime="fake")
    with TestClient(serving.app.create_app(Loader(end_process), lambda: config)) as client:
        for response in (client.get("/readyz"), client.post("/embed", content=jpeg(), headers=JPEG)):
            assert_problem(response, 503)
            assert int(response.headers["retry-after"]) >= 1
        assert client.get("/livez").status_code == 200
        go_on.set()
        until(lambda: client.get("/readyz").status_code == 200)


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


def test_a_full_queue_answers_429_and_recovers(exported: Artifact) -> None:
    runtime = FakeRuntime(exported.manifest.model)
    with running(exported, runtime, max_queue=3, max_images=2, max_batch=1) as client:
        runtime.gate.clear()
        runtime.calls = 0
        engine = worker_of(client).engine
        first, first_threads = post_in_thread(client, 1)
        until(lambda: runtime.calls == 1)
        responses, threads = post_in_thread(client, 2)
        until(lambda: engine.depth == 2)
        refused = client.post("/embed", content=jpeg(), headers=JPEG)
        document = assert_problem(refused, 429, "queue is full")
        assert int(refused.headers["retry-after"]) == document["retry_after_seconds"] >= 1
        runtime.gate.set()
        for thread in first_threads + threads:
            thread.join()
        assert [response.status_code for response in first + responses] == [200] * 3
        assert client.post("/embed", content=jpeg(), headers=JPEG).status_code == 200


def test_a_deadline_answers_504_and_what_waited_never_runs(exported: Artifact) -> None:
    runtime = FakeRuntime(exported.manifest.model)
    with running(exported, runtime, timeout_seconds=0.3, max_batch=1) as client:
        runtime.batches.clear()
        runtime.gate.clear()
        responses, threads = post_in_thread(client, 3)
        for thread in threads:
            thread.join()
        assert {response.status_code for response in responses} == {504}
        assert worker_of(client).engine.depth == 0
        runtime.gate.set()
        assert client.post("/embed", content=jpeg(), headers=JPEG).status_code == 200
        assert sum(runtime.batches) == 2  # the one that was under way, and the good one


def test_a_request_may_ask_for_less_time_but_not_for_more(exported: Artifact) -> None:
    runtime = FakeRuntime(exported.manifest.model)
    with running(exported, runtime, timeout_seconds=0.4) as client:
        for wrong in ("0", "-1", "nan", "inf", "soon", "", "1_0", "0x5", "1 "):
            headers = JPEG | {"x-request-timeout": wrong}
            assert_problem(client.post("/embed", content=jpeg(), headers=headers), 400, "X-Request-Timeout")
        assert client.post("/embed", content=jpeg(), headers=JPEG | {"x-request-timeout": "60"}).status_code == 200
        runtime.gate.clear()
        for asked, given in (("0.05", "longer than 0.05 s"), ("60", "longer than 0.4 s")):
            headers = JPEG | {"x-request-timeout": asked}
            assert_problem(client.post("/embed", content=jpeg(), headers=headers), 504, given)


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


def test_a_client_that_goes_away_leaves_nothing_behind(exported: Artifact) -> None:
    runtime = FakeRuntime(exported.manifest.model)
    with running(exported, runtime, max_batch=1) as client:
        worker = worker_of(client)
        runtime.batches.clear()
        runtime.gate.clear()
        _, first = post_in_thread(client, 1)
        until(lambda: worker.engine.running)
        messages: list[Message] = [{"type": "http.request", "body": jpeg(), "more_body": False}]

        async def once_it_waits() -> Message:
            if messages:
                return messages.pop()
            while not worker.engine.depth:
                await asyncio.sleep(0.001)
            return {"type": "http.disconnect"}

        post_raw(client, once_it_waits)
        assert (worker.engine.depth, worker.door.requests, worker.door.images) == (0, 1, 1)
        runtime.gate.set()
        first[0].join()
        assert client.post("/embed", content=jpeg(), headers=JPEG).status_code == 200
        assert runtime.batches == [1, 1], "what nobody waits for has never run"
        assert 'sovit_requests_total{code="499",route="/embed"} 1.0' in client.get("/metrics").text


def test_a_client_that_goes_away_while_it_sends_leaves_nothing_behind(client: TestClient) -> None:
    messages: list[Message] = [
        {"type": "http.disconnect"},
        {"type": "http.request", "body": jpeg()[:50], "more_body": True},
    ]

    async def receive() -> Message:
        return messages.pop()

    post_raw(client, receive)
    assert (worker_of(client).door.requests, worker_of(client).door.bytes) == (0, 0)


def test_bodies_under_way_are_bounded_in_bytes(exported: Artifact) -> None:
    runtime = FakeRuntime(exported.manifest.model)
    size = len(jpeg())
    with running(exported, runtime, max_body_bytes=2 * size, max_queue_bytes=3 * size) as client:
        runtime.gate.clear()
        responses, threads = post_in_thread(client, 2)
        until(lambda: worker_of(client).door.bytes == 2 * size)
        padded = jpeg() + b"x"
        assert_problem(client.post("/embed", content=padded, headers=JPEG), 429, "fill the memory")
        chunks = iter([jpeg(), b"x"])
        assert_problem(client.post("/embed", content=chunks, headers=JPEG), 429, "fill the memory")
        runtime.gate.set()
        for thread in threads:
            thread.join()
        assert [response.status_code for response in responses] == [200] * 2
        assert client.post("/embed", content=padded, headers=JPEG).status_code == 200
        assert 'sovit_rejected_total{reason="queue"} 2.0' in client.get("/metrics").text


def test_a_client_that_announces_much_and_sends_little_keeps_nobody_out(exported: Artifact) -> None:
    with running(exported, max_queue=2, max_images=1) as client:
        worker = worker_of(client)
        go_on = threading.Event()

        async def receive() -> Message:
            while not go_on.is_set():
                await asyncio.sleep(0.001)
            return {"type": "http.disconnect"}

        headers = [(b"content-type", b"image/jpeg"), (b"content-length", b"30000000")]
        slow = [threading.Thread(target=post_raw, args=(client, receive, headers)) for _ in range(20)]
        for thread in slow:
            thread.start()
        until(lambda: worker.door.requests == 20)
        assert (worker.door.images, worker.door.bytes) == (0, 0)
        hasty = JPEG | {"x-request-timeout": "2"}
        assert [client.post("/embed", content=jpeg(), headers=hasty).status_code for _ in range(5)] == [200] * 5
        go_on.set()
        for thread in slow:
            thread.join()
        assert worker.door.requests == 0


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_stuck_lane_and_a_dead_one_are_no_life(exported: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = FakeRuntime(exported.manifest.model)
    with running(exported, runtime) as client:
        monkeypatch.setattr("serving.engine.STUCK_SECONDS", 0.05)
        runtime.gate.clear()
        responses, threads = post_in_thread(client, 1)
        until(lambda: client.get("/livez").status_code == 503)
        assert_problem(client.get("/livez"), 503, "dead or stuck")
        assert_problem(client.get("/readyz"), 503)
        runtime.gate.set()
        threads[0].join()
        assert responses[0].status_code == 200
        assert client.get("/livez").status_code == client.get("/readyz").status_code == 200
        monkeypatch.undo()

        def end_the_thread(_: object) -> dict[str, Any]:
            raise SystemExit

        monkeypatch.setattr(runtime, "run", end_the_thread)
        client.post("/embed", content=jpeg(), headers=JPEG | {"x-request-timeout": "0.2"})
        assert_problem(client.get("/livez"), 503, "dead or stuck")
        assert_problem(client.get("/readyz"), 503)


def test_an_image_that_breaks_the_runtime_is_a_500_that_says_nothing(client: TestClient) -> None:
    poison = png(np.full((16, 16, 3), POISON, np.uint8))
    assert_problem(client.post("/embed", content=poison, headers={"content-type": "image/png"}), 500)
    assert client.post("/embed", content=jpeg(), headers=JPEG).status_code == 200
    files = [("images", ("x", jpeg())), ("images", ("x", poison))]
    reply = client.post("/embed?on_error=item", files=files).json()
    assert [set(result) for result in reply["results"]] == [{"embedding"}, {"error"}]


def test_one_bad_image_never_hurts_its_neighbours(exported: Artifact) -> None:
    """Seven good requests and a bad one at once, many times: every good one succeeds."""
    bad = [truncated_jpeg(), b"text", huge_png(), png(np.full((16, 16, 3), POISON, np.uint8))]
    with running(exported) as client:
        for number in range(12):
            responses, threads = post_in_thread(client, 7)
            status = client.post("/embed", content=bad[number % 4], headers=JPEG).status_code
            for thread in threads:
                thread.join()
            assert status in (415, 422, 500)
            assert [response.status_code for response in responses] == [200] * 7


def with_keys(folder: Path) -> dict[str, Any]:
    keys = [
        {"name": "shop", "sha256": sha256(b"shop-key").hexdigest(), "max_in_flight": 1},
        {"name": "ops", "sha256": sha256(b"ops-key").hexdigest(), "admin": True},
    ]
    (folder / "keys.json").write_text(json.dumps(keys))
    return {"keys": str(folder / "keys.json")}


def test_with_a_key_file_everything_but_the_probes_needs_a_key(exported: Artifact, tmp_path: Path) -> None:
    shop, ops = {"authorization": "Bearer shop-key"}, {"x-api-key": "ops-key"}
    with running(exported, **with_keys(tmp_path)) as client:
        for headers in ({}, {"x-api-key": "wrong"}):
            for response in (
                client.post("/embed", content=jpeg(), headers=JPEG | headers),
                client.post("/classify", content=jpeg(), headers=JPEG | headers),
                client.post("/embed", content=b"x" * 10**6, headers=JPEG | {"x-request-timeout": "soon"} | headers),
                client.get("/model", headers=headers),
                client.get("/models", headers=headers),
                client.get("/metrics", headers=headers),
                client.post("/drain", headers=headers),
            ):
                assert_problem(response, 401, "needs a key")
                assert response.headers["www-authenticate"] == "Bearer"
                assert "wrong" not in response.text
        assert client.post("/embed", content=jpeg(), headers=JPEG | shop).status_code == 200
        assert client.get("/model", headers=shop).status_code == 200
        assert_problem(client.get("/metrics", headers=shop), 403)
        assert_problem(client.post("/drain", headers=shop), 403)
        assert client.get("/metrics", headers=ops).status_code == 200
        for path in ("/livez", "/readyz", "/docs", "/openapi.json"):
            assert client.get(path).status_code == 200


def test_a_key_over_its_limit_is_refused_and_hurts_no_other(exported: Artifact, tmp_path: Path) -> None:
    runtime = FakeRuntime(exported.manifest.model)
    shop, ops = JPEG | {"x-api-key": "shop-key"}, JPEG | {"x-api-key": "ops-key"}
    with running(exported, runtime, **with_keys(tmp_path)) as client:
        runtime.gate.clear()
        found: list[Any] = []
        threads = [
            threading.Thread(target=lambda: found.append(client.post("/embed", content=jpeg(), headers=shop))),
            threading.Thread(target=lambda: found.append(client.post("/embed", content=jpeg(), headers=ops))),
        ]
        threads[0].start()
        until(lambda: worker_of(client).door.requests == 1)
        refused = client.post("/embed", content=jpeg(), headers=shop)
        assert_problem(refused, 429, "1 requests under way")
        assert int(refused.headers["retry-after"]) >= 1
        threads[1].start()
        until(lambda: worker_of(client).door.requests == 2)
        runtime.gate.set()
        for thread in threads:
            thread.join()
        assert [response.status_code for response in found] == [200, 200]


def test_draining_refuses_newcomers_and_finishes_what_was_accepted(exported: Artifact, tmp_path: Path) -> None:
    runtime = FakeRuntime(exported.manifest.model)
    ops = {"x-api-key": "ops-key"}
    with running(exported, runtime, **with_keys(tmp_path)) as client:
        runtime.gate.clear()
        found: list[Any] = []
        accepted = threading.Thread(
            target=lambda: found.append(client.post("/embed", content=jpeg(), headers=JPEG | ops))
        )
        drained = threading.Thread(target=lambda: found.append(client.post("/drain", headers=ops)))
        accepted.start()
        until(lambda: worker_of(client).door.requests == 1)
        drained.start()
        until(lambda: worker_of(client).door.draining)
        for refused in (client.post("/embed", content=jpeg(), headers=JPEG | ops), client.get("/readyz")):
            assert_problem(refused, 503)
            assert refused.headers["connection"] == "close"
            assert int(refused.headers["retry-after"]) >= 1
        assert client.get("/livez").status_code == 200
        assert client.get("/model", headers=ops).json()["ready"] is False
        assert not found
        runtime.gate.set()
        accepted.join()
        drained.join()
        assert [response.status_code for response in found] == [200, 200]
        assert {"status": "drained"} in [response.json() for response in found]


def test_nobody_drains_a_service_without_keys(client: TestClient) -> None:
    assert_problem(client.post("/drain"), 403, "admin key")
    assert client.get("/readyz").status_code == 200


def test_the_model_has_its_artifacts_hash_as_its_tag(client: TestClient, exported: Artifact) -> None:
    reply = client.get("/model")
    assert reply.headers["etag"] == f'"{exported.sha256}"'
    model = reply.json()
    assert (model["artifact_sha256"], model["dim"], model["labels"]) == (exported.sha256, 32, ["ant", "bee", "cat"])
    assert client.get("/models").json() == {"models": [model]}
    for known in (reply.headers["etag"], f'"x", W/{reply.headers["etag"]}', "*"):
        unchanged = client.get("/model", headers={"if-none-match": known})
        assert (unchanged.status_code, unchanged.content) == (304, b"")
    assert client.get("/model", headers={"if-none-match": '"other"'}).status_code == 200


def test_the_same_image_alone_and_in_company_gives_the_same_numbers(exported: Artifact) -> None:
    """With a real engine: its sizes of batch differ in their kernels."""
    rng = np.random.default_rng(0)
    images = [png(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)) for _ in range(24)]
    for runtime in ("onnxruntime", "openvino"):
        config = ServeConfig(artifact=str(exported.folder), runtime=runtime)
        with TestClient(serving.app.create_app(Loader(end_process), lambda config=config: config)) as client:  # type: ignore[misc]
            until(lambda: client.get("/readyz").status_code == 200)
            alone = [client.post("/embed", content=image, headers=JPEG | {"accept": NPY}) for image in images]
            files = [("images", ("x", image)) for image in images]
            together = np.load(io.BytesIO(client.post("/embed", files=files, headers={"accept": NPY}).content))
        singly = np.concatenate([np.load(io.BytesIO(reply.content)) for reply in alone])
        assert (singly * together).sum(axis=1).min() >= 0.99999
