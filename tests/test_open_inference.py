"""Triton's own client, unchanged, against a running service."""

from __future__ import annotations

import json
import struct
from base64 import b64encode
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient
from tritonclient.utils import InferenceServerException

from sovit.artifact import Artifact
from sovit.client import Client
from sovit.process import free_port, serving, sovit_serve
from sovit.runtime.fake import FakeRuntime
from tests.conftest import jpeg
from tests.served import post_in_thread, running, truncated_jpeg, until, worker_of

IMAGES = [jpeg((200, 30, 90)), jpeg((0, 255, 0)), jpeg((9, 9, 255))]


@pytest.fixture(scope="module")
def port(exported: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    number = free_port()
    log = tmp_path_factory.mktemp("triton") / "log"
    with serving(sovit_serve(exported.folder, number), f"http://127.0.0.1:{number}", log):
        yield number


@pytest.fixture
def api(port: int) -> Iterator[triton.InferenceServerClient]:
    client = triton.InferenceServerClient(f"127.0.0.1:{port}")
    yield client
    client.close()


def images(contents: list[bytes], shape: list[int] | None = None) -> triton.InferInput:
    shape = shape or [len(contents)]
    tensor = triton.InferInput("image", shape, "BYTES")
    tensor.set_data_from_numpy(np.array(contents, dtype=object).reshape(shape), binary_data=True)
    return tensor


def test_health_and_metadata(api: triton.InferenceServerClient, exported: Artifact) -> None:
    version = exported.sha256[:12]
    assert api.is_server_live()
    assert api.is_server_ready()
    assert api.is_model_ready("tiny")
    assert api.is_model_ready("tiny", version)
    assert not api.is_model_ready("tiny", "1")
    assert not api.is_model_ready("other")
    assert "binary_tensor_data" in api.get_server_metadata()["extensions"]
    found = api.get_model_metadata("tiny")
    assert found == api.get_model_metadata("tiny", version)
    assert found["versions"] == [version]
    assert found["inputs"] == [{"name": "image", "datatype": "BYTES", "shape": [-1]}]
    assert found["outputs"] == [
        {"name": "embedding", "datatype": "FP32", "shape": [-1, 32]},
        {"name": "scores", "datatype": "FP32", "shape": [-1, 3]},
    ]


@pytest.mark.parametrize("shape", [[3], [3, 1]])
def test_infer_gives_the_numbers_of_embed_and_classify(
    api: triton.InferenceServerClient, port: int, shape: list[int]
) -> None:
    found = api.infer("tiny", [images(IMAGES, shape)], request_id="seven")
    with Client(f"http://127.0.0.1:{port}") as client:
        np.testing.assert_array_equal(found.as_numpy("embedding"), client.embed(IMAGES))
        classified = client.classify(IMAGES, top_k=3)
    for scores, one in zip(found.as_numpy("scores"), classified, strict=True):
        for prediction in one.predictions:
            assert scores[prediction.index] == pytest.approx(prediction.score)
    assert found.get_response()["id"] == "seven"


def test_outputs_are_chosen_and_come_as_json_or_binary(api: triton.InferenceServerClient, exported: Artifact) -> None:
    reference = api.infer("tiny", [images(IMAGES)])
    for binary in (True, False):
        wanted = [triton.InferRequestedOutput(name, binary_data=binary) for name in ("scores", "embedding")]
        found = api.infer("tiny", [images(IMAGES)], exported.sha256[:12], outputs=wanted)
        assert [output["name"] for output in found.get_response()["outputs"]] == ["scores", "embedding"]
        for name in ("scores", "embedding"):
            np.testing.assert_allclose(found.as_numpy(name), reference.as_numpy(name), rtol=1e-6)


@pytest.mark.parametrize("binary", [True, False])
def test_classification_gives_score_index_and_label(api: triton.InferenceServerClient, port: int, binary: bool) -> None:
    wanted = [triton.InferRequestedOutput("scores", binary_data=binary, class_count=2)]
    found = api.infer("tiny", [images(IMAGES)], outputs=wanted).as_numpy("scores")
    assert found.shape == (3, 2)
    with Client(f"http://127.0.0.1:{port}") as client:
        expected = client.classify(IMAGES, top_k=2)
    for words, one in zip(found, expected, strict=True):
        for word, prediction in zip(words, one.predictions, strict=True):
            text = word.decode() if isinstance(word, bytes) else word
            assert text == f"{prediction.score:f}:{prediction.index}:{prediction.label}"


def test_many_at_once(api: triton.InferenceServerClient, port: int) -> None:
    client = triton.InferenceServerClient(f"127.0.0.1:{port}", concurrency=8)
    waiting = [client.async_infer("tiny", [images([IMAGES[index % 3]])]) for index in range(40)]
    reference = api.infer("tiny", [images(IMAGES)]).as_numpy("embedding")
    for index, one in enumerate(waiting):
        np.testing.assert_allclose(one.get_result().as_numpy("embedding")[0], reference[index % 3], atol=1e-5)
    client.close()


def test_errors_are_sentences(api: triton.InferenceServerClient) -> None:
    def refused(status: int, *words: Any, **named: Any) -> str:
        with pytest.raises(InferenceServerException) as caught:
            api.infer(*words, **named)
        assert caught.value.status() == str(status)
        return str(caught.value.message())

    assert "no such model" in refused(404, "other", [images(IMAGES)])
    assert "in version" in refused(404, "tiny", [images(IMAGES)], "1")
    assert "image 1" in refused(422, "tiny", [images([IMAGES[0], truncated_jpeg()])])
    assert "image 0" in refused(415, "tiny", [images([b"text"])])
    assert "0 bytes" in refused(400, "tiny", [images([b""])])
    assert "more than 64" in refused(413, "tiny", [images([IMAGES[0]] * 65)])
    pixels = triton.InferInput("image", [1, 16, 16, 3], "UINT8")
    pixels.set_data_from_numpy(np.zeros((1, 16, 16, 3), np.uint8))
    refused(400, "tiny", [pixels])
    wrong = triton.InferInput("picture", [1], "BYTES")
    wrong.set_data_from_numpy(np.array([IMAGES[0]], object))
    assert "one input, `image`" in refused(400, "tiny", [wrong])
    assert "no such output" in refused(400, "tiny", [images(IMAGES)], outputs=[triton.InferRequestedOutput("logits")])
    assert "longer than" in refused(504, "tiny", [images(IMAGES)], timeout=1)


def v2_body(*elements: bytes, size: int | None = None, shape: int | None = None) -> tuple[bytes, int]:
    binary = b"".join(struct.pack("<I", len(element)) + element for element in elements)
    tensor = {
        "name": "image",
        "shape": [len(elements) if shape is None else shape],
        "datatype": "BYTES",
        "parameters": {"binary_data_size": len(binary) if size is None else size},
    }
    head = json.dumps({"inputs": [tensor]}).encode()
    return head + binary, len(head)


def test_json_alone_works_with_base64(client: TestClient) -> None:
    data = [b64encode(image).decode() for image in IMAGES]
    body = {"inputs": [{"name": "image", "shape": [3], "datatype": "BYTES", "data": data}]}
    reply = client.post("/v2/models/tiny/infer", json=body)
    assert reply.status_code == 200
    assert reply.headers["content-type"] == "application/json"
    output = reply.json()["outputs"][0]
    embeddings = client.post("/embed", json={"images": data}).json()["results"]
    np.testing.assert_allclose(
        np.reshape(output["data"], output["shape"]), [one["embedding"] for one in embeddings], rtol=1e-6
    )


def test_broken_bodies_are_400_in_the_protocols_form(client: TestClient) -> None:
    good, length = v2_body(IMAGES[0])
    cases = [
        (good, "many"),
        (good, "-1"),
        (good, str(len(good) + 1)),
        (good, str(length - 1)),
        (good[:-1], str(length)),
        (good + b"x", str(length)),
        (*v2_body(IMAGES[0], size=3),),
        (*v2_body(IMAGES[0], shape=2),),
        (*v2_body(IMAGES[0], shape=0),),
        (b"", "0"),
        (b'{"inputs": []}', None),
        (b'{"inputs": [{"name": "image", "shape": [1], "datatype": "BYTES"}]}', None),
        (b'{"inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", "data": [{"a": 1}]}]}', None),
        (b'{"inputs": [{"name": "image", "shape": [1, 2], "datatype": "BYTES", "data": ["eA==", "eA=="]}]}', None),
    ]
    for content, header in cases:
        headers = {} if header is None else {"inference-header-content-length": str(header)}
        response = client.post("/v2/models/tiny/infer", content=content, headers=headers)
        assert response.status_code == 400, (content[:80], response.text)
        assert set(response.json()) == {"error"}


@pytest.mark.parametrize(
    "fields",
    [
        {"parameters": {"timeout": 10**400}},
        {"parameters": {"timeout": -1}},
        {"id": "HALF"},
        {"outputs": [{"name": "scores", "parameters": {"classification": 10**30}}]},
        {"inputs": [{"name": "image", "shape": [10**4000, 10**4000], "datatype": "BYTES", "data": ["eA=="]}]},
        {"inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": 10**50}}]},
    ],
)
def test_absurd_values_are_400_and_never_reach_the_log(
    client: TestClient, fields: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    data = [b64encode(IMAGES[0]).decode()]
    body: dict[str, Any] = {"inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", "data": data}]}
    content = json.dumps(body | fields).replace("HALF", "\\ud800SECRET")
    response = client.post("/v2/models/tiny/infer", content=content)
    assert response.status_code == 400, response.text
    assert not caplog.records


