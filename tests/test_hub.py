"""`hf:OWNER/NAME`: the hub's own client against a stand-in that serves local folders over the hub's HTTP routes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import sovit
from sovit.checkpoint import read_config
from tests.golden_models import GOLDEN

COMMIT = "c0ffee" + "0" * 34
TIMM = "timm/vit_so150m_patch16_reg4_gap_256"
SIGLIP = "google/siglip-tiny"


class Hub(ThreadingHTTPServer):
    """Repositories by name, each a folder; `gone` ones answer as private or missing ones do; `asked` logs requests."""

    def __init__(self, repositories: dict[str, Path]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories = repositories
        self.asked: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self) -> None:
        path = self.path.partition("?")[0].strip("/")
        self.server.asked.append(path)
        api = path.removeprefix("api/models/")
        repository = next((name for name in self.server.repositories if f"{api}/".startswith(f"{name}/")), None)
        if repository is None:
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            return
        folder, rest = self.server.repositories[repository], api.removeprefix(repository).strip("/")
        kind, _, where = rest.partition("/")
        revision, _, file = where.partition("/")
        if revision not in ("main", "v1", COMMIT, ""):
            self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        elif path.startswith("api/") and kind == "tree":
            files = [
                {"type": "file", "path": entry.name, "size": entry.stat().st_size, "oid": _sha1(entry)}
                for entry in sorted(folder.iterdir())
            ]
            self._send(200, json.dumps(files).encode())
        elif path.startswith("api/"):
            siblings = [{"rfilename": entry.name} for entry in sorted(folder.iterdir())]
            data = {"id": repository, "sha": COMMIT, "private": False, "siblings": siblings}
            self._send(200, json.dumps(data).encode())
        elif kind == "resolve" and (folder / file).is_file():
            if self.command == "GET" and repository == "someone/breaking" and file.endswith(".safetensors"):
                self._cut((folder / file).read_bytes())
                return
            headers = {"ETag": f'"{_sha1(folder / file)}"', "X-Repo-Commit": COMMIT}
            self._send(200, (folder / file).read_bytes(), headers)
        else:
            self._send(404, b"{}", {"X-Error-Code": "EntryNotFound"})

    def _cut(self, content: bytes) -> None:
        """Promise all of it, send half and hang up."""
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2])
        self.wfile.flush()
        self.close_connection = True

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {
            "Content-Length": str(len(body)),
            "Content-Type": "application/json",
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _sha1(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    siglip = Path(shutil.copytree(GOLDEN / "transformers" / "siglip", tmp_path / "siglip"))
    (siglip / "tokenizer.json").write_text("{}")
    for name in ("pytorch_model.bin", "flax_model.msgpack", "open_clip_model.safetensors", "README.md"):
        (siglip / name).write_bytes(b"must not be fetched")
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "config.json").write_text((siglip / "config.json").read_text())
    (pickled / "pytorch_model.bin").write_bytes(b"must not be fetched")
    server = Hub({TIMM: GOLDEN / TIMM, SIGLIP: siglip, "someone/pickled": pickled, "someone/breaking": GOLDEN / TIMM})
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def convert(hub: Hub, tmp_path: Path, source: str, **env: str) -> subprocess.CompletedProcess[str]:
    """The command as a process of its own: the client reads its settings when it is imported."""
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), **env}
    return subprocess.run(
        [sys.executable, "-m", "sovit", "convert", source, "--to", str(tmp_path / "out")],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_hub_id_gives_the_same_checkpoint_as_its_folder(hub: Hub, tmp_path: Path) -> None:
    done = convert(hub, tmp_path, f"hf:{TIMM}")
    assert done.returncode == 0, done.stderr
    sovit.import_checkpoint(GOLDEN / TIMM, tmp_path / "local")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (
        tmp_path / "local" / "model.safetensors"
    ).read_bytes()
    provenance = read_config(tmp_path / "out").provenance
    assert (provenance["source"], provenance["revision"]) == (f"hf:{TIMM}", COMMIT)


def test_only_what_is_needed_is_fetched_and_never_a_pickle(hub: Hub, tmp_path: Path) -> None:
    done = convert(hub, tmp_path, f"hf:{SIGLIP}@v1")
    assert done.returncode == 0, done.stderr
    fetched = {path.rpartition("/")[2] for path in hub.asked if "/resolve/" in path}
    assert fetched == {"config.json", "preprocessor_config.json", "model.safetensors", "tokenizer.json"}
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "{}"
    assert "%" in done.stderr  # the client's progress bars


def test_the_cache_serves_without_the_hub(hub: Hub, tmp_path: Path) -> None:
    assert convert(hub, tmp_path, f"hf:{TIMM}").returncode == 0
    hub.asked.clear()
    done = convert(hub, tmp_path, f"hf:{TIMM}", HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    assert not hub.asked


@pytest.mark.parametrize(
    ("source", "code", "message", "env"),
    [
        ("hf:someone/nothing", 2, "does not exist on the hub, or is private", {}),
        (f"hf:{TIMM}@v9", 2, "the hub has no revision 'v9' of it", {}),
        ("hf:someone/pickled", 2, "has no model.safetensors; sovit takes no pickled weights", {}),
        (f"hf:{TIMM}", 1, "the hub cannot be reached", {"HF_HUB_OFFLINE": "1"}),
        (f"hf:{TIMM}", 1, "the hub cannot be reached", {"HF_ENDPOINT": "http://127.0.0.1:9"}),
        ("hf:someone/breaking", 1, "could not be fetched from the hub", {}),
    ],
)
def test_what_cannot_be_fetched_is_one_sentence(
    source: str, code: int, message: str, env: dict[str, str], hub: Hub, tmp_path: Path
) -> None:
    done = convert(hub, tmp_path, source, **env)
    last = done.stderr.strip().splitlines()[-1]
    assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr
    assert last.startswith("sovit: ")
    assert message in last
    assert not (tmp_path / "out").exists()
