"""The Bento and the container that is made of it: the Dockerfile as text, and its entry point in a confined run."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import httpx
import psutil
import pytest

from sovit.artifact import Artifact
from sovit.client import Client
from sovit.process import free_port
from tests.conftest import jpeg
from tests.deployment import DEPLOY, ROOT, USER, VARIANTS, Bento, documents

HOME: Final = "/home/bentoml"
VENV: Final = "/app/.venv"
DEVELOPMENT: Final = {
    "torch",
    "onnx",
    "pytest",
    "hypothesis",
    "mypy",
    "ruff",
    "uv",
    "playwright",
    "scikit-learn",
    "timm",
}


@pytest.fixture(params=VARIANTS)
def bento(request: pytest.FixtureRequest, bentos: dict[str, Bento]) -> Bento:
    return bentos[request.param]


def test_the_container_is_nobodys_root(bento: Bento) -> None:
    assert bento.arguments("FROM") == ["python:3.11-slim AS base-container"]
    assert {"BENTO_USER=bentoml", f"BENTO_USER_UID={USER}", f"BENTO_USER_GID={USER}"} <= set(bento.arguments("ARG"))
    assert any("useradd" in line and "-u $BENTO_USER_UID" in line for line in bento.arguments("RUN"))
    assert bento.arguments("USER") == ["bentoml"]
    after_user = bento.dockerfile[bento.dockerfile.index(("USER", "bentoml")) + 1 :]
    assert after_user == [("ENTRYPOINT", f'[ "{HOME}/bento/env/docker/entrypoint.sh" ]')]
    assert {"3000", "3001"} == set(bento.arguments("EXPOSE"))
    assert not bento.arguments("ADD")
    assert all(
        argument.startswith("--chown=bentoml:bentoml ./env/") or argument.endswith(" . ./")
        for argument in bento.arguments("COPY")
    )


def test_the_container_knows_its_places_and_no_secret(bento: Bento) -> None:
    environment = bento.environment()
    assert environment["SOVIT_SERVE_CONFIG"] == "/etc/sovit/serve.json"
    assert environment["XDG_CACHE_HOME"] == "/cache"
    assert environment["BENTOML_DO_NOT_TRACK"] == "True"
    assert environment["BENTOML_CONTAINERIZED"] == "true"
    assert environment["PATH"].startswith("/app/.venv/bin:")
    of_variant = {"sovit": "UV_NO_BUILD", "sovit-gpu": "NVIDIA_DRIVER_CAPABILITIES"}[bento.name]
    of_ours = {"SOVIT_SERVE_CONFIG", "XDG_CACHE_HOME", "BENTOML_DO_NOT_TRACK", of_variant}
    of_bentoml = {
        "LANG", "LC_ALL", "PYTHONIOENCODING", "PYTHONUNBUFFERED", "BENTO_PATH", "BENTOML_HOME", "BENTOML_HF_CACHE_DIR",
        "BENTOML_CONTAINERIZED", "VIRTUAL_ENV", "UV_COMPILE_BYTECODE", "UV_NO_PROGRESS", "PATH",
    }  # fmt: skip
    assert environment.keys() == of_ours | of_bentoml


def test_the_container_installs_and_then_loses_its_compilers(bento: Bento) -> None:
    runs = bento.arguments("RUN")
    assert any("uv venv --python 3.11 /app/.venv" in line for line in runs)
    installing = next(
        index for index, line in enumerate(runs) if "pip install -r $BENTO_PATH/env/python/requirements.txt" in line
    )
    script = runs[installing + 1].split(" && ")[1].removeprefix("./")
    assert (bento.folder / script).read_bytes() == (DEPLOY / "without-compilers.sh").read_bytes()
    subprocess.run(["sh", "-n", str(bento.folder / script)], check=True)
    assert "build-essential git" in (bento.folder / script).read_text()


def requirements(path: Path) -> list[tuple[str, str, tuple[str, ...]]]:
    """Name, version and hashes of each requirement of a file."""
    lines = path.read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
    found = []
    for line in lines:
        if line and not line.startswith("#"):
            pin, *hashes = line.split("--hash=sha256:")
            name, _, version = pin.split(";")[0].strip().partition("==")
            found.append((name, version, tuple(digest.strip() for digest in hashes)))
    return found


def test_the_packages_are_locked_and_few(bento: Bento) -> None:
    *packages, last = requirements(bento.folder / "env" / "python" / "requirements.txt")
    assert packages == requirements(ROOT / "requirements" / f"{VARIANTS[bento.name][1]}.txt")
    pins = {name: version for name, version, _ in packages}
    assert all(pins.values())
    assert all(hashes for _, _, hashes in packages)
    # BentoML repeats itself without a hash; uv still checks the one that it has from the line above.
    assert last == ("bentoml", pins["bentoml"], ())
    rewrites = {"onnx"} if bento.name == "sovit-gpu" else set()  # of older graphs, for TensorRT
    assert DEVELOPMENT & pins.keys() == rewrites
    engines = {name for name in pins if name.startswith(("onnxruntime", "openvino", "tensorrt", "nvidia-cu"))}
    if bento.name == "sovit":
        assert engines == {"onnxruntime", "openvino", "openvino-telemetry"}
    else:
        assert {"onnxruntime-gpu", "openvino", "tensorrt-cu13-libs", "nvidia-cublas", "nvidia-cudnn-cu13"} <= engines
        assert "onnxruntime" not in engines


def test_both_variants_have_the_same_service() -> None:
    cpu, gpu = (
        {name: version for name, version, _ in requirements(ROOT / "requirements" / f"{file}.txt")}
        for _, file in VARIANTS.values()
    )
    assert {name: gpu.get(name) for name in cpu if name != "onnxruntime"} == {
        name: version for name, version in cpu.items() if name != "onnxruntime"
    }


def test_the_source_is_the_service_and_nothing_else(bento: Bento) -> None:
    source = bento.folder / "src"
    packed = {str(path.relative_to(source)) for path in source.rglob("*") if path.is_file()}
    wanted = {path for room in ("sovit", "serving") for path in (ROOT / room).rglob("*.py")}
    wanted |= {ROOT / "sovit" / "py.typed", *(ROOT / "serving" / "page").iterdir()}
    assert packed == {"bentofile.yaml", *(str(path.relative_to(ROOT)) for path in wanted)}
    everything = {path for path in bento.folder.rglob("*") if path.is_file()}
    beside = {str(path.relative_to(bento.folder)) for path in everything if not path.is_relative_to(source)}
    script = next(name for name in beside if "/script__" in name)
    assert beside == {
        "README.md", "bento.yaml", "apis/openapi.yaml", "apis/schema.json", "env/docker/Dockerfile", script,
        "env/docker/entrypoint.sh", "env/python/requirements.in", "env/python/requirements.txt",
    }  # fmt: skip
    assert not any(path.is_symlink() for path in everything)
    assert all(path.stat().st_mode & stat.S_IROTH for path in everything)


def test_the_bento_has_one_worker(bento: Bento) -> None:
    (described,) = documents(bento.folder / "bento.yaml")
    (service,) = described["services"]
    assert service["config"]["workers"] == 1
    assert described["image"]["python_version"] == "3.11"
    assert described["spec"] == 2, "an option of the bentofile forces BentoML's old layout"
    assert described["models"] == []


# The container without an engine: its user, its read-only root, its environment and its entry point


@dataclasses.dataclass
class Container:
    process: subprocess.Popen[bytes]
    url: str
    operations: str
    log: Path
    first: int = 0  # of its processes, as the host numbers them

    def signal(self, number: int) -> None:
        os.kill(self.first, number)

    def wait(self) -> int:
        return self.process.wait(60)


def confined(binds: Mapping[str, Path], writable: Mapping[str, Path], environment: Mapping[str, str]) -> list[str]:
    """A bubblewrap command: `binds` can be read, `writable` written, and there is nothing else but the system's /usr.

    Root becomes another user for good; anybody else is seen as one.
    """
    python = Path(sys.base_prefix).resolve()
    readable = {str(python): python, VENV: Path(sys.prefix), **binds}
    command = ["bwrap", "--die-with-parent", "--unshare-pid", "--as-pid-1", "--clearenv", "--ro-bind", "/usr", "/usr"]
    for name in ("/bin", "/sbin", "/lib", "/lib64"):
        command += ["--symlink", f"usr{name}", name] if Path(name).is_symlink() else ["--ro-bind-try", name, name]
    for parent in sorted({str(parent) for place in (*readable, *writable) for parent in Path(place).parents}):
        if not parent.startswith("/usr"):
            command += ["--perms", "0755", "--dir", parent]  # which bubblewrap would make for its own user alone
    for name in ("hosts", "nsswitch.conf", "passwd", "group", "ld.so.cache"):
        command += ["--ro-bind-try", f"/etc/{name}", f"/etc/{name}"]
    command += ["--dev", "/dev", "--proc", "/proc", "--ro-bind", "/sys", "/sys"]
    command += [word for place, path in readable.items() for word in ("--ro-bind", str(path), place)]
    command += [word for place, path in writable.items() for word in ("--bind", str(path), place)]
    command += [word for name, value in environment.items() for word in ("--setenv", name, value)]
    command += ["--remount-ro", "/", "--chdir", f"{HOME}/bento"]
    if os.geteuid() != 0:
        return [*command, "--unshare-user", "--uid", str(USER), "--gid", str(USER)]
    command += ["--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    return [*command, "setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "--no-new-privs"]


@functools.cache
def why_unconfined() -> str:
    """Why this machine cannot run a container in this way, "" where it can."""
    if shutil.which("bwrap") is None:
        return "bubblewrap is not installed"
    command = [*confined({f"{HOME}/bento": ROOT / "docs"}, {}, {}), "true"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else f"bubblewrap cannot make a container here: {done.stderr.strip()}"


def entry_point(
    bento: Bento, artifact: Artifact, folder: Path, writable: Sequence[str], **environment: str
) -> list[str]:
    """The container's entry point, confined. `folder` of the host has its settings, and what it writes."""
    if reason := why_unconfined():
        pytest.skip(reason)
    (folder / "absent").mkdir()
    (folder / "absent" / "__init__.py").write_text("raise ImportError('the container has no such package')\n")
    # The script of this environment knows its interpreter by its place here.
    script = (Path(sys.prefix) / "bin" / "bentoml").read_text(encoding="utf-8")
    (folder / "bentoml").write_text(script.replace(sys.prefix, VENV), encoding="utf-8")
    (folder / "bentoml").chmod(0o755)
    packages = f"{VENV}/{Path(sysconfig.get_path('purelib')).relative_to(sys.prefix)}"
    binds = {f"{HOME}/bento": bento.folder, "/etc/sovit": folder / "etc", "/models/tiny": artifact.folder}
    binds |= {f"{packages}/{name}": folder / "absent" for name in ("torch", "onnx", "pytest")}
    binds[f"{VENV}/bin/bentoml"] = folder / "bentoml"
    scratch = {place: folder / place[1:] for place in writable}
    for path in (folder / "etc", *scratch.values()):
        path.mkdir(exist_ok=True)
    for path in scratch.values():
        path.chmod(0o777)
    bento.folder.chmod(0o755)  # COPY gives it to the user; here it is another's
    command = confined(binds, scratch, {**bento.environment(), "HOME": HOME, **environment})
    return [*command, *json.loads(bento.arguments("ENTRYPOINT")[0])]