@pytest.mark.parametrize("header", ["123456789012SECRET", "9" * 5000, "1_0", "+5", "٣"])
def test_header_lengths_that_are_none_are_400_and_never_reach_the_log(
    client: TestClient, header: str, caplog: pytest.LogCaptureFixture
) -> None:
    headers = {b"inference-header-content-length": header.encode()}
    response = client.post("/v2/models/tiny/infer", content=v2_body(IMAGES[0])[0], headers=headers)
    assert response.status_code == 400
    assert not caplog.records


def test_as_many_images_as_a_request_may_have_come_in_rows_of_one(client: TestClient) -> None:
    data = [[b64encode(IMAGES[0]).decode()]] * 64
    body = {"inputs": [{"name": "image", "shape": [64, 1], "datatype": "BYTES", "data": data}]}
    response = client.post("/v2/models/tiny/infer", json=body)
    assert response.status_code == 200, response.text
    assert response.json()["outputs"][0]["shape"] == [64, 32]


def test_paths_written_as_templates_are_paths(client: TestClient) -> None:
    for method, path in (
        ("GET", "/v2/models/%7Bmodel%7D"),
        ("GET", "/v2/models/{model}/versions/{version}"),
        ("POST", "/v2/models/%7Bmodel%7D/infer"),
        ("GET", "/v1/models/%7Bmodel%7D"),
        ("GET", "/v2/models/tiny/config"),
        ("POST", "/v1/chat/completions"),
    ):
        assert client.request(method, path).status_code == 404, path
    for path in ("/v1/nothing", "/v1/embeddings"):
        assert set(client.get(path).json()["error"]) == {"message", "type", "param", "code"}
    for path in ("/v2/nothing", "/v2/models/tiny/infer"):
        assert isinstance(client.get(path).json()["error"], str)
    assert client.get("/v1/embeddings").status_code == 405


