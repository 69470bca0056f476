"""What runs the service in production: the Bento's container, Kubernetes, compose, alerts, the board, the guide."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, NamedTuple

import httpx
import kubernetes_validate  # type: ignore[import-untyped]
import promql_parser
import psutil
import pytest
import yaml  # type: ignore[import-untyped]
from prometheus_client.parser import text_string_to_metric_families

import serving.app
import sovit
from serving.config import ServeConfig
from sovit.artifact import Artifact
from sovit.cli import build_parser
from sovit.client import Client
from sovit.decode import DecodeOptions
from sovit.jsonio import from_dict
from sovit.process import free_port
from tests.conftest import jpeg
from tests.served import JPEG, running, truncated_jpeg

ROOT: Final = Path(__file__).parents[1]
DEPLOY: Final = ROOT / "deploy"
GUIDE: Final = (ROOT / "docs" / "operating.md").read_text(encoding="utf-8")
VARIANTS: Final = {"sovit": ("bentofile.yaml", "service"), "sovit-gpu": ("deploy/bentofile.gpu.yaml", "gpu")}
USER: Final = 1034
HOME: Final = "/home/bentoml"
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
OLDEST_KUBERNETES: Final = "1.29"


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


# The Bento, and the container that is made of it


class Bento(NamedTuple):
    name: str
    folder: Path
    dockerfile: list[tuple[str, str]]  # instruction, argument

    def arguments(self, instruction: str) -> list[str]:
        return [argument for found, argument in self.dockerfile if found == instruction]

    def environment(self) -> dict[str, str]:
        """What ENV leaves. Builders do not agree on a name that was an ENV and becomes an ARG: there must be none."""
        known: dict[str, str] = {}
        environment: dict[str, str] = {"PATH": "/usr/local/bin:/usr/bin:/bin"}
        for instruction, argument in self.dockerfile:
            name, _, value = argument.partition("=")
            if instruction == "ARG":
                assert name not in environment
                known[name] = value.strip("'")
            if instruction == "ENV":
                for used in re.findall(r"\$\{?(\w+)\}?", value):
                    value = re.sub(rf"\${{?{used}\b}}?", (known | environment)[used], value)
                environment[name] = value
        return environment


def read_dockerfile(text: str) -> list[tuple[str, str]]:
    lines = "\n".join(line for line in text.splitlines() if not line.startswith("#")).replace("\\\n", " ").splitlines()
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1].strip()) for line in lines if line.strip()]


@pytest.fixture(scope="module")
def bentos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bento]:
    home = tmp_path_factory.mktemp("bentoml")
    environment = {**os.environ, "BENTOML_HOME": str(home), "BENTOML_DO_NOT_TRACK": "True"}
    found = {}
    for name, (file, _) in VARIANTS.items():
        command = [sys.executable, "-m", "bentoml", "build", "-f", file, "--output", "tag"]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        folder = next(path for path in (home / "bentos" / name).iterdir() if path.is_dir())
        text = (folder / "env" / "docker" / "Dockerfile").read_text(encoding="utf-8")
        found[name] = Bento(name, folder, read_dockerfile(text))
    return found


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
    assert not DEVELOPMENT & pins.keys()
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
    readable = {str(python): python, sys.prefix: Path(sys.prefix), "/app/.venv": Path(sys.prefix), **binds}
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
    hidden = [Path(sysconfig.get_path("purelib")) / name for name in ("torch", "onnx", "pytest")]
    binds = {f"{HOME}/bento": bento.folder, "/etc/sovit": folder / "etc", "/models/tiny": artifact.folder}
    binds |= {str(package): folder / "absent" for package in hidden}
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


# Kubernetes


@pytest.fixture(scope="module")
def manifest() -> dict[str, dict[str, Any]]:
    return {document["kind"]: document for document in documents(DEPLOY / "kubernetes" / "sovit.yaml")}


def gpu_manifest() -> dict[str, dict[str, Any]]:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl, which applies the overlay, is not installed")
    command = ["kubectl", "kustomize", str(DEPLOY / "kubernetes-gpu")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return {document["kind"]: document for document in yaml.safe_load_all(done.stdout)}


@pytest.fixture(params=["cpu", "gpu"])
def either_manifest(request: pytest.FixtureRequest, manifest: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return manifest if request.param == "cpu" else gpu_manifest()


def settings_of(manifest: dict[str, dict[str, Any]]) -> ServeConfig:
    return from_dict(ServeConfig, json.loads(manifest["ConfigMap"]["data"]["serve.json"]), "serve.json")


def test_kubernetes_takes_every_document(either_manifest: dict[str, dict[str, Any]]) -> None:
    assert either_manifest.keys() == {
        "ConfigMap", "Deployment", "Service", "HorizontalPodAutoscaler", "PodDisruptionBudget", "NetworkPolicy",
    }  # fmt: skip
    for document in either_manifest.values():
        for version in (OLDEST_KUBERNETES, kubernetes_validate.latest_version()):
            kubernetes_validate.validate(document, version, strict=True)


def test_a_pod_may_do_nothing_but_serve(either_manifest: dict[str, dict[str, Any]]) -> None:
    pod = either_manifest["Deployment"]["spec"]["template"]["spec"]
    assert pod["securityContext"] == {
        "runAsNonRoot": True, "runAsUser": USER, "runAsGroup": USER, "fsGroup": USER,
        "seccompProfile": {"type": "RuntimeDefault"},
    }  # fmt: skip
    assert pod["automountServiceAccountToken"] is False
    writable = {volume["name"] for volume in pod["volumes"] if "emptyDir" in volume}
    for made in (*pod["containers"], *pod.get("initContainers", [])):
        assert made["securityContext"] == {
            "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
        }  # fmt: skip
        assert all(mount.get("readOnly") or mount["name"] in writable for mount in made["volumeMounts"])
        assert made["image"].split(":")[1] == sovit.__version__
    (made,) = pod["containers"]
    environment = {entry["name"]: entry["value"] for entry in made["env"]}
    places = {mount["mountPath"] for mount in made["volumeMounts"] if mount["name"] in writable}
    assert places == {"/tmp", "/cache"}
    assert Path(environment["BENTOML_HOME"]).parts[1] == "tmp"


def test_the_settings_fit_the_pod(either_manifest: dict[str, dict[str, Any]], bentos: dict[str, Bento]) -> None:
    pod = either_manifest["Deployment"]["spec"]["template"]["spec"]
    (made,) = pod["containers"]
    config = settings_of(either_manifest)
    ports = {port["name"]: port["containerPort"] for port in made["ports"]}
    assert ports == {"http": 3000, "operations": config.operations_port}
    assert config.operations_host == "0.0.0.0"
    places = {mount["mountPath"] for mount in made["volumeMounts"]}
    assert all(str(Path(folder).parent) in places for folder in config.artifacts.values())
    assert {
        str(Path(config.keys).parent),
        str(Path(bentos["sovit"].environment()["SOVIT_SERVE_CONFIG"]).parent),
    } <= places
    limits, requests = made["resources"]["limits"], made["resources"]["requests"]
    assert {name: limits[name] for name in requests} == requests, "as much is asked for as may be taken"
    assert 0 < config.decode_threads <= int(limits["cpu"])
    if "nvidia.com/gpu" in limits:
        assert limits["nvidia.com/gpu"] == "1"
        assert config.runtime == "tensorrt"
        (compiling,) = pod["initContainers"]
        assert compiling["args"][:4] == ["python", "-m", "sovit", "compile"]
        assert compiling["args"][4:] == list(config.artifacts.values())
        assert made["image"].startswith(compiling["image"].split(":")[0])
    else:
        assert 0 < config.lanes * config.threads <= int(limits["cpu"]), "no more threads than cores"


def test_probes_and_times_let_a_pod_finish(either_manifest: dict[str, dict[str, Any]]) -> None:
    pod = either_manifest["Deployment"]["spec"]["template"]["spec"]
    (made,) = pod["containers"]
    asked = {name: made[name]["httpGet"] for name in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert asked == {
        "startupProbe": {"path": "/readyz", "port": "operations"},
        "livenessProbe": {"path": "/livez", "port": "operations"},
        "readinessProbe": {"path": "/readyz", "port": "operations"},
    }
    assert made["startupProbe"]["periodSeconds"] * made["startupProbe"]["failureThreshold"] >= 600
    command, seconds = made["lifecycle"]["preStop"]["exec"]["command"]
    assert command == "sleep"
    longest = settings_of(either_manifest).timeout_seconds
    assert pod["terminationGracePeriodSeconds"] >= int(seconds) + longest + 15


def test_pods_are_found_scaled_and_fenced(either_manifest: dict[str, dict[str, Any]]) -> None:
    deployment = either_manifest["Deployment"]
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert "replicas" not in deployment["spec"]
    selectors = [
        deployment["spec"]["selector"]["matchLabels"],
        either_manifest["Service"]["spec"]["selector"],
        either_manifest["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        either_manifest["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
    ]
    assert all(selector.items() <= labels.items() for selector in selectors)
    (port,) = either_manifest["Service"]["spec"]["ports"]
    assert port["targetPort"] == "http", "nobody gets to the operations port by the service"
    scaler = either_manifest["HorizontalPodAutoscaler"]["spec"]
    assert scaler["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "Deployment", "name": "sovit"}
    assert scaler["minReplicas"] >= 2
    (metric,) = scaler["metrics"]
    assert metric["type"] == ("Pods" if "tolerations" in deployment["spec"]["template"]["spec"] else "Resource")
    anybody, monitoring = either_manifest["NetworkPolicy"]["spec"]["ingress"]
    assert anybody == {"ports": [{"port": "http", "protocol": "TCP"}]}
    (source,) = monitoring["from"]
    assert source["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "monitoring"}
    assert monitoring["ports"] == [{"port": "operations", "protocol": "TCP"}]
    assert either_manifest["NetworkPolicy"]["spec"]["egress"] == []


# Compose

TOP: Final = {"name": str, "services": dict, "networks": dict, "volumes": dict}
SERVICE: Final = {
    "image": str, "user": str, "read_only": bool, "cap_drop": list, "security_opt": list, "tmpfs": list,
    "environment": dict, "volumes": list, "ports": list, "networks": list, "deploy": dict, "healthcheck": dict,
    "stop_grace_period": str, "restart": str, "command": list, "depends_on": list,
}  # fmt: skip
DURATION: Final = re.compile(r"(\d+)s")


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    (document,) = documents(DEPLOY / "compose.yaml")
    return dict(document)


def test_compose_uses_only_what_compose_has(compose: dict[str, Any]) -> None:
    assert {name: type(value) for name, value in compose.items()} == TOP
    volumes = set(compose["volumes"])
    for name, service in compose["services"].items():
        for field, value in service.items():
            assert isinstance(value, SERVICE[field]), f"{name}.{field}"
            assert not isinstance(value, list) or all(isinstance(item, str) for item in value), f"{name}.{field}"
        assert all(isinstance(value, str) for value in service.get("environment", {}).values())
        assert set(service["networks"]) <= compose["networks"].keys()
        assert set(service.get("depends_on", [])) <= compose["services"].keys()
        for volume in service["volumes"]:
            source, target, *mode = re.sub(r"\$\{[^}]*\}", "/variable", volume).split(":")
            assert target.startswith("/")
            if source.startswith("./"):
                assert (DEPLOY / source).exists()
                assert mode == ["ro"]
            else:
                assert source in volumes or (source == "/variable" and mode == ["ro"])
        assert all(re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port) for port in service["ports"])
    limits = compose["services"]["sovit"]["deploy"]["resources"]["limits"]
    assert limits.keys() == {"cpus", "memory", "pids"}
    health = compose["services"]["sovit"]["healthcheck"]
    assert health.keys() == {"test", "interval", "timeout", "retries", "start_period", "start_interval"}


def test_everything_in_compose_is_pinned_and_confined(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        assert re.fullmatch(r"[a-z]+(/[a-z]+)?:v?\d+\.\d+\.\d+", service["image"])
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
    ours = compose["services"]["sovit"]
    assert ours["image"] == f"sovit:{sovit.__version__}"
    assert ours["user"] == f"{USER}:{USER}"
    assert [mount.split(":")[0] for mount in ours["tmpfs"]] == ["/tmp", "/cache"]
    assert Path(ours["environment"]["BENTOML_HOME"]).parts[1] == "tmp"
    assert compose["networks"]["operations"] == {"internal": True}
    # By one network alone, or Prometheus would find every container twice.
    assert set(ours["networks"]) & set(compose["services"]["prometheus"]["networks"]) == {"operations"}


def test_the_settings_fit_compose(compose: dict[str, Any]) -> None:
    config = from_dict(ServeConfig, json.loads((DEPLOY / "serve.json").read_text()), "serve.json")
    ours = compose["services"]["sovit"]
    assert [volume.split(":")[-2] for volume in ours["volumes"]][1:] == list(config.artifacts.values())
    limits = ours["deploy"]["resources"]["limits"]
    assert 0 < config.threads <= int(limits["cpus"])
    assert 0 < config.decode_threads <= int(limits["cpus"])
    kind, *command = ours["healthcheck"]["test"]
    assert kind == "CMD"
    assert command[:2] == ["python", "-c"]
    assert f"http://127.0.0.1:{config.operations_port}/readyz" in compile(command[2], "healthcheck", "exec").co_consts
    stop = DURATION.fullmatch(ours["stop_grace_period"])
    assert stop is not None
    assert int(stop[1]) >= config.timeout_seconds + 15
    (scrape,) = documents(DEPLOY / "prometheus" / "prometheus.yml")[0]["scrape_configs"]
    assert scrape["dns_sd_configs"][0]["port"] == config.operations_port


# Prometheus and Grafana


def promtool(*words: str) -> str:
    if shutil.which("promtool") is None:
        pytest.skip("promtool, which comes with Prometheus, is not installed")
    done = subprocess.run(["promtool", *words], cwd=DEPLOY / "prometheus", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def rules() -> list[dict[str, Any]]:
    (document,) = documents(DEPLOY / "prometheus" / "alerts.yml")
    return [rule for group in document["groups"] for rule in group["rules"]]


def board() -> dict[str, Any]:
    return dict(json.loads((DEPLOY / "grafana" / "sovit.json").read_text(encoding="utf-8")))


def test_prometheus_takes_its_files() -> None:
    assert "4 rules found" in promtool("check", "config", "prometheus.yml")
    assert "4 rules found" in promtool("check", "rules", "alerts.yml")


def test_the_alerts_fire_when_they_should_and_only_then() -> None:
    promtool("test", "rules", "alerts_test.yml")
    (document,) = documents(DEPLOY / "prometheus" / "alerts_test.yml")
    cases = [case for test in document["tests"] for case in test["alert_rule_test"]]
    for fires in (True, False):
        assert {case["alertname"] for case in cases if bool(case["exp_alerts"]) is fires} == {
            rule["alert"] for rule in rules()
        }


def test_every_alert_says_what_to_do() -> None:
    assert len(rules()) == 4
    chapter = GUIDE.split("## Runbook")[1]
    anchors = {f"docs/operating.md#{title.lower()}" for title in re.findall(r"^### (\w+)$", chapter, re.MULTILINE)}
    for rule in rules():
        assert rule.keys() == {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert rule["annotations"].keys() == {"summary", "description", "runbook"}
        assert rule["annotations"]["runbook"] == f"docs/operating.md#{rule['alert'].lower()}"
    assert {rule["annotations"]["runbook"] for rule in rules()} == anchors


def selectors(expression: object) -> Iterator[promql_parser.VectorSelector]:
    """Every selector in a parsed expression."""
    if isinstance(expression, promql_parser.VectorSelector):
        yield expression
    elif isinstance(expression, promql_parser.MatrixSelector):
        yield expression.vector_selector
    elif isinstance(expression, promql_parser.BinaryExpr):
        yield from selectors(expression.lhs)
        yield from selectors(expression.rhs)
    elif isinstance(expression, promql_parser.Call):
        for argument in expression.args:
            yield from selectors(argument)
    elif isinstance(expression, (promql_parser.AggregateExpr, promql_parser.ParenExpr, promql_parser.UnaryExpr)):
        yield from selectors(expression.expr)
    else:
        assert isinstance(expression, (promql_parser.NumberLiteral, promql_parser.StringLiteral))


def groups(expression: object) -> Iterator[str]:
    """Every label that a parsed expression groups by."""
    if isinstance(expression, promql_parser.AggregateExpr):
        yield from expression.modifier.labels if expression.modifier else ()
        yield from groups(expression.expr)
    elif isinstance(expression, promql_parser.BinaryExpr):
        yield from groups(expression.lhs)
        yield from groups(expression.rhs)
    elif isinstance(expression, promql_parser.Call):
        for argument in expression.args:
            yield from groups(argument)
    elif isinstance(expression, promql_parser.ParenExpr):
        yield from groups(expression.expr)


@pytest.fixture(scope="module")
def exposed(exported: Artifact, tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """The labels by sample that a service exposes which has been asked for something of every kind."""
    keys = {name: sha256(name.encode()).hexdigest() for name in ("shop", "ops")}
    file = tmp_path_factory.mktemp("keys") / "keys.json"
    limits: dict[str, dict[str, object]] = {"shop": {"requests_per_second": 0.001}, "ops": {"admin": True}}
    file.write_text(json.dumps([{"name": name, "sha256": digest} | limits[name] for name, digest in keys.items()]))
    with running(exported, keys=str(file)) as client:
        for key in ("ops", "shop", "shop"):  # the last of them comes too soon
            for path, content in (("/classify", jpeg()), ("/embed", truncated_jpeg())):
                client.post(path, content=content, headers={**JPEG, "authorization": f"Bearer {key}"})
        text = client.get("/metrics", headers={"authorization": "Bearer ops"}).text
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


OF_PROMETHEUS: Final = {"job", "instance"}


def check_query(query: str, exposed: dict[str, set[str]]) -> None:
    for variable, value in (("$__rate_interval", "5m"), ("$job", "sovit"), ("$instance", ".+")):
        query = query.replace(variable, value)
    parsed = promql_parser.parse(query)
    used = list(selectors(parsed))
    assert used, query
    labels: set[str] = set()
    for selector in used:
        assert selector.name == "up" or selector.name in exposed, f"{selector.name} in {query}"
        labels = OF_PROMETHEUS | exposed.get(selector.name or "", set())
        matched = {matcher.name for matcher in selector.matchers.matchers}
        assert "job" in matched, query
        assert matched <= labels, f"{matched - labels} in {query}"
    assert set(groups(parsed)) <= labels, query


def test_the_alerts_ask_for_what_the_service_counts(exposed: dict[str, set[str]]) -> None:
    for rule in rules():
        check_query(rule["expr"], exposed)


def test_the_alerts_know_what_is_asked_for_from_what_is_told() -> None:
    (routes,) = {match for rule in rules() for match in re.findall(r'route=~"([^"]+)"', rule["expr"])}
    asked = {path for path, methods in serving.app.app.paths.items() if "POST" in methods}
    assert {path for path in serving.app.app.paths if re.fullmatch(routes, path)} == asked
    assert routes in json.dumps(board()).replace("\\", ""), "the board means the same"


def test_the_board_asks_for_what_the_service_counts(exposed: dict[str, set[str]]) -> None:
    panels = [panel for panel in board()["panels"] if panel["type"] != "row"]
    asked = [target["expr"] for panel in panels for target in panel["targets"]]
    for query in asked:
        check_query(query, exposed)
        assert 'instance=~"$instance"' in query, "several instances"
    # The other way round: everything that the service counts is on the board.
    counted = {re.sub("_(bucket|sum|count|created)$", "", name) for name in exposed if name.startswith("sovit_")}
    assert all(any(name in query for query in asked) for name in counted)


def test_the_board_is_whole() -> None:
    found = board()
    variables = {variable["name"]: variable["type"] for variable in found["templating"]["list"]}
    assert variables == {"datasource": "datasource", "job": "query", "instance": "query"}
    assert len({panel["id"] for panel in found["panels"]}) == len(found["panels"])
    taken: set[tuple[int, int]] = set()
    for panel in found["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
        if panel["type"] == "row":
            continue
        assert panel["title"]
        assert panel["description"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["datasource"]["uid"] == "${datasource}"
        assert all(target["datasource"]["uid"] == "${datasource}" for target in panel["targets"])
    titles = [panel["title"] for panel in found["panels"] if panel["type"] == "row"]
    assert titles == [
        "Now",
        "Traffic",
        "Latency",
        "Stages",
        "Queue and batches",
        "Refusals and images",
        "Process",
        "Models",
    ]


def test_grafana_finds_its_source_and_its_board(compose: dict[str, Any]) -> None:
    provisioning = DEPLOY / "grafana" / "provisioning"
    (source,) = documents(provisioning / "datasources" / "prometheus.yml")[0]["datasources"]
    assert source["url"] == "http://prometheus:9090"
    (provider,) = documents(provisioning / "dashboards" / "sovit.yml")[0]["providers"]
    mounts = {volume.split(":")[1]: volume.split(":")[0] for volume in compose["services"]["grafana"]["volumes"]}
    assert mounts["/etc/grafana/provisioning"] == "./grafana/provisioning"
    assert mounts[f"{provider['options']['path']}/sovit.json"] == "./grafana/sovit.json"


# The guide


def rows(title: str) -> list[list[str]]:
    """The cells of the first table of a chapter, without its head."""
    chapter = GUIDE.split(f"\n## {title}\n")[1].split("\n## ")[0]
    table = [line for line in chapter.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table]


def serve_flags() -> set[str]:
    (commands,) = (action for action in build_parser()._actions if isinstance(action, argparse._SubParsersAction))
    parser = commands.choices["serve"]
    return {option for action in parser._actions for option in action.option_strings} - {"-h", "--help"}


def test_the_guide_names_every_setting_and_its_default() -> None:
    wanted: dict[str, object] = {}
    for prefix, kind in (("", ServeConfig), ("decode.", DecodeOptions)):
        for setting in dataclasses.fields(kind):
            if setting.name != "decode":
                wanted[prefix + setting.name] = setting.default
    found = {row[0].strip("`"): row for row in rows("Settings")}
    assert found.keys() == wanted.keys()
    for name, default in wanted.items():
        _, flags, told, meaning, when = found[name]
        assert told == ("" if default is dataclasses.MISSING else f"`{json.dumps(default)}`"), name
        assert meaning
        assert when
        own = name.removeprefix("decode.").replace("_", "-")
        assert (
            flags == "`ARTIFACT`, `NAME=ARTIFACT`" if name == "artifacts" else flags in (f"`--{own}`", f"`--no-{own}`")
        )
    named = {row[1].strip("`") for row in rows("Settings")[1:]}
    assert named | {"--host", "--port"} == serve_flags()


def test_the_guide_names_every_metric(exposed: dict[str, set[str]]) -> None:
    found: dict[str, set[str]] = {}
    for names, labels, _ in rows("Metrics"):
        for name in re.findall(r"`([^`]+)`", names):
            found[name] = set(re.findall(r"`([^`]+)`", labels))
    for name, told in found.items():
        samples = [exposed[sample] for sample in (name, f"{name}_bucket") if sample in exposed]
        assert samples, name
        assert samples[0] - {"le"} == told, name
    counted = {re.sub("_(bucket|sum|count|created)$", "", name) for name in exposed if name.startswith("sovit_")}
    assert {name.removesuffix("_total") for name in counted} == {
        name.removesuffix("_total") for name in found if name.startswith("sovit_")
    }


def test_the_guides_files_are_there() -> None:
    for path in re.findall(r"deploy/[\w./-]+\w", GUIDE):
        assert (ROOT / path).exists(), path


def test_prometheus_takes_what_the_guide_tells_it(tmp_path: Path) -> None:
    (job,) = re.findall(r"```yaml\n(.*?)```", GUIDE, re.DOTALL)
    # Debian's promtool is built without Kubernetes.
    known = job.replace("kubernetes_sd_configs: [{role: pod}]", "static_configs: [{targets: [pod]}]")
    assert known != job
    (tmp_path / "prometheus.yml").write_text(f"scrape_configs:\n{known}")
    promtool("check", "config", str(tmp_path / "prometheus.yml"))
