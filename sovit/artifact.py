"""The artifact folder: `manifest.json` + `model.onnx` + `reference.npz`, immutable once written.

Whoever loads one checks it first: a missing, edited or truncated file is refused by name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final, Literal
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict

from sovit.config import ViTConfig
from sovit.errors import ArtifactMismatch, ConfigError
from sovit.folder import replace_folder
from sovit.jsonio import STRICT, from_dict, read_json, to_dict, write_json
from sovit.parity import Parity
from sovit.spec import ModelSpec

SCHEMA_VERSION: Final = 2
MANIFEST: Final = "manifest.json"
GRAPH: Final = "model.onnx"
REFERENCE: Final = "reference.npz"

MOST_IMAGES: Final = 65_536  # in a batch
OPSETS: Final = (23,)
OUTPUTS: Final = ("pre_logits", "logits", "tokens")
INPUT: Final = "image"  # uint8 [B, Y, X, C]

# The element types of the products and of the rest; a quantised one alone has the rest in fp32.
Precision = Literal["fp32", "fp16", "bf16", "int8", "int8-bf16", "fp8-bf16"]


@dataclass(frozen=True, kw_only=True)
class TensorInfo:
    """Declaration of one input or output. `shape` holds integers, and "B" for the batch axis."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    name: str
    dtype: Literal["uint8", "float32"]
    shape: tuple[int | Literal["B"], ...]


@dataclass(frozen=True, kw_only=True)
class FileInfo:
    """Size and hash of one file of the artifact."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest(ModelSpec):
    """An artifact's `manifest.json`. Readers go by `inputs` and `outputs`, not by assumption.

    `batch` is the least, the usual and the largest batch: a plan is compiled for them. `checkpoint_sha256` is the hash
    of the weights it came from. `parity` is what the export measured, in each runtime it ran.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    name: str
    precision: Precision
    opset: int
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    batch: tuple[int, int, int]
    files: dict[str, FileInfo]
    checkpoint_sha256: str
    versions: dict[str, str]
    parity: tuple[Parity, ...]
    provenance: dict[str, Any]
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.preprocess.resize == "naflex":
            raise ConfigError("a graph for images of one size cannot have the resize rule 'naflex'.")
        image = TensorInfo(name=INPUT, dtype="uint8", shape=("B", *self.model.image_size, 3))
        if self.inputs != (image,):
            raise ConfigError(f"the inputs are not the one this model has, {image.name} {list(image.shape)}.")
        if self.outputs != output_tensors(self.model, tokens=any(tensor.name == "tokens" for tensor in self.outputs)):
            raise ConfigError("the outputs are not those this model has: pre_logits, logits with a head, tokens last.")
        check_batch(self.batch)
        if self.opset not in OPSETS:
            raise ConfigError(f"opset is {self.opset}, this sovit knows {', '.join(map(str, OPSETS))}.")


def output_tensors(model: ViTConfig, *, tokens: bool = False) -> tuple[TensorInfo, ...]:
    """The outputs of a model's graph, in order; `tokens` [B, N, D] are there on demand."""
    shapes: dict[str, tuple[int, ...]] = {"pre_logits": (model.width,)}
    if model.num_classes:
        shapes["logits"] = (model.num_classes,)
    if tokens:
        shapes["tokens"] = (model.num_tokens, model.width)
    return tuple(TensorInfo(name=name, dtype="float32", shape=("B", *shape)) for name, shape in shapes.items())


def parse_batch(text: str) -> tuple[int, int, int]:
    """`"1:8:64"` to the least, the usual and the largest batch. Raises `ConfigError` for anything else."""
    parts = text.split(":")
    if len(parts) != 3 or not all(part.isascii() and part.isdigit() for part in parts):
        raise ConfigError(f"batch {text!r} is not MIN:OPT:MAX as in 1:8:64.")
    least, usual, most = (int(part) for part in parts)
    return least, usual, most


def check_batch(batch: tuple[int, int, int]) -> None:
    """Raise `ConfigError` unless these are the least, the usual and the largest batch."""
    if not 1 <= batch[0] <= batch[1] <= batch[2] <= MOST_IMAGES:
        given = ":".join(map(str, batch))
        raise ConfigError(f"batch is {given}, it must be MIN:OPT:MAX, at most {MOST_IMAGES:,}, as in 1:8:64.")


