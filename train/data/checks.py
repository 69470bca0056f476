"""What has to be right about the two splits before the first step is made."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np

from sovit.decode import ImageSource
from sovit.errors import ConfigError
from train.data.dataset import Dataset
from train.data.images import LazyImages
from train.evaluate import match_labels

_MOST_HASHED: Final = 200_000  # images
_MOST_READ: Final = 4 << 30  # bytes of files
_MOST_NAMED: Final = 20


def check_splits(train: Dataset, test: Dataset) -> tuple[str, ...]:
    """Check that `train` can be learnt from and `test` can judge it; gives warnings, a sentence each.

    Raises `ConfigError` for fewer than two classes, class names given twice, targets out of range, classes without a
    training image, and test classes that are not trained. Warns of images that are in both splits.
    """
    if len(train.classes) < 2:
        raise ConfigError(f"{train.name} has {len(train.classes)} class; there must be at least two to tell apart.")
    for dataset in (train, test):
        _check_targets(dataset)
    counts = np.bincount(train.targets, minlength=len(train.classes))
    if empty := [name for name, count in zip(train.classes, counts, strict=True) if not count]:
        raise ConfigError(f"{train.name} has no image of {_listed(empty)}; every class needs one.")
    labels = match_labels(test.classes, train.classes, test.name, "that have no training images")
    counts = np.bincount(test.targets, minlength=len(test.classes))
    judged = {label for label, count in zip(labels, counts, strict=True) if count}
    unjudged = [name for name in train.classes if name not in judged]
    warning = f"{test.name} has no image of {_listed(unjudged)}: how well that is learnt will not be seen."
    return (*([warning] if unjudged else []), *_in_both(train, test))


def _check_targets(dataset: Dataset) -> None:
    if not len(dataset):
        raise ConfigError(f"{dataset.name} has no images.")
    if len(dataset.targets) != len(dataset):
        raise ConfigError(f"{dataset.name} has {len(dataset)} images and {len(dataset.targets)} labels.")
    if repeated := [name for name, count in Counter(dataset.classes).items() if count > 1]:
        raise ConfigError(f"{dataset.name} has several classes called {_listed(repeated)}; each needs its own name.")
    outside = np.flatnonzero((dataset.targets < 0) | (dataset.targets >= len(dataset.classes)))
    if len(outside):
        first = int(outside[0])
        raise ConfigError(
            f"{dataset.image_name(first)} has label {dataset.targets[first]}, which is none of the "
            f"{len(dataset.classes)} classes."
        )


def _in_both(train: Dataset, test: Dataset) -> tuple[str, ...]:
    """Paths are compared as paths; anything else by its content, where that can be seen in a minute."""
    if not (isinstance(train.images[0], (str, Path)) and isinstance(test.images[0], (str, Path))):
        to_read = sum(part.bytes_to_read() for part in (train.images, test.images) if isinstance(part, LazyImages))
        if len(train) + len(test) > _MOST_HASHED or to_read > _MOST_READ:
            return (f"{train.name} and {test.name} are too large to look for images that are in both.",)
    of_test: dict[str | bytes, int] = {}
    for index, key in enumerate(_keys(test.images)):
        of_test.setdefault(key, index)
    both = [(index, of_test[key]) for index, key in enumerate(_keys(train.images)) if key in of_test]
    if not both:
        return ()
    first, second = both[0]
    count = len({pair[1] for pair in both})
    return (
        f"{count} image{'s' if count > 1 else ''} of {test.name} can be found in {train.name} too, the first as "
        f"{test.image_name(second)} and {train.image_name(first)}; they make the accuracy look better than it is.",
    )


def _keys(images: Sequence[ImageSource]) -> Iterator[str | bytes]:
    real_folder = cache(os.path.realpath)
    for image in images:
        if isinstance(image, (str, Path)):
            folder, name = os.path.split(image)
            yield os.path.realpath(image) if os.path.islink(image) else os.path.join(real_folder(folder), name)
        elif isinstance(image, bytes):
            yield hashlib.sha256(image).digest()
        else:
            pixels = np.ascontiguousarray(np.asarray(image))
            yield hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).digest()


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more