@contextmanager
def container(
    bento: Bento, artifact: Artifact, folder: Path, *writable: str, **settings: object
) -> Iterator[Container]:
    """Serve with the settings until the block ends."""
    port, operations_port = free_port(), free_port()
    (folder / "etc").mkdir()
    config = {"artifacts": {"tiny": "/models/tiny"}, "operations_port": operations_port, **settings}
    (folder / "etc" / "serve.json").write_text(json.dumps(config))
    environment = {"BENTOML_HOME": "/tmp/bentoml", "BENTOML_HOST": "127.0.0.1", "BENTOML_PORT": str(port)}
    command = entry_point(bento, artifact, folder, writable, **environment)
    with (folder / "log").open("wb") as log, (folder / "info").open("wb") as info:
        process = subprocess.Popen(
            [command[0], "--info-fd", str(info.fileno()), *command[1:]],
            stdout=log, stderr=subprocess.STDOUT, pass_fds=[info.fileno()],
        )  # fmt: skip
    found = Container(process, f"http://127.0.0.1:{port}", f"http://127.0.0.1:{operations_port}", folder / "log")
    try:
        deadline = time.monotonic() + 60
        while not is_ready(found.operations):
            assert process.poll() is None, found.log.read_text()
            assert time.monotonic() < deadline, found.log.read_text()
            time.sleep(0.05)
        found.first = json.loads((folder / "info").read_text())["child-pid"]
        yield found
    finally:
        process.kill()
        process.wait()


