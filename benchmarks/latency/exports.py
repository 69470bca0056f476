"""Variants with random weights as artifacts and checkpoints, written where they are not there yet."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.process import run_child
from sovit.artifact import Artifact, Precision, is_artifact, open_artifact
from sovit.checkpoint import CONFIG
from sovit.config import variant_config
from sovit.errors import ConfigError

QUANTISED: Final = ("int8", "int8-bf16", "fp8-bf16")


@dataclass(frozen=True, kw_only=True)
class Order:
    """What to write into `out`: an artifact of a precision, or without one a checkpoint of the same weights."""

    variant: str
    image_size: tuple[int, int]
    precision: Precision | None
    images: str | None
    out: str


def artifact_of(
    variant: str, image_size: tuple[int, int], precision: Precision, images: Path | None, folder: Path
) -> Artifact:
    """The artifact in a folder, written first where there is none.

    Raises `ServiceError` with what the process said when it fails, and `ConfigError` where the folder holds another.
    """
    if not is_artifact(folder):
        _let_write(variant, image_size, precision, images, folder)
    artifact = open_artifact(folder)
    manifest = artifact.manifest
    if (manifest.model, manifest.precision) != (variant_config(variant, image_size=image_size), precision):
        raise ConfigError(f"{folder} holds {manifest.name} in {manifest.precision}, not {variant} in {precision}.")
    return artifact


def checkpoint_of(variant: str, image_size: tuple[int, int], folder: Path) -> Path:
    """The checkpoint of the same weights, written first where there is none. Raises `ServiceError`."""
    if not (folder / CONFIG).is_file():
        _let_write(variant, image_size, None, None, folder)
    return folder


def _let_write(
    variant: str, image_size: tuple[int, int], precision: Precision | None, images: Path | None, folder: Path
) -> None:
    run_child(
        "benchmarks.latency.prepare",
        Order(
            variant=variant,
            image_size=image_size,
            precision=precision,
            images=None if images is None else str(images.resolve()),
            out=str(folder.resolve()),
        ),
    )
