"""Several artifacts at once, and one that is swapped while it is asked for."""

from __future__ import annotations

import json
import shutil
import threading
from base64 import b64encode
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from starlette.testclient import TestClient

import serving.inference.model
from serving.inference.engine import Engine
from serving.inference.model import ServedModel
from sovit.artifact import Artifact
from sovit.checkpoint import save_checkpoint
from sovit.client import Client
from sovit.process import free_port
from sovit.process import serving as service_process
from sovit.runtime.fake import FakeRuntime
from tests.conftest import jpeg, random_model, tiny_spec
from tests.served import JPEG, assert_problem, post_in_thread, running, until, worker_of

ADMIN = {"authorization": "Bearer secret"}


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Another model: other weights, four classes."""
    from export.reference import reference_images
    from export.to_onnx import export_onnx, from_checkpoint

    spec = tiny_spec(num_classes=4)
    root = tmp_path_factory.mktemp("other")
    save_checkpoint(root / "checkpoint", random_model(spec.model, seed=1), spec, {"weights": "random"})
    images = reference_images(spec.preprocess, None)
    return export_onnx(from_checkpoint(root / "checkpoint", "other"), root / "artifact", images)


@pytest.fixture
def keys(tmp_path: Path) -> str:
    path = tmp_path / "keys.json"
    rows = [
        {"name": "ops", "sha256": sha256(b"secret").hexdigest(), "admin": True},
        {"name": "shop", "sha256": sha256(b"guess").hexdigest()},
    ]
    path.write_text(json.dumps(rows))
    return str(path)


def both(exported: Artifact, other: Artifact) -> dict[str, str]:
    return {"tiny": str(exported.folder), "other": str(other.folder)}


def test_a_model_is_chosen_by_name_in_every_form(exported: Artifact, other: Artifact) -> None:
    with running(exported, artifacts=both(exported, other)) as client:
        assert [one["name"] for one in client.get("/models").json()["models"]] == ["tiny", "other"]
        assert client.get("/model").json()["name"] == "tiny"
        assert client.get("/model?model=other").json()["num_classes"] == 4
        assert_problem(client.get("/model?model=third"), 400, "there is tiny, other")
        for response, name in (
            (client.post("/embed", content=jpeg(), headers=JPEG), "tiny"),
            (client.post("/embed?model=other", content=jpeg(), headers=JPEG), "other"),
            (client.post("/embed", files={"images": jpeg()}, data={"model": "other"}), "other"),
            (client.post("/classify?top_k=4&model=other", content=jpeg(), headers=JPEG), "other"),
        ):
            assert response.json()["model"]["name"] == name
        assert len(response.json()["results"][0]["predictions"]) == 4
        assert_problem(client.post("/embed?model=third", content=jpeg(), headers=JPEG), 400, "there is tiny, other")
        assert_problem(
            client.post("/embed", files={"images": jpeg()}, data={"model": "third"}), 400, "there is tiny, other"
        )
        assert client.get("/v2/models/other").json()["outputs"][1]["shape"] == [-1, 4]
        assert [card["id"] for card in client.get("/v1/models").json()["data"]] == ["tiny", "other"]
        text = client.get("/metrics").text
        assert 'sovit_images_total{model="other",outcome="ok"} 3.0' in text
        assert (
            f'sovit_model_info{{artifact="{other.sha256[:12]}",model="other",precision="fp32",runtime="fake"}}' in text
        )


def test_a_long_line_before_one_model_keeps_nobody_from_the_other(
    exported: Artifact, other: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, quick = FakeRuntime(exported.manifest.model), FakeRuntime(other.manifest.model)
    runtimes = {exported.folder: slow, other.folder: quick}
    monkeypatch.setattr(serving.inference.model, "open_lanes", lambda artifact, *_, **__: [runtimes[artifact.folder]])
    with running(exported, artifacts=both(exported, other)) as client:
        worker = worker_of(client)
        worker.models.find("tiny").line._rate._seconds *= 1e9  # it takes for ever
        slow.gate.clear()
        waiting, threads = post_in_thread(client, 1)
        until(lambda: worker.models.find("tiny").line.images == 1)
        assert client.post("/embed", content=jpeg(), headers=JPEG).status_code == 429
        assert client.post("/embed?model=other", content=jpeg(), headers=JPEG).status_code == 200
        files = {"images": jpeg()}
        assert client.post("/embed", data={"model": "other"}, files=files).status_code == 200, (
            "known after the body only"
        )
        assert client.post("/embed", data={"model": "tiny"}, files=files).status_code == 429
        slow.gate.set()
        threads[0].join()
        assert waiting[0].status_code == 200
        assert (worker.door.images, worker.door.requests) == (0, 0)


def swap(client: TestClient, folder: object, name: str = "tiny", **more: Any) -> Any:
    return client.post(f"/admin/models/{name}", json={"artifact": str(folder)}, headers=ADMIN | more)


def test_a_swap_takes_an_admin_key(exported: Artifact, other: Artifact, keys: str) -> None:
    body = {"artifact": str(other.folder)}
    with running(exported) as client:
        assert_problem(client.post("/admin/models/tiny", json=body), 403, "no key file")
    with running(exported, keys=keys) as client:
        assert_problem(client.post("/admin/models/tiny", json=body), 401)
        shop = {"authorization": "Bearer guess"}
        assert_problem(client.post("/admin/models/tiny", json=body, headers=shop), 403)
        assert client.get("/model", headers=ADMIN).json()["artifact_sha256"] == exported.sha256


def test_a_swapped_model_answers_under_the_old_name(exported: Artifact, other: Artifact, keys: str) -> None:
    with running(exported, keys=keys) as client:
        before = client.post("/embed", content=jpeg(), headers=JPEG | ADMIN).json()
        engine = worker_of(client).models.find(None).engine
        reply = swap(client, other.folder)
        assert reply.status_code == 200, reply.text
        assert reply.json()["replaced"] == before["model"]
        assert reply.json()["model"] == before["model"] | {"artifact": other.sha256[:12]}
        assert not any(lane.is_alive() for lane in engine._lanes), "what is not served takes no thread"
        after = client.post("/embed", content=jpeg(), headers=JPEG | ADMIN).json()
        assert after["model"] == reply.json()["model"]
        entry = client.get("/model", headers=ADMIN).json()
        assert (entry["artifact_sha256"], entry["num_classes"]) == (other.sha256, 4)
        info = [line for line in client.get("/metrics", headers=ADMIN).text.splitlines() if "sovit_model_info{" in line]
        assert len(info) == 1
        assert other.sha256[:12] in info[0]


def corrupt(artifact: Artifact, folder: Path) -> Path:
    shutil.copytree(artifact.folder, folder)
    content = bytearray((folder / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "model.onnx").write_bytes(content)
    return folder


def test_what_cannot_be_served_is_refused_and_the_old_one_goes_on(
    exported: Artifact, other: Artifact, keys: str, tmp_path: Path
) -> None:
    with running(exported, keys=keys) as client:
        before = client.get("/model", headers=ADMIN).json()
        assert_problem(swap(client, corrupt(other, tmp_path / "corrupt")), 422, "tiny stays as it was")
        assert_problem(swap(client, tmp_path / "nowhere"), 422, "tiny stays as it was")
        (tmp_path / "empty").mkdir()
        assert_problem(swap(client, tmp_path / "empty"), 422)
        assert_problem(swap(client, other.folder, name="third"), 400, "no such model")
        for content in (b"", b"[]", b"{}", b'{"artifact": 3}', b'{"artifact": "x", "force": true}'):
            assert_problem(client.post("/admin/models/tiny", content=content, headers=ADMIN), 400)
        big = client.post("/admin/models/tiny", content=b" " * 100_000, headers=ADMIN)
        assert_problem(big, 413)
        assert client.get("/model", headers=ADMIN).json() == before
        assert client.post("/embed", content=jpeg(), headers=JPEG | ADMIN).status_code == 200


def test_who_asked_before_the_swap_is_answered_by_the_old_model(
    exported: Artifact, other: Artifact, keys: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = FakeRuntime(exported.manifest.model), FakeRuntime(other.manifest.model)
    runtimes = {exported.folder: old, other.folder: new}
    monkeypatch.setattr(serving.inference.model, "open_lanes", lambda artifact, *_, **__: [runtimes[artifact.folder]])
    with running(exported, keys=keys) as client:
        old.gate.clear()
        early: Future[Any] = Future()
        thread = threading.Thread(
            target=lambda: early.set_result(client.post("/classify", content=jpeg(), headers=JPEG | ADMIN))
        )
        thread.start()
        until(lambda: worker_of(client).models.find(None).engine.running)
        swapped: Future[Any] = Future()
        swapper = threading.Thread(target=lambda: swapped.set_result(swap(client, other.folder)))
        swapper.start()
        until(lambda: worker_of(client).models.find(None).artifact == other.sha256)
        late = client.post("/classify", content=jpeg(), headers=JPEG | ADMIN).json()
        assert late["model"]["artifact"] == other.sha256[:12]
        assert not swapped.done(), "the old model is still asked"
        old.gate.set()
        thread.join()
        swapper.join()
        assert early.result().json()["model"]["artifact"] == exported.sha256[:12]
        assert swapped.result().status_code == 200


def test_a_real_service_swaps_under_load_without_a_failed_request(
    exported: Artifact, other: Artifact, keys: str, tmp_path: Path
) -> None:
    """Eight clients ask without a pause while the model changes six times, a corrupt one in between."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    broken = corrupt(other, tmp_path / "corrupt")
    command = ["sovit", "serve", f"main={exported.folder}", f"second={other.folder}", "--port", str(port)]
    dims: dict[str, int] = {exported.sha256[:12]: 3, other.sha256[:12]: 4}
    answers: list[tuple[int, str, int]] = []
    over = threading.Event()

    def ask() -> None:
        with httpx.Client(headers=ADMIN, timeout=30) as http:
            while not over.is_set():
                try:
                    reply = http.post(f"{url}/classify?top_k=4", content=jpeg(), headers=JPEG)
                    document = reply.json()
                    results = document["results"][0]["predictions"]
                    answers.append((reply.status_code, document["model"]["artifact"], len(results)))
                except Exception as error:  # a connection that breaks is a failed request too
                    answers.append((0, repr(error), 0))

    with service_process([*command, "--keys", keys], url, tmp_path / "log"):
        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        with httpx.Client(headers=ADMIN, timeout=60) as http:
            for number in range(6):
                wanted = other if number % 2 == 0 else exported
                reply = http.post(f"{url}/admin/models/main", json={"artifact": str(wanted.folder)})
                assert reply.status_code == 200, reply.text
                reply = http.post(f"{url}/admin/models/main", json={"artifact": str(broken)})
                assert reply.status_code == 422
                assert "model.onnx does not have the hash" in reply.json()["detail"]
                seen = len(answers)
                until(lambda seen=seen: len(answers) > seen + 20)
        assert all(thread.is_alive() for thread in threads)
        over.set()
        for thread in threads:
            thread.join()
    assert len(answers) > 120
    assert [answer for answer in answers if answer[0] != 200] == []
    assert all(classes == dims[artifact] for _, artifact, classes in answers), "labels go with the model"
    assert {artifact for _, artifact, _ in answers} == set(dims)


