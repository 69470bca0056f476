"""Who may ask what: keys, their limits, and the drain."""

from __future__ import annotations

import json
import threading
from hashlib import sha256
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from sovit.artifact import Artifact
from sovit.runtime.fake import FakeRuntime
from tests.conftest import jpeg
from tests.served import (
    JPEG,
    assert_problem,
    running,
    until,
    worker_of,
)


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
