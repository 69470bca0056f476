"""The settings of a client: which make no sense, and what of them a request says."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

import sovit
from sovit.client import Client
from sovit.client.settings import Settings
from sovit.errors import ConfigError
from tests.standing_in import CLIENTS, KEY, Script, standing_in


@pytest.fixture(params=CLIENTS)
def connect(request: pytest.FixtureRequest) -> Any:
    """Either client."""
    return request.param


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


def test_certificates_that_are_none_are_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("nothing")
    for name in ("ca.pem", "nowhere.pem"):
        with pytest.raises(ConfigError, match="holds no certificates that can be read"):
            Client("https://127.0.0.1", ca_file=str(tmp_path / name))


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


def test_a_key_is_not_shown() -> None:
    assert "sesame" not in repr(Settings(url="http://x", api_key=KEY))