def test_a_model_that_changes_while_a_body_comes_is_looked_at_again(
    exported: Artifact, other: Artifact, keys: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever names a version gets that one or none; whoever wants scores is told when there are none any more."""
    headless = replace(
        other.manifest,
        model=replace(other.manifest.model, num_classes=0),
        labels=(),
        outputs=other.manifest.outputs[:1],
    )
    with running(exported, keys=keys) as client:
        monkeypatch.setattr(serving.inference.model, "read_manifest", lambda _: headless)
        image = b64encode(jpeg()).decode()
        tensor = {"name": "image", "shape": [1], "datatype": "BYTES", "data": [image]}
        body = json.dumps({"inputs": [tensor], "outputs": [{"name": "scores"}]}).encode()
        plain = json.dumps({"inputs": [tensor]}).encode()

        worker = worker_of(client)
        newcomer = worker.load("tiny", str(other.folder))
        before = worker.models.find("tiny")

        def swapping(content: bytes) -> Iterator[bytes]:
            yield content[:50]
            worker.models._models["tiny"] = newcomer
            yield content[50:]

        old = f"/v2/models/tiny/versions/{exported.sha256[:12]}/infer"
        reply = client.post(old, content=swapping(plain), headers=ADMIN)
        before.engine.close()
        assert reply.status_code == 404, reply.text
        assert "in version" in reply.json()["error"]
        reply = client.post("/v2/models/tiny/infer", content=body, headers=ADMIN)
        assert reply.status_code == 400
        assert "no head" in reply.json()["error"]
        reply = client.post("/v2/models/tiny/infer", content=plain, headers=ADMIN)
        assert [output["name"] for output in reply.json()["outputs"]] == ["embedding"]


def test_a_newcomer_that_cannot_run_is_refused_and_its_memory_freed(
    exported: Artifact, other: Artifact, keys: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[bool] = []

    class Broken(FakeRuntime):
        def run(self, *_: object) -> Any:
            raise ZeroDivisionError

        def close(self) -> None:
            closed.append(True)

    with running(exported, keys=keys) as client:
        monkeypatch.setattr(
            serving.inference.model, "open_lanes", lambda *_, **__: [Broken(other.manifest.model) for _ in range(2)]
        )
        detail = assert_problem(swap(client, other.folder), 422, "tiny stays as it was")["detail"]
        assert "ZeroDivisionError" not in detail
        assert closed == [True, True]
        assert client.post("/embed", content=jpeg(), headers=JPEG | ADMIN).status_code == 200
        assert_problem(swap(client, "relative/path"), 400, "whole path")


def test_a_newcomer_that_vanishes_in_mid_load_leaves_nothing_behind(
    exported: Artifact, other: Artifact, keys: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine_start = Engine.start
    with running(exported, keys=keys) as client:
        threads = threading.active_count()

        def vanish(engine: Engine, *words: Any, **named: Any) -> None:
            engine_start(engine, *words, **named)
            shutil.rmtree(folder)
            raise OSError("gone")

        monkeypatch.setattr(Engine, "start", vanish)
        for number in range(3):
            folder = Path(shutil.copytree(other.folder, tmp_path / str(number)))
            assert_problem(swap(client, folder), 422, "tiny stays as it was")
        until(lambda: threading.active_count() == threads)
        assert client.post("/embed", content=jpeg(), headers=JPEG | ADMIN).status_code == 200


def test_a_stop_waits_for_no_newcomer(exported: Artifact, other: Artifact, keys: str) -> None:
    """A model may take minutes to load; the admin is told that it was not swapped."""
    loading, go_on = threading.Event(), threading.Event()
    with running(exported, keys=keys) as client:
        worker = worker_of(client)
        load = worker.load

        def slowly(name: str, reference: str) -> ServedModel:
            loading.set()
            go_on.wait(10)
            late.append(load(name, reference))
            return late[0]

        late: list[ServedModel] = []
        object.__setattr__(worker, "load", slowly)
        replies: list[Any] = []
        thread = threading.Thread(target=lambda: replies.append(swap(client, other.folder)))
        thread.start()
        loading.wait(10)
        assert client.portal is not None
        client.portal.call(worker.models.stop_loading)
        thread.join(10)
        assert_problem(replies[0], 503, "stays as it was")
        go_on.set()
        until(lambda: late and not late[0].engine.ready)
        assert client.get("/model", headers=ADMIN).json()["artifact_sha256"] == exported.sha256


def test_two_artifacts_with_one_name_are_refused(exported: Artifact, tmp_path: Path) -> None:
    from serving.command import _artifacts
    from sovit.errors import ConfigError

    again = Path(shutil.copytree(exported.folder, tmp_path / "again"))
    with pytest.raises(ConfigError, match="two artifacts have the name 'tiny'"):
        _artifacts([str(exported.folder), str(again)])
    assert list(_artifacts([str(exported.folder), f"b={again}"])) == ["tiny", "b"]


def test_a_client_chooses_the_model(exported: Artifact, other: Artifact, tmp_path: Path) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = ["sovit", "serve", str(exported.folder), f"b={other.folder}", "--port", str(port)]
    with service_process(command, url, tmp_path / "log"), Client(url) as first, Client(url, model="b") as second:
        assert first.labels() == ["ant", "bee", "cat"]
        assert second.labels() == ["ant", "bee", "cat", "dog"]
        difference = np.abs(first.embed([jpeg()]) - second.embed([jpeg()])).max()
        assert difference > 1e-3