def test_a_time_that_the_queue_is_too_long_for_is_refused_at_once(exported: Artifact) -> None:
    runtime = FakeRuntime(exported.manifest.model)
    with running(exported, runtime) as client:
        line = worker_of(client).models.find(None).line
        runtime.gate.clear()
        waiting, threads = post_in_thread(client, 1)
        until(lambda: line.images == 1)
        data = [b64encode(IMAGES[0]).decode()]
        body: dict[str, Any] = {"inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", "data": data}]}
        line._rate._seconds = 5.0 * line._rate._images  # 5 s of work ahead
        response = client.post("/v2/models/tiny/infer", json=body | {"parameters": {"timeout": 500_000}})
        assert response.status_code == 429
        runtime.gate.set()
        threads[0].join()
        assert waiting[0].status_code == 200


def test_with_keys_nothing_is_said_of_models_without_one(exported: Artifact, tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    keys.write_text(json.dumps([{"name": "a", "sha256": sha256(b"secret").hexdigest()}]))
    with running(exported, keys=str(keys)) as client:
        for path in ("/v2/models/tiny", "/v2/models/tiny/ready", "/v2/models/nope/ready", "/v1/models/tiny", "/stats"):
            response = client.get(path)
            assert response.status_code == 401, path
            assert "tiny" not in response.text
        for path in ("/v2/models/tiny/infer", "/v2/models/nope/infer", "/v1/embeddings"):
            assert client.post(path).status_code == 401
        assert client.get("/v2/health/ready").status_code == 200


def test_an_element_longer_than_the_body_is_refused(client: TestClient) -> None:
    binary = struct.pack("<I", 2**32 - 1) + IMAGES[0]
    tensor = {"name": "image", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": len(binary)}}
    head = json.dumps({"inputs": [tensor]}).encode()
    response = client.post(
        "/v2/models/tiny/infer", content=head + binary, headers={"inference-header-content-length": str(len(head))}
    )
    assert response.status_code == 400
    assert "shorter than its length" in response.json()["error"]


def test_health_is_false_while_it_drains(exported: Artifact) -> None:
    with running(exported) as client:
        assert client.get("/v2/health/ready").status_code == 200
        assert client.portal is not None
        client.portal.call(worker_of(client).door.drain)
        assert client.get("/v2/health/ready").status_code == 503
        assert client.get("/v2/models/tiny/ready").status_code == 503
        assert client.get("/v2/health/live").status_code == 200


@pytest.fixture(scope="module")
def in_process(exported: Artifact) -> Iterator[TestClient]:
    with running(exported) as client:
        yield client


@given(
    cut=st.integers(0, 400),
    length=st.integers(-5, 2000).map(str)
    | st.text(st.characters(max_codepoint=255, exclude_categories=["C"]), max_size=40),
    place=st.integers(0, 300),
    noise=st.binary(max_size=12),
)
@settings(max_examples=150)
def test_no_broken_body_is_our_fault(in_process: TestClient, cut: int, length: str, place: int, noise: bytes) -> None:
    good, right = v2_body(*IMAGES[:2])
    for header in (length, str(right)):
        content = good[:place] + noise + good[place + len(noise) : len(good) - cut]
        headers = {b"inference-header-content-length": header.encode("latin-1")}
        response = in_process.post("/v2/models/tiny/infer", content=content, headers=headers)
        assert response.status_code in {200, 400, 413, 415, 422}
        if response.status_code != 200:
            assert set(response.json()) == {"error"}


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["image", "name", "shape"]), inner),
        max_leaves=6,
    ),
    st.sampled_from(["inputs", "outputs", "parameters", "id"]),
)
def test_no_odd_json_is_our_fault(in_process: TestClient, value: object, field: str) -> None:
    data = [b64encode(IMAGES[0]).decode()]
    body: dict[str, Any] = {"inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", "data": data}]}
    response = in_process.post("/v2/models/tiny/infer", json=body | {field: value})
    assert response.status_code in {200, 400, 413}
    embeddings = {"model": "tiny", "input": f"data:image/jpeg;base64,{data[0]}"}
    response = in_process.post("/v1/embeddings", json=embeddings | {"input": value})
    assert response.status_code in {200, 400, 413, 415, 422}
