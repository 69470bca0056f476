"""The ASGI application with a fake runtime: every route, form and status of the HTTP contract."""

from __future__ import annotations

import gzip
import io
import json
import threading
from base64 import b64decode, b64encode
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.ipc
import pytest
from PIL import Image
from starlette.testclient import TestClient

import serving.app
import serving.inference.model
import serving.process.loader
from serving.config import ServeConfig
from serving.process.failed_start import end_process
from serving.process.loader import Loader
from serving.wire.schema import ARROW, JSON, NPY
from serving.worker import start_worker
from sovit.artifact import Artifact
from sovit.decode import DecodeOptions
from tests.conftest import jpeg, png
from tests.served import (
    JPEG,
    assert_problem,
    encoded,
    huge_png,
    running,
    truncated_jpeg,
    until,
)


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


@pytest.mark.parametrize(
    ("content", "status", "detail"),
    [
        (b"", 400, "empty"),
        (b"I am a jpeg, honestly", 415, "no image of a format"),
        (b"%PDF-1.4", 415, "no image of a format"),
        (truncated_jpeg(), 422, "truncated or corrupt"),
        (jpeg()[:20], 422, "image 0"),
        (huge_png(), 422, "over the limit of 50,000,000 pixels"),
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
    monkeypatch.setattr(serving.inference.model, "read_manifest", lambda _: manifest)
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
    assert set(document["paths"]) == {
        path for path in routes if not path.startswith(("/openapi.json", "/docs", "/page/")) and path != "/"
    }
    for path, extra in (("/classify", {"top_k"}), ("/embed", {"normalize"})):
        operation = document["paths"][path]["post"]
        assert {"200", "400", "401", "413", "415", "422", "429", "503", "504"} <= set(operation["responses"])
        names = {parameter["name"] for parameter in operation["parameters"]}
        assert names == extra | {"model", "on_error", "dtype", "encoding", "x-request-timeout"}


def test_the_committed_description_is_the_servers(client: TestClient) -> None:
    committed = json.loads((Path(__file__).parents[1] / "docs" / "openapi.json").read_text(encoding="utf-8"))
    assert committed == client.get("/openapi.json").json(), (
        "write it anew: python -m serving.faces.openapi > docs/openapi.json"
    )


def test_before_it_has_started_it_is_alive_but_not_ready(exported: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()
    monkeypatch.setattr(
        serving.process.loader, "start_worker", lambda config: (go_on.wait(10), start_worker(config))[1]
    )
    config = ServeConfig(artifacts={"tiny": str(exported.folder)}, runtime="fake")
    with TestClient(serving.app.create_app(Loader(end_process), lambda: config)) as client:
        for response in (client.get("/readyz"), client.post("/embed", content=jpeg(), headers=JPEG)):
            assert_problem(response, 503)
            assert int(response.headers["retry-after"]) >= 1
        assert client.get("/livez").status_code == 200
        go_on.set()
        until(lambda: client.get("/readyz").status_code == 200)


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
        config = ServeConfig(artifacts={"tiny": str(exported.folder)}, runtime=runtime)
        with TestClient(serving.app.create_app(Loader(end_process), lambda config=config: config)) as client:  # type: ignore[misc]
            until(lambda: client.get("/readyz").status_code == 200)
            alone = [client.post("/embed", content=image, headers=JPEG | {"accept": NPY}) for image in images]
            files = [("images", ("x", image)) for image in images]
            together = np.load(io.BytesIO(client.post("/embed", files=files, headers={"accept": NPY}).content))
        singly = np.concatenate([np.load(io.BytesIO(reply.content)) for reply in alone])
        assert (singly * together).sum(axis=1).min() >= 0.99999
