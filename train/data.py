"""Labelled images: scikit-learn's handwritten digits, or a folder with one subfolder per class.

Torch-free, so that an artifact can be evaluated where torch is not installed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from sovit.decode import SUFFIXES, ImageSource
from sovit.errors import ConfigError, MissingDependency

Split = Literal["train", "test"]

DIGITS: Final = "digits"
_HELD_OUT: Final = 360  # of 1,797, a fifth
_SPLIT_SEED: Final = 0
_FOLDERS: Final[dict[Split, tuple[str, ...]]] = {"train": ("train",), "test": ("test", "val", "validation")}


@dataclass(frozen=True)
class Dataset:
    """Images with the index of their class in `classes`."""

    name: str
    images: list[ImageSource]
    targets: NDArray[np.int64]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images)


def load_dataset(data: str, split: Split) -> Dataset:
    """`digits`, or a folder with train/CLASS/IMAGE and test/CLASS/IMAGE (also called val or validation).

    A folder with CLASS/IMAGE alone is a test set: it is never trained on. Raises `ConfigError` for a missing split.
    """
    if data == DIGITS:
        return _digits(split)
    root = Path(data)
    if not root.is_dir():
        raise ConfigError(f"no data set is called {data!r} and no folder either; known is {DIGITS!r}.")
    found = [root / name for name in _FOLDERS[split] if (root / name).is_dir()]
    if found:
        return _folder(found[0], f"{root.name} ({found[0].name})")
    if split == "test" and not (root / "train").is_dir():
        return _folder(root, root.name)
    wanted = " or ".join(f"{name}/CLASS/IMAGE" for name in _FOLDERS[split])
    raise ConfigError(f"{root} has no {split} images: it must hold {wanted}.")


def _digits(split: Split) -> Dataset:
    """1,797 scans of handwritten digits, 8 x 8 in 17 grey levels; a fixed random fifth is held out."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingDependency("the digits ship with scikit-learn: pip install 'sovit[train]'.") from error
    bunch = load_digits()
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(bunch.target))
    chosen = np.sort(order[:_HELD_OUT] if split == "test" else order[_HELD_OUT:])
    grey_NYX = np.rint(bunch.images[chosen] * (255 / 16)).astype(np.uint8)
    return Dataset(
        name=f"{DIGITS} ({split})",
        images=[np.repeat(grey_YX[:, :, None], 3, axis=2) for grey_YX in grey_NYX],
        targets=bunch.target[chosen].astype(np.int64),
        classes=tuple(str(digit) for digit in range(10)),
    )


def _images(folder: Path) -> Iterator[Path]:
    """Image files at any depth of a class folder, as torchvision's ImageFolder finds them; nothing hidden."""
    for where, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            path = Path(where, name)
            # A pipe or a device would be waited for.
            if path.suffix.lower() in SUFFIXES and not name.startswith(".") and path.is_file():
                yield path


def _folder(root: Path, name: str) -> Dataset:
    """Folders without images, and what is hidden (as notebooks' checkpoints are), are no classes."""
    classes: list[str] = []
    images: list[ImageSource] = []
    targets: list[int] = []
    for folder in sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")):
        found = sorted(_images(folder))
        if found:
            images += found
            targets += [len(classes)] * len(found)
            classes.append(folder.name)
    if not images:
        raise ConfigError(f"{root} holds no images in class folders, as in {root}/cat/1.jpg.")
    return Dataset(name, images, np.array(targets, np.int64), tuple(classes))
