"""An engine that travels: built where there is no GPU, taken into the cache of the machine that has one.

    ENGINE/ engine.trt  the engine
            engine.json what it is for: written last, with the engine's hash

TensorRT runs whatever it is handed. So an engine is loaded only after its hash, its own header, the artifact, the
library's version and the GPU's compute capability were checked, and enters the cache only after parity.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Final

from pydantic import ConfigDict

from sovit.artifact import Artifact, Precision, check_batch
from sovit.errors import ConfigError, PlanMismatch, RuntimeFailure
from sovit.folder import check_replaceable, replace_folder
from sovit.jsonio import STRICT, from_dict, read_json, to_dict, write_json
from sovit.runtime.tensorrt.cuda import Gpu
from sovit.runtime.tensorrt.library import LibraryName
from sovit.runtime.tensorrt.network import Fusion, Part
from sovit.runtime.tensorrt.plan import bytes_sha256, since_ampere

ENGINE: Final = "engine.trt"
DESCRIPTION: Final = "engine.json"
SCHEMA_VERSION: Final = 1
# The header of an engine as TensorRT for RTX 1.7 writes it: magic, two words, the length of all, the version in bytes.
_HEADER: Final = struct.Struct("<4s4x8xQ4B")
_MAGIC: Final = b"vtrt"
_VERSION: Final = re.compile(r"[0-9]{1,3}(\.[0-9]{1,3}){3}", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class EngineDescription:
    """What an engine is for. Without `compute_capabilities` it is the library's default, Ampere and newer.

    `batch` is the least, the usual and the largest batch of its optimisation profile.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    artifact_sha256: str
    name: str
    precision: Precision
    engine_sha256: str
    bytes: int
    library: LibraryName
    tensorrt: str
    compute_capabilities: tuple[str, ...]
    batch: tuple[int, int, int]
    builder_level: int
    attention: dict[Part, Fusion] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        check_batch(self.batch)


def check_engine_folder(folder: Path) -> None:
    """Raise `ConfigError` for a place that an engine cannot be written to: before it is built, not after."""
    parent = next((path for path in folder.absolute().parents if path.exists()), None)
    if parent is not None and not parent.is_dir():
        raise ConfigError(f"{folder} cannot be written: {parent} is not a folder.")
    check_replaceable(folder, "engine", _own_files)


def write_engine(folder: Path, content: bytes, description: EngineDescription) -> None:
    """Write an engine that will be readable where it is taken to. Raises `RuntimeFailure` where it cannot be written.

    Whatever happens, the folder is there whole, or as it was.
    """
    try:
        _check_header(content, description.tensorrt)
    except PlanMismatch as error:
        raise RuntimeFailure(
            f"TensorRT for RTX {description.tensorrt} writes engines whose header this version of sovit does not know: "
            "install the version that sovit was released with."
        ) from error
    try:
        with replace_folder(folder, "engine", _own_files) as aside:
            (aside / ENGINE).write_bytes(content)
            write_json(aside / DESCRIPTION, to_dict(description))
    except OSError as error:
        raise RuntimeFailure(f"{folder} cannot be written: {error.strerror or error}.") from error


def read_engine(folder: Path, artifact: Artifact) -> tuple[bytes, EngineDescription]:
    """The engine in a folder, if it is whole and for this artifact. Needs no library. Raises `PlanMismatch`."""
    again = _again(folder, artifact)
    if not (folder / DESCRIPTION).is_file():
        raise PlanMismatch(f"{folder} is not an engine folder: {DESCRIPTION} is missing.")
    try:
        data = read_json(folder / DESCRIPTION)
        version = data.get("schema_version") if isinstance(data, dict) else None
        if version != SCHEMA_VERSION:
            raise PlanMismatch(f"{folder / DESCRIPTION} has schema_version {version!r}, not {SCHEMA_VERSION}: {again}.")
        engine = from_dict(EngineDescription, data, str(folder / DESCRIPTION))
    except ConfigError as error:
        raise PlanMismatch(f"{str(error).rstrip('.')}: {again}.") from error
    if engine.library != "tensorrt-rtx" or not _VERSION.fullmatch(engine.tensorrt):
        raise PlanMismatch(f"{folder / DESCRIPTION} does not describe an engine of TensorRT for RTX: {again}.")
    if engine.artifact_sha256 != artifact.sha256:
        raise PlanMismatch(f"{folder} was built from another artifact: {again}.")
    try:
        content = (folder / ENGINE).read_bytes()
    except OSError as error:
        raise PlanMismatch(f"{folder / ENGINE} cannot be read ({error.strerror}): {again}.") from error
    if len(content) != engine.bytes or bytes_sha256(content) != engine.engine_sha256:
        raise PlanMismatch(f"{folder / ENGINE} does not have the hash in its description, it is damaged: {again}.")
    try:
        _check_header(content, engine.tensorrt)
    except PlanMismatch as error:
        raise PlanMismatch(f"{folder / ENGINE} {error}: {again}.") from error
    return content, engine


def require_fit(folder: Path, engine: EngineDescription, artifact: Artifact, tensorrt: str, gpu: Gpu) -> None:
    """Raise `PlanMismatch` for an engine of another version of the library, or for other GPUs."""
    again = _again(folder, artifact)
    if engine.tensorrt != tensorrt:
        raise PlanMismatch(
            f"{folder} was built by TensorRT for RTX {engine.tensorrt}, and this is {tensorrt}: {again}."
        )
    if not _runs_on(engine, gpu):
        capabilities = ", ".join(engine.compute_capabilities) or "8.0 and newer"
        raise PlanMismatch(
            f"{folder} was built for compute capability {capabilities}, and {gpu.name} has {gpu.compute_capability}: "
            f"{again} --compute-capability {gpu.compute_capability}."
        )


def _again(folder: Path, artifact: Artifact) -> str:
    return f"build it again with sovit compile {artifact.folder} --for rtx --out {folder}"


def _check_header(content: bytes, tensorrt: str) -> None:
    """Raise `PlanMismatch`, with the end of a sentence, for bytes that are not a whole engine of this version."""
    if len(content) < _HEADER.size or content[: len(_MAGIC)] != _MAGIC:
        raise PlanMismatch("is not an engine of TensorRT for RTX")
    _, size, *version = _HEADER.unpack_from(content)
    if size != len(content):
        raise PlanMismatch(f"has {len(content):,} bytes, and its header says {size:,}, it is damaged")
    if ".".join(map(str, version)) != tensorrt:
        written = ".".join(map(str, version))
        raise PlanMismatch(f"was written by TensorRT for RTX {written}, and its description says {tensorrt}")


def _runs_on(engine: EngineDescription, gpu: Gpu) -> bool:
    if not engine.compute_capabilities:
        return since_ampere(gpu)
    return gpu.compute_capability in engine.compute_capabilities


def _own_files(folder: Path) -> tuple[str, ...] | None:
    try:
        data = read_json(folder / DESCRIPTION)
    except ConfigError:
        return None
    is_ours = isinstance(data, dict) and {"schema_version", "engine_sha256"} <= data.keys()
    return (ENGINE, DESCRIPTION) if is_ours else None
