"""The plan cache: what fits is found, and everything else is refused in one sentence with the way out."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sovit.artifact import Artifact
from sovit.cache import write_whole
from sovit.errors import PlanMismatch
from sovit.parity import Parity
from sovit.runtime.tensorrt.cuda import Gpu
from sovit.runtime.tensorrt.plan import Plan, bytes_sha256, find_plan, plan_path, write_plan

H100 = Gpu(name="NVIDIA H100 80GB HBM3", compute_capability="9.0", memory=1, driver="13.0", runtime="13.0")
H200 = replace(H100, name="NVIDIA H200")
A10 = replace(H100, name="NVIDIA A10", compute_capability="8.6")
T4 = replace(H100, name="Tesla T4", compute_capability="7.5")
VERSION = "11.4.0.106"
CONTENT = b"machine code"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def plan(artifact: Artifact, **changes: Any) -> Plan:
    parity = Parity(
        runtime="tensorrt", precision="fp32", images=16, relative_error=1e-6, cosine=1.0, top1_agreement=None
    )
    fields: dict[str, Any] = {
        "artifact_sha256": artifact.sha256, "plan_sha256": bytes_sha256(CONTENT), "gpu": H100.name,
        "compute_capability": H100.compute_capability, "tensorrt": VERSION, "hardware_compatibility": "none",
        "batch": (1, 8, 64), "workspace_gib": None, "builder_level": 3, "parity": parity,
    }  # fmt: skip
    return Plan(**fields | changes)


def store(artifact: Artifact, **changes: Any) -> Path:
    described = plan(artifact, **changes)
    path = plan_path(artifact.sha256, H100, "tensorrt", VERSION, described.hardware_compatibility)
    write_plan(path, CONTENT, described)
    return path


def test_a_plan_is_found_where_it_was_made(exported: Artifact) -> None:
    path = store(exported)
    assert path.name == "nvidia-h100-80gb-hbm3-9.0-tensorrt-11.4.0.106.plan"
    assert find_plan(exported, H100, "tensorrt", VERSION) == (plan(exported), CONTENT)


def test_none_says_how_to_get_one(exported: Artifact) -> None:
    with pytest.raises(PlanMismatch, match=r"is not compiled on this machine: run `sovit compile .*artifact`\.$"):
        find_plan(exported, H100, "tensorrt", VERSION)


@pytest.mark.parametrize(
    ("gpu", "version"), [(H200, VERSION), (A10, VERSION), (H100, "10.14.1.48")], ids=["name", "kind", "version"]
)
def test_one_for_something_else_is_named(exported: Artifact, gpu: Gpu, version: str) -> None:
    store(exported)
    with pytest.raises(PlanMismatch, match=r"is compiled for NVIDIA H100 80GB HBM3 with tensorrt 11\.4\.0\.106, and"):
        find_plan(exported, gpu, "tensorrt", version)


def test_hardware_compatible_plans_run_elsewhere(exported: Artifact) -> None:
    path = store(exported, hardware_compatibility="same_compute_capability")
    assert find_plan(exported, H200, "tensorrt", VERSION)[1] == CONTENT
    with pytest.raises(PlanMismatch):
        find_plan(exported, A10, "tensorrt", VERSION)
    path.unlink()
    path.with_suffix(".json").unlink()
    store(exported, hardware_compatibility="ampere_plus")
    assert find_plan(exported, A10, "tensorrt", VERSION)[1] == CONTENT
    with pytest.raises(PlanMismatch, match="was compiled for NVIDIA H100 80GB HBM3, and this is Tesla T4"):
        find_plan(exported, T4, "tensorrt", VERSION)


def test_the_plan_for_this_very_gpu_goes_first(exported: Artifact) -> None:
    store(exported, hardware_compatibility="ampere_plus")
    store(exported)
    assert find_plan(exported, H100, "tensorrt", VERSION)[0].hardware_compatibility == "none"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"artifact_sha256": "0" * 64}, "was compiled from another artifact"),
        ({"tensorrt": "10.14.1.48"}, "was compiled by tensorrt 10.14.1.48, and this is tensorrt 11.4.0.106"),
        ({"gpu": "NVIDIA H200"}, "was compiled for NVIDIA H200, and this is NVIDIA H100 80GB HBM3"),
        ({"compute_capability": "8.6"}, "was compiled for NVIDIA H100 80GB HBM3"),
        ({"plan_sha256": "0" * 64}, "does not have the hash in its description, it is damaged"),
    ],
    ids=["artifact", "version", "gpu", "capability", "hash"],
)
def test_a_copied_plan_is_refused(exported: Artifact, changes: dict[str, Any], sentence: str) -> None:
    store(exported, **changes)
    with pytest.raises(PlanMismatch, match=sentence + r".*: run `sovit compile .*`\.$") as caught:
        find_plan(exported, H100, "tensorrt", VERSION)
    assert str(caught.value).count(". ") == 0


def _truncate(path: Path) -> None:
    path.write_bytes(CONTENT[:-1])


def _no_description(path: Path) -> None:
    path.with_suffix(".json").unlink()


def _bad_json(path: Path) -> None:
    path.with_suffix(".json").write_text("{")


def _unknown_field(path: Path) -> None:
    described = json.loads(path.with_suffix(".json").read_text())
    path.with_suffix(".json").write_text(json.dumps(described | {"speed": 9}))


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (_truncate, "damaged"),
        (_no_description, "has no description beside it"),
        (_bad_json, "cannot be read as JSON"),
        (_unknown_field, "speed: unknown field"),
    ],
)
def test_a_damaged_one_is_refused(exported: Artifact, damage: Callable[[Path], None], sentence: str) -> None:
    damage(store(exported))
    with pytest.raises(PlanMismatch, match=rf"{sentence}.*: run `sovit compile .*`\.$"):
        find_plan(exported, H100, "tensorrt", VERSION)


def test_a_plan_that_is_being_replaced_is_not_found_half(exported: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    path = store(exported)

    def killed_before_the_description(path: Path, content: bytes) -> None:
        if path.suffix == ".json":
            raise KeyboardInterrupt
        write_whole(path, content)

    monkeypatch.setattr("sovit.runtime.tensorrt.plan.write_whole", killed_before_the_description)
    with pytest.raises(KeyboardInterrupt):
        write_plan(path, b"newer machine code", plan(exported))
    assert path.read_bytes() == b"newer machine code"
    with pytest.raises(PlanMismatch, match="no description"):
        find_plan(exported, H100, "tensorrt", VERSION)


def test_a_damaged_description_hides_no_other(exported: Artifact) -> None:
    path = store(exported)
    (path.parent / "a.json").write_text("{")
    with pytest.raises(PlanMismatch, match="is compiled for NVIDIA H100"):
        find_plan(exported, A10, "tensorrt", VERSION)
