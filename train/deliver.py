"""From a trained checkpoint to a served artifact, by the commands anyone would type."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any, Final, NoReturn

from rich.console import Console

from sovit.address import DEFAULT_HOST, free_address
from sovit.artifact import Precision, own_files
from sovit.errors import EXIT_FAILED
from sovit.folder import check_replaceable
from train.data.dataset import Dataset
from train.stages import run_sovit, save_images, show

_IMAGES: Final = 256  # of training: for the reference check, and to calibrate on


def check_delivery(artifact: Path, port: int | None) -> None:
    """Before the training rather than after it: raises `ConfigError` or `ServiceError` where delivery would fail."""
    check_replaceable(artifact, "artifact", own_files)
    if port is not None:
        free_address(DEFAULT_HOST, port)


def deliver(
    checkpoint: Path, artifact: Path, precision: Precision, data: str, train_set: Dataset, console: Console
) -> dict[str, Any]:
    """Export a checkpoint, and evaluate the artifact on the test set of `data` against it.

    The artifact is checked, and calibrated where its precision asks for that, on images of the training set. They go
    into a folder of their own, which is gone afterwards: nothing beside the artifact is touched. Returns what
    `sovit evaluate --json` says, images that could not be decoded among it. Raises `StageFailed`.
    """
    with tempfile.TemporaryDirectory() as folder:
        save_images(train_set, Path(folder), _IMAGES)
        calibrate = ["--calibrate", folder] if precision.startswith(("int8", "fp8")) else []
        run_sovit(
            console, "export", str(checkpoint), "--precision", precision, "--reference", folder, *calibrate,
            "--out", str(artifact), "--json", capture=True,
        )  # fmt: skip
    said = run_sovit(
        console, "evaluate", str(artifact), "--data", data, "--against", str(checkpoint), "--json", capture=True,
        accept=(0, EXIT_FAILED),
    )  # fmt: skip
    found: dict[str, Any] = json.loads(said)
    return found


def serve(artifact: Path, port: int, console: Console) -> NoReturn:
    """Become `sovit serve`."""
    words = ["serve", str(artifact), "--port", str(port)]
    show(console, *words)
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "sovit", *words])
