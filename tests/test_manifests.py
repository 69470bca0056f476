"""What runs the container: the manifests of Kubernetes, for CPUs and for a GPU, and those of compose."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, Final

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml  # type: ignore[import-untyped]

import sovit
from serving.config import ServeConfig
from sovit.jsonio import from_dict
from tests.deployment import DEPLOY, USER, Bento, documents, read_compose

OLDEST_KUBERNETES: Final = "1.29"
TOP: Final = {"name": str, "services": dict, "networks": dict, "volumes": dict}
SERVICE: Final = {
    "image": str, "user": str, "read_only": bool, "cap_drop": list, "security_opt": list, "tmpfs": list,
    "environment": dict, "volumes": list, "ports": list, "networks": list, "deploy": dict, "healthcheck": dict,
    "stop_grace_period": str, "restart": str, "command": list, "depends_on": list,
}  # fmt: skip
DURATION: Final = re.compile(r"(\d+)s")


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


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return read_compose()


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