@dataclass(frozen=True)
class Artifact:
    """A checked artifact folder."""

    folder: Path
    manifest: Manifest

    @property
    def graph(self) -> Path:
        """The ONNX file."""
        return self.folder / GRAPH

    @property
    def sha256(self) -> str:
        """Identity of the artifact: the hash of its manifest, which holds the hash of every other file."""
        return file_sha256(self.folder / MANIFEST)

    def reference(self) -> tuple[NDArray[np.uint8], dict[str, NDArray[np.float32]]]:
        """The reference images, uint8 [16, Y, X, 3], and the fp32 outputs torch computed for them."""
        try:
            with np.load(self.folder / REFERENCE, allow_pickle=False) as stored:
                tensors = {name: stored[name] for name in stored.files}
            images = tensors.pop("image")
        except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
            raise ArtifactMismatch(f"{self.folder / REFERENCE} cannot be read.") from error
        return images, tensors


def own_files(folder: Path) -> tuple[str, ...] | None:
    """The names of the files of an artifact; None for any other folder."""
    try:
        data = read_json(folder / MANIFEST)
    except ConfigError:
        return None
    files = data.get("files") if isinstance(data, dict) and "schema_version" in data else None
    return (MANIFEST, *files) if isinstance(files, dict) else None


def is_artifact(folder: Path) -> bool:
    """Whether a folder looks like an artifact."""
    return (folder / MANIFEST).is_file()


def open_artifact(folder: str | Path) -> Artifact:
    """Read and verify an artifact folder. Raises `ArtifactMismatch` naming the file that does not fit."""
    artifact = Artifact(Path(folder), read_manifest(Path(folder)))
    check_files(artifact)
    return artifact


def check_files(artifact: Artifact) -> None:
    """Raise `ArtifactMismatch` for a file that is missing or does not have the hash in the manifest."""
    for name, info in artifact.manifest.files.items():
        _check_file(artifact.folder, name, info)


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of an artifact folder, without a look at its files. Raises `ArtifactMismatch`."""
    if not (folder / MANIFEST).is_file():
        raise ArtifactMismatch(f"{folder} is no artifact: {MANIFEST} is missing.")
    try:
        data = read_json(folder / MANIFEST)
        version = data.get("schema_version") if isinstance(data, dict) else None
        if version != SCHEMA_VERSION:
            raise ArtifactMismatch(
                f"{folder / MANIFEST} has schema_version {version!r}, this sovit reads {SCHEMA_VERSION}: export again."
            )
        manifest = from_dict(Manifest, data, str(folder / MANIFEST))
    except ConfigError as error:
        raise ArtifactMismatch(str(error)) from error
    for required in (GRAPH, REFERENCE):
        if required not in manifest.files:
            raise ArtifactMismatch(f"{folder / MANIFEST} lists no {required}.")
    return manifest


@contextmanager
def write_artifact(folder: Path) -> Iterator[Path]:
    """Yield an empty folder to fill; it becomes the artifact when the block ends without an error."""
    with replace_folder(folder, "artifact", own_files) as aside:
        yield aside


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest beside the files it lists."""
    write_json(folder / MANIFEST, to_dict(manifest))


def hash_files(folder: Path) -> dict[str, FileInfo]:
    """Size and hash of every file in a folder, by name."""
    return {
        path.name: FileInfo(bytes=path.stat().st_size, sha256=file_sha256(path)) for path in sorted(folder.iterdir())
    }


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _check_file(folder: Path, name: str, info: FileInfo) -> None:
    path = folder / name
    if path.name != name or name == MANIFEST:
        raise ArtifactMismatch(f"{folder / MANIFEST} lists {name!r}, which is no file name inside the artifact.")
    if not path.is_file():
        raise ArtifactMismatch(f"{path} is missing.")
    size = path.stat().st_size
    if size != info.bytes:
        raise ArtifactMismatch(f"{path} has {size:,} bytes, the manifest says {info.bytes:,}: truncated or edited.")
    if file_sha256(path) != info.sha256:
        raise ArtifactMismatch(f"{path} does not have the hash in the manifest: it was edited or damaged.")
