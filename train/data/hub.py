"""Data sets of the Hugging Face Hub, through the `datasets` package.

    sovit train RECIPE --data hf:NAME[:CONFIG]

Source of the interface: huggingface.co/docs/datasets, version 3 and later.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, Final

import numpy as np

from sovit.errors import ConfigError, MissingDependency
from train.data.columns import choose_column, index_labels
from train.data.dataset import HUB, Dataset, Split
from train.data.images import LazyImages

_SPLITS: Final[dict[Split, tuple[str, ...]]] = {"train": ("train",), "test": ("test", "validation")}


class HubImages(LazyImages):
    """Encoded images, or their paths, from the memory-mapped files of a `datasets.Dataset`."""

    def __init__(self, rows: Any, column: str, where: str) -> None:
        self._rows = rows
        self._column = column
        self._where = where

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, index: int) -> bytes | Path:
        image = self._rows[index][self._column] or {}
        content, path = image.get("bytes"), image.get("path")
        if isinstance(content, bytes):
            return content
        if path:
            return Path(path)
        raise ConfigError(f"row {index} of {self._where} has neither an image's bytes nor its path.")


def read_hub(data: str, split: Split) -> Dataset:
    """The split of `hf:NAME[:CONFIG]`; for a test, `test`, or `validation` where there is none or it has no labels.

    Raises `MissingDependency` without the `datasets` package, `ConfigError` where the data set, the split or one of
    its two columns is missing.
    """
    try:
        datasets = importlib.import_module("datasets")
    except ImportError as error:
        raise MissingDependency("data sets of the Hub need another package: pip install 'sovit[hub]'.") from error
    name, _, config = data.removeprefix(HUB).partition(":")
    if not name:
        raise ConfigError(f"{data!r} names no data set; write {HUB}NAME or {HUB}NAME:CONFIG.")
    try:
        there = datasets.get_dataset_split_names(name, config or None)
        found = [wanted for wanted in _SPLITS[split] if wanted in there]
        for wanted in found:
            rows = datasets.load_dataset(name, config or None, split=wanted)
            dataset = _read(datasets, rows, f"{data} ({wanted})", may_lack_labels=wanted != found[-1])
            if dataset is not None:
                return dataset
    except (datasets.exceptions.DatasetsError, OSError, ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0].rstrip(".") or type(error).__name__
        raise ConfigError(f"{data} cannot be loaded: {reason}.") from error
    raise ConfigError(f"{data} has no split {' or '.join(_SPLITS[split])}; it has {', '.join(there) or 'none'}.")


def _read(datasets: Any, rows: Any, where: str, *, may_lack_labels: bool) -> Dataset | None:
    """None where no image has a label, as in the test splits of competitions, and another split may have them."""
    features = rows.features
    columns = list(features)
    images = [column for column in columns if isinstance(features[column], datasets.Image)]
    named = [column for column in columns if isinstance(features[column], datasets.ClassLabel)]
    plain = [column for column in columns if _is_label(datasets, features[column])]
    image = choose_column("image", images, columns, where)
    label = choose_column("label", named + plain, columns, where, named)
    found = rows.select_columns([label])[:][label]
    unlabelled = next((index for index, value in enumerate(found) if value is None), None)
    if may_lack_labels and all(value in (None, -1) for value in found):
        return None
    if unlabelled is not None:
        raise ConfigError(f"row {unlabelled} of {where} has no {label}: it is null.")
    text = any(isinstance(value, str) for value in found)
    targets, classes = index_labels(
        found if text else np.array(found, np.int64),
        features[label].names if label in named else None,
        lambda index: f"row {index} of {where}",
    )
    encoded = rows.select_columns([image]).cast_column(image, datasets.Image(decode=False))
    return Dataset(where, HubImages(encoded, image, where), targets, classes)


def _is_label(datasets: Any, feature: Any) -> bool:
    return isinstance(feature, datasets.Value) and feature.dtype.startswith(("int", "uint", "string", "large_string"))