def is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def test_the_bento_serves_as_another_user_with_a_read_only_root(
    bentos: dict[str, Bento], exported: Artifact, tmp_path: Path
) -> None:
    # OpenVINO would keep what it compiles in the cache, which cannot be written here.
    with container(bentos["sovit"], exported, tmp_path, "/tmp", runtime="openvino") as served:
        status = dict(
            line.split(":\t", 1)
            for line in Path(f"/proc/{served.first}/status").read_text().splitlines()
            if "\t" in line
        )
        assert status["NSpid"].split()[1:] == ["1"]
        assert int(status["CapEff"], 16) == 0
        assert status["NoNewPrivs"] == "1"
        if os.geteuid() == 0:
            assert set(status["Uid"].split()) == {str(USER)}
        mounts = [line.split()[4:6] for line in Path(f"/proc/{served.first}/mountinfo").read_text().splitlines()]
        can_be_written = {place for place, options in mounts if "rw" in options.split(",")}
        assert "/" in {place for place, _ in mounts} - can_be_written
        assert {place for place in can_be_written if not place.startswith(("/dev", "/proc"))} == {"/tmp"}
        with Client(served.url) as client:
            assert client.classify([jpeg()])[0].predictions
        assert httpx.get(f"{served.url}/").status_code == 200, "the page comes with the Bento"
        assert "sovit_requests_total" in httpx.get(f"{served.operations}/metrics").text
        served.signal(signal.SIGTERM)
        assert served.wait() == 0, served.log.read_text()
    assert all(path.name.startswith("bentoml") for path in (tmp_path / "tmp").iterdir())


