"""A folder with one subfolder of image files for each class."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from sovit.decode import SUFFIXES
from sovit.errors import ConfigError
from train.data.dataset import Dataset
from train.data.images import LazyImages, Names


class FolderImages(LazyImages):
    """Paths of image files, by their names below a folder."""

    def __init__(self, root: Path, names: Names) -> None:
        self._root = root
        self._names = names

    def __len__(self) -> int:
        return len(self._names)

    def read(self, index: int) -> Path:
        return self._root / self._names[index]

    def image_name(self, index: int) -> str:
        return str(self.read(index))


def read_folder(root: Path, name: str) -> Dataset:
    """Images in `root/CLASS`. Folders without images, and what is hidden (as notebooks' checkpoints are), are no class.

    Raises `ConfigError` where there is no image at all.
    """
    classes: list[str] = []
    found: list[str] = []
    counts: list[int] = []
    for folder in sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")):
        images = sorted(_images(root, folder), key=lambda path: path.split(os.sep))
        if images:
            classes.append(folder)
            found += images
            counts.append(len(images))
    if not found:
        raise ConfigError(f"{root} holds no images in class folders, as in {root}/cat/1.jpg.")
    targets = np.repeat(np.arange(len(classes), dtype=np.int64), counts)
    return Dataset(name, FolderImages(root, Names(found)), targets, tuple(classes))


def _images(root: Path, folder: str) -> Iterator[str]:
    """Image files at any depth of a class folder, as torchvision's ImageFolder finds them; nothing hidden."""
    for where, folders, files in os.walk(root / folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        below = os.path.relpath(where, root)
        for name in files:
            path = os.path.join(where, name)
            # A pipe or a device would be waited for; a link that leads nowhere is an image that cannot be read.
            is_image = os.path.isfile(path) or (os.path.islink(path) and not os.path.exists(path))
            if name.lower().endswith(SUFFIXES) and not name.startswith(".") and is_image:
                yield os.path.join(below, name)
