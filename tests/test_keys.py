from __future__ import annotations

import json
import logging
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from serving.entry.keys import KeyFile, read_keys
from sovit.errors import ConfigError, Forbidden, Unauthorized


def digest(key: str) -> str:
    return sha256(key.encode()).hexdigest()


SHOP: dict[str, Any] = {"name": "shop", "sha256": digest("open sesame"), "requests_per_second": 5}
OPS: dict[str, Any] = {"name": "ops", "sha256": digest("master"), "admin": True}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "keys.json"
    path.write_text(json.dumps([SHOP, OPS]))
    return path


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "Bearer open sesame"},
        {"authorization": "bearer  open sesame "},
        {"x-api-key": "open sesame"},
        {"authorization": "Basic abc", "x-api-key": "open sesame"},
    ],
)
def test_a_key_is_known_in_either_header(path: Path, headers: dict[str, str]) -> None:
    assert KeyFile(path).find(headers).key.name == "shop"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer"},
        {"authorization": "Bearer close sesame"},
        {"authorization": "open sesame"},
        {"x-api-key": ""},
        {"x-api-key": digest("open sesame")},
        {"authorization": "Bearer wrong", "x-api-key": "open sesame"},
        {"x-api-key": "\udcff é"},
    ],
)
def test_everything_else_is_unauthorized_in_the_same_words(path: Path, headers: dict[str, str]) -> None:
    with pytest.raises(Unauthorized, match="this service needs a key"):
        KeyFile(path).find(headers)


def test_a_key_may_be_any_bytes(tmp_path: Path) -> None:
    key = "clé"
    path = tmp_path / "keys.json"
    path.write_text(json.dumps([SHOP | {"sha256": digest(key)}]))
    # What the server makes of the bytes of a header.
    assert KeyFile(path).find({"x-api-key": key.encode().decode("latin-1")}).key.name == "shop"


def test_admin_is_a_right_of_its_own(path: Path) -> None:
    keys = KeyFile(path)
    keys.require_admin({"x-api-key": "master"})
    with pytest.raises(Forbidden, match="admin"):
        keys.require_admin({"x-api-key": "open sesame"})
    with pytest.raises(Unauthorized):
        keys.require_admin({})


def test_every_known_key_is_compared(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def compare(known: str, given: str) -> bool:
        seen.append(known)
        return known == given

    monkeypatch.setattr("serving.entry.keys.hmac.compare_digest", compare)
    KeyFile(path).find({"x-api-key": "open sesame"})
    assert seen == [SHOP["sha256"], OPS["sha256"]]


def test_a_changed_file_counts_without_a_restart(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = 0.0
    monkeypatch.setattr("serving.entry.keys.time.monotonic", lambda: now)
    keys = KeyFile(path)
    shop = keys.find({"x-api-key": "open sesame"})
    new = {"name": "new", "sha256": digest("new")}
    path.write_text(json.dumps([SHOP, new]))
    now += 2
    assert keys.find({"x-api-key": "new"}).key.name == "new"
    assert keys.find({"x-api-key": "open sesame"}) is shop, "what it has under way stays counted"
    with pytest.raises(Unauthorized):
        keys.find({"x-api-key": "master"})
    for broken in ("[", "[]"):
        path.write_text(broken)
        now += 2
        with caplog.at_level(logging.ERROR):
            assert keys.find({"x-api-key": "new"}).key.name == "new"
        assert "the old keys stay" in caplog.text
    path.unlink()
    now += 2
    assert keys.find({"x-api-key": "new"}).key.name == "new"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "valid list"),
        ("[]", "holds no key"),
        ("nonsense", "cannot be read as JSON"),
        (json.dumps([SHOP | {"key": "plain"}]), "key: unknown field"),
        (json.dumps([SHOP | {"sha256": "abc"}]), "64 lower-case hexadecimal"),
        (json.dumps([SHOP | {"sha256": SHOP["sha256"].upper()}]), "64 lower-case hexadecimal"),
        (json.dumps([SHOP | {"sha256": digest("")}]), "the hash of nothing"),
        (json.dumps([SHOP | {"name": ""}]), "name of a key"),
        (json.dumps([SHOP | {"max_in_flight": -1}]), "limits of the key 'shop'"),
        (json.dumps([SHOP, OPS | {"name": "shop"}]), "gives a name twice"),
        (json.dumps([SHOP, SHOP | {"name": "two"}]), "gives a sha256 twice"),
    ],
)
def test_a_file_that_is_none_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "keys.json").write_text(content)
    with pytest.raises(ConfigError, match=message):
        read_keys(tmp_path / "keys.json")