def test_without_its_worker_a_container_ends_and_its_cache_stays(
    bentos: dict[str, Bento], exported: Artifact, tmp_path: Path
) -> None:
    with container(bentos["sovit"], exported, tmp_path, "/tmp", "/cache", runtime="openvino") as served:
        (worker,) = psutil.Process(served.first).children()
        worker.kill()
        # Whatever runs it must start it again: a supervisor that went on alone would answer nobody.
        assert served.wait() != 0
    assert list((tmp_path / "cache" / "sovit" / "openvino").rglob("*.blob"))


def test_a_container_runs_the_commands_too(bentos: dict[str, Bento], exported: Artifact, tmp_path: Path) -> None:
    # As the GPU's manifest runs `sovit compile`, and as the guide says to run `sovit tune`.
    command = entry_point(bentos["sovit"], exported, tmp_path, ["/tmp", "/cache"])
    at = command.index("--chdir") + 1
    command[at] = "/home/bentoml/bento/src"
    words = ["python", "-m", "sovit", "tune", "/models/tiny", "--max-batch", "1", "--rounds", "1"]
    done = subprocess.run([*command, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "cache" / "sovit" / "profiles").iterdir())) == 1
    words[3:] = ["compile", "/models/tiny"]
    done = subprocess.run([*command, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "TensorRT is not installed" in done.stderr
