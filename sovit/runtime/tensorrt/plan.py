"""The plans that were compiled on this machine: which one fits an artifact here, and why another is refused.

    plans / <hash of the artifact> / <what it runs on>-<library>-<version>.plan, .json

A plan is machine code for one GPU and one TensorRT, and TensorRT runs whatever it is handed: a plan is loaded only
where the description beside it fits the artifact, this GPU, this TensorRT and the plan's own hash. The description is
written last, after the plan has passed its parity check: a plan without one was never finished.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Final, Literal, get_args

from pydantic import ConfigDict

from sovit.artifact import Artifact
from sovit.cache import cache_folder, write_whole
from sovit.errors import ConfigError, PlanMismatch
from sovit.jsonio import STRICT, from_dict, read_json, to_dict
from sovit.parity import Parity
from sovit.runtime.tensorrt.cuda import Gpu
from sovit.runtime.tensorrt.library import LIBRARIES, LibraryName
from sovit.runtime.tensorrt.network import Fusion, Part

# What a plan runs on: the GPU it was made on, every one of its compute capability, or every one since Ampere.
HardwareCompatibility = Literal["none", "same_compute_capability", "ampere_plus"]
AMPERE: Final = (8, 0)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The description of a plan, built by the version `tensorrt` of a library.

    `attention` is what became of it in each part of the model; descriptions of older plans leave it out.
    `batch` is the least, the usual and the largest batch of its optimisation profile; `workspace_gib` is None where
    TensorRT could use all of the GPU's memory to build it.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    artifact_sha256: str
    plan_sha256: str
    gpu: str
    compute_capability: str
    library: LibraryName = "tensorrt"
    tensorrt: str
    hardware_compatibility: HardwareCompatibility
    batch: tuple[int, int, int]
    workspace_gib: float | None
    builder_level: int
    attention: dict[Part, Fusion] = field(default_factory=dict)
    parity: Parity


def plan_path(
    artifact_sha256: str, gpu: Gpu, library: LibraryName, tensorrt: str, compatibility: HardwareCompatibility
) -> Path:
    """Where the plan of an artifact for a GPU and a version of a library lies, its description beside it as `.json`."""
    runs_on = {
        "none": file_name(f"{gpu.name} {gpu.compute_capability}"),
        "same_compute_capability": f"compute-{gpu.compute_capability}",
        "ampere_plus": "ampere-plus",
    }[compatibility]
    return cache_folder("plans") / artifact_sha256 / f"{runs_on}-{library}-{tensorrt}.plan"


def write_plan(path: Path, content: bytes, plan: Plan) -> None:
    """Write a plan that passed its parity check, then its description: from then on it is found.

    A kill in between, or another process that writes the same plan, leaves a pair that does not fit and is refused.
    """
    _description(path).unlink(missing_ok=True)
    write_whole(path, content)
    write_whole(_description(path), (json.dumps(to_dict(plan), indent=2) + "\n").encode())


def find_plan(artifact: Artifact, gpu: Gpu, library: LibraryName, tensorrt: str) -> tuple[Plan, bytes]:
    """The plan of an artifact for this GPU and this version of a library, the most specific one, and its content.

    Raises `PlanMismatch` where there is none, or one that is damaged, undescribed or described for something else.
    """
    plan, path = find_description(artifact, gpu, library, tensorrt)
    content = path.read_bytes()
    if bytes_sha256(content) != plan.plan_sha256:
        raise PlanMismatch(
            f"{path} does not have the hash in its description, it is damaged: run "
            f"`{LIBRARIES[library].compile_command(artifact.folder)}`."
        )
    return plan, content


def find_description(artifact: Artifact, gpu: Gpu, library: LibraryName, tensorrt: str) -> tuple[Plan, Path]:
    """As `find_plan`, with the plan's path and without a look at its content."""
    sha256 = artifact.sha256
    fix = f"run `{LIBRARIES[library].compile_command(artifact.folder)}`"
    for compatibility in get_args(HardwareCompatibility):
        path = plan_path(sha256, gpu, library, tensorrt, compatibility)
        if path.is_file():
            return _described(path, sha256, gpu, library, tensorrt, fix), path
    for other in sorted((cache_folder("plans") / sha256).glob("*.json")):
        try:
            plan = from_dict(Plan, read_json(other), str(other))
        except ConfigError:
            continue
        raise PlanMismatch(
            f"{artifact.folder} is compiled for {plan.gpu} with {plan.library} {plan.tensorrt}, and this is {gpu.name} "
            f"with {library} {tensorrt}: {fix}."
        )
    raise PlanMismatch(f"{artifact.folder} is not compiled on this machine: {fix}.")


def file_name(text: str) -> str:
    """`NVIDIA H100 80GB HBM3` to `nvidia-h100-80gb-hbm3`, fit for a file name."""
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.")


def bytes_sha256(content: bytes) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def _description(path: Path) -> Path:
    return path.with_name(path.name.removesuffix(".plan") + ".json")


def _described(path: Path, artifact_sha256: str, gpu: Gpu, library: LibraryName, tensorrt: str, fix: str) -> Plan:
    """Check everything the description says."""
    if not _description(path).is_file():
        raise PlanMismatch(f"{path} has no description beside it, so nobody knows what it is for: {fix}.")
    try:
        plan = from_dict(Plan, read_json(_description(path)), str(_description(path)))
    except ConfigError as error:
        raise PlanMismatch(f"{str(error).rstrip('.')}: {fix}.") from error
    if plan.artifact_sha256 != artifact_sha256:
        raise PlanMismatch(f"{path} was compiled from another artifact: {fix}.")
    if (plan.library, plan.tensorrt) != (library, tensorrt):
        raise PlanMismatch(
            f"{path} was compiled by {plan.library} {plan.tensorrt}, and this is {library} {tensorrt}: {fix}."
        )
    if not _runs_on(plan, gpu):
        raise PlanMismatch(f"{path} was compiled for {plan.gpu}, and this is {gpu.name}: {fix}.")
    return plan


def _runs_on(plan: Plan, gpu: Gpu) -> bool:
    if plan.hardware_compatibility == "ampere_plus":
        return since_ampere(gpu)
    same = plan.compute_capability == gpu.compute_capability
    return same and (plan.hardware_compatibility == "same_compute_capability" or plan.gpu == gpu.name)


def since_ampere(gpu: Gpu) -> bool:
    """Whether a GPU is an Ampere or newer."""
    major, _, minor = gpu.compute_capability.partition(".")
    return (int(major), int(minor)) >= AMPERE
