"""Commands of ours that follow a training, each in a process of its own: training knows nothing of export."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Final

import numpy as np
from rich.console import Console

from sovit.decode import DecodeOptions, decode
from sovit.errors import InvalidImage, SoViTError, UnsupportedImage
from train.data.dataset import Dataset

_LARGEST: Final = 1024  # pixels of a side that is saved


class StageFailed(SoViTError):
    """A command that was to follow ended with an error; it said so itself."""


def show(console: Console, *words: str) -> None:
    """A command of ours as it could be typed."""
    console.print(f"$ sovit {shlex.join(words)}", style="dim", highlight=False, markup=False, soft_wrap=True)


def run_sovit(console: Console, *words: str, capture: bool = False, accept: tuple[int, ...] = (0,)) -> str:
    """Show and run a command of ours; returns its standard output when captured. It ends when we are ended.

    Raises `StageFailed` for a status other than those to accept.
    """
    show(console, *words)
    with subprocess.Popen(
        [sys.executable, "-m", "sovit", *words], stdout=subprocess.PIPE if capture else None, text=True
    ) as process:
        try:
            said, _ = process.communicate()
        except BaseException:
            process.terminate()
            raise  # after it has ended
    if process.returncode not in accept or (capture and not said):
        raise StageFailed(f"`sovit {shlex.join(words)}` ended with status {process.returncode}.")
    return said or ""


def save_images(dataset: Dataset, folder: Path, count: int) -> list[Path]:
    """Up to `count` images of a data set, evenly spaced, as PNG files; those that cannot be decoded are left out."""
    folder.mkdir(parents=True, exist_ok=True)
    digits = max(3, len(str(len(dataset) - 1)))
    paths = []
    for index in np.unique(np.arange(count) * len(dataset) // count).tolist():
        try:
            image = decode(dataset.images[index], DecodeOptions())
        except (InvalidImage, UnsupportedImage):
            continue
        image.thumbnail((_LARGEST, _LARGEST))
        label = "".join(letter for letter in dataset.classes[dataset.targets[index]] if letter.isalnum())
        paths.append(folder / f"{index:0{digits}d}-{label}.png")
        image.save(paths[-1])
    return paths
