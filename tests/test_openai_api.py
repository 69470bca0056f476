"""The official OpenAI client, unchanged, against a running service."""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from starlette.testclient import TestClient

import serving.inference.model
from sovit.artifact import Artifact
from sovit.client import Client
from sovit.cost import cost
from sovit.process import free_port, sovit_serve
from sovit.process import serving as service_process
from tests.conftest import jpeg
from tests.served import running, truncated_jpeg

IMAGES = [jpeg((200, 30, 90)), jpeg((0, 255, 0))]


def data_uri(image: bytes) -> str:
    return f"data:image/jpeg;base64,{b64encode(image).decode()}"


@pytest.fixture(scope="module")
def url(exported: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    port = free_port()
    found = f"http://127.0.0.1:{port}"
    with service_process(sovit_serve(exported.folder, port), found, tmp_path_factory.mktemp("openai") / "log"):
        yield found


@pytest.fixture
def api(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def vectors(reply: Any) -> Any:
    return np.array(
        [
            np.frombuffer(b64decode(item.embedding), "<f4") if isinstance(item.embedding, str) else item.embedding
            for item in reply.data
        ],
        np.float32,
    )


def test_its_defaults_give_the_vectors_of_embed(url: str, api: openai.OpenAI, exported: Artifact) -> None:
    reply = api.embeddings.create(model="tiny", input=[data_uri(image) for image in IMAGES])
    with Client(url) as client:
        np.testing.assert_array_equal(vectors(reply), client.embed(IMAGES))
    assert [item.index for item in reply.data] == [0, 1]
    assert reply.model == "tiny"
    assert reply.usage.prompt_tokens == 2 * cost(exported.manifest.model).tokens


def test_every_form_of_input_gives_the_same(api: openai.OpenAI) -> None:
    uri, plain = data_uri(IMAGES[0]), b64encode(IMAGES[0]).decode()
    forms: list[Any] = [uri, [uri], {"image": plain}, {"image": uri}, [{"image": plain}]]
    found = [
        vectors(api.embeddings.create(model="tiny", input=form, encoding_format=encoding, dimensions=32, user="me"))
        for form in forms
        for encoding in ("float", "base64")
    ]
    for one in found:
        np.testing.assert_array_equal(one, found[0])
    assert np.linalg.norm(found[0]) == pytest.approx(1, abs=1e-6)


def test_as_many_images_as_a_request_may_have_come_in_every_form(api: openai.OpenAI) -> None:
    for item in (data_uri(IMAGES[0]), {"image": b64encode(IMAGES[0]).decode()}):
        many: Any = [item] * 64
        assert len(api.embeddings.create(model="tiny", input=many).data) == 64


def test_it_lists_the_models(api: openai.OpenAI) -> None:
    assert [model.id for model in api.models.list()] == ["tiny"]
    assert api.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError):
        api.models.retrieve("other")


def test_errors_have_openais_form(api: openai.OpenAI) -> None:
    def refused(kind: type[openai.APIStatusError], **fields: Any) -> dict[str, Any]:
        with pytest.raises(kind) as caught:
            api.embeddings.create(**({"model": "tiny", "input": data_uri(IMAGES[0])} | fields))
        body = caught.value.body
        assert isinstance(body, dict)
        assert set(body) == {"message", "type", "param", "code"}
        assert caught.value.response.headers["x-request-id"] in body["message"]
        return body

    body = refused(openai.BadRequestError, dimensions=16)
    assert "dimensions is not 32" in body["message"]
    assert (body["type"], body["param"]) == ("invalid_request_error", "dimensions")
    assert refused(openai.NotFoundError, model="text-embedding-3-small")["code"] == "model_not_found"
    assert "not text" in refused(openai.BadRequestError, input="a cat")["message"]
    assert "not text" in refused(openai.BadRequestError, input=[[1, 2, 3]])["message"]
    assert "fetches none" in refused(openai.BadRequestError, input="https://example.com/cat.jpg")["message"]
    assert refused(openai.BadRequestError, input=[])["param"] == "input"
    assert refused(openai.BadRequestError, input=["data:image/png;base64,"])["param"] == "input[0]"
    assert refused(openai.BadRequestError, extra_body={"normalize": False})["param"] == "normalize"
    assert refused(openai.BadRequestError, encoding_format="hex")["param"] == "encoding_format"
    bad = refused(openai.UnprocessableEntityError, input=[data_uri(IMAGES[0]), data_uri(truncated_jpeg())])
    assert (bad["code"], bad["param"]) == ("invalid_image", "input[1]")
    assert refused(openai.APIStatusError, input=[data_uri(b"text")])["code"] == "invalid_image"
    too_many = refused(openai.APIStatusError, input=[data_uri(IMAGES[0])] * 65)
    assert "more than 64 images" in too_many["message"]


def test_a_service_with_keys_takes_them_as_openai_does(exported: Artifact, tmp_path: Path) -> None:
    from hashlib import sha256

    path = tmp_path / "keys.json"
    path.write_text(f'[{{"name": "a", "sha256": "{sha256(b"secret").hexdigest()}", "max_in_flight": 1}}]')
    body = {"model": "tiny", "input": data_uri(IMAGES[0])}
    with running(exported, keys=str(path)) as client:
        known, unknown = ({"authorization": f"Bearer {key}"} for key in ("secret", "guess"))
        assert client.post("/v1/embeddings", json=body, headers=known).status_code == 200
        for response in (
            client.post("/v1/embeddings", json=body, headers=unknown),
            client.get("/v1/models", headers=unknown),
        ):
            assert response.status_code == 401
            assert response.json()["error"]["type"] == "authentication_error"


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"model": "tiny"}', b'{"model": 3, "input": "x"}', b"\xff"])
def test_bodies_that_are_none_are_400_in_openais_form(client: TestClient, content: bytes) -> None:
    response = client.post("/v1/embeddings", content=content, headers={"content-type": "application/json"})
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_names_of_fields_come_back_short_and_printable(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("\\ud800", "\\u001b[31mHELLO", "x" * 5000):
        content = f'{{"model": "tiny", "input": "x", "{name}": 1}}'
        response = client.post("/v1/embeddings", content=content)
        assert response.status_code == 400
        assert len(response.text) < 1000
        assert "\\u001b" not in response.text
    assert not caplog.records
    emoji = client.post("/v1/embeddings", content='{"model": "\\ud83d\\ude00", "input": "data:,"}')
    assert emoji.status_code == 400, "a whole pair is a character"
    assert "surrogate" not in emoji.text


def test_a_model_without_a_head_says_so_whatever_the_body_is(
    exported: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    headless = replace(
        exported.manifest,
        model=replace(exported.manifest.model, num_classes=0),
        labels=(),
        outputs=exported.manifest.outputs[:1],
    )
    monkeypatch.setattr(serving.inference.model, "read_manifest", lambda _: headless)
    with running(exported) as client:
        response = client.post("/classify", content=b"", headers={"content-type": "image/jpeg"})
        assert response.status_code == 400
        assert "no classification head" in response.json()["detail"]
        reply = client.post("/embed", content=IMAGES[0], headers={"content-type": "image/jpeg"})
        assert reply.headers["x-model"] == f"tiny; artifact={exported.sha256[:12]}; precision=fp32; runtime=fake"
