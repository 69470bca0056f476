"""Tar shards in the WebDataset layout, read at random through an index of their own.

A sample is the members of one shard that share a name up to the first dot of its last part: `a/17.jpg` and `a/17.cls`.
"""

from __future__ import annotations

import json
import os
import re
import tarfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sovit.errors import ConfigError
from sovit.labels import read_labels
from train.data.columns import index_labels
from train.data.dataset import Dataset
from train.data.images import LazyImages, Names

CLASSES_FILE: Final = "classes.txt"
_IMAGE: Final = ("jpg", "jpeg", "png", "webp")
_LABEL: Final = ("cls", "json")
_BLOCK: Final = tarfile.BLOCKSIZE
_MOST_OPEN: Final = 128  # shards kept open in a process; those beyond are opened for each image
_MOST_CLASSES: Final = 1_000_000


class _Place(NamedTuple):
    """Where a member's content lies in its shard, in bytes."""

    offset: int
    size: int


class _Index(NamedTuple):
    """Images of one shard: places int64 [N, 2], names of members, labels, and what their classes are called."""

    places_N2: NDArray[np.int64]
    names: list[str]
    labels: list[int | str]
    class_names: dict[int, str]


class TarImages(LazyImages):
    """Encoded images in tar shards. Each process opens the shards on its own, and reads without a shared position."""

    def __init__(self, shards: Sequence[Path], shard_N: NDArray[np.int32], places_N2: NDArray[np.int64], names: Names):
        self._shards = tuple(shards)
        self._shard_N = shard_N
        self._places_N2 = places_N2
        self._names = names
        self._opened: dict[int, int] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._shard_N)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_opened", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _opened={}, _lock=threading.Lock())

    def __del__(self) -> None:
        for descriptor in vars(self).get("_opened", {}).values():
            os.close(descriptor)

    def read(self, index: int) -> bytes:
        shard = int(self._shard_N[index])
        offset, size = self._places_N2[index].tolist()
        try:
            content = self._pread(shard, size, offset)
        except OSError as error:
            raise ConfigError(f"{self._shards[shard]} cannot be read: {error.strerror}.") from error
        if len(content) != size:
            raise ConfigError(f"{self.image_name(index)}: the shard is shorter than it was when it was opened.")
        return content

    def image_name(self, index: int) -> str:
        return f"{self._shards[int(self._shard_N[index])]}: {self._names[index]}"

    def bytes_to_read(self) -> int:
        return int(self._places_N2[:, 1].sum())

    def _pread(self, shard: int, size: int, offset: int) -> bytes:
        descriptor = self._opened.get(shard)
        if descriptor is None and len(self._opened) < _MOST_OPEN:
            descriptor = self._open(shard)
        if descriptor is not None:
            return os.pread(descriptor, size, offset)
        with self._shards[shard].open("rb", buffering=0) as file:
            return os.pread(file.fileno(), size, offset)

    def _open(self, shard: int) -> int:
        with self._lock:
            if shard not in self._opened:
                self._opened[shard] = os.open(self._shards[shard], os.O_RDONLY | os.O_CLOEXEC)
            return self._opened[shard]


def read_webdataset(shards: Sequence[Path], name: str) -> Dataset:
    """Tar shards of one data set, in this order. Only their headers and labels are read now.

    A label is `.cls` (a number or a class name) or `.json` with `label` or `cls`, and `classname` where that is a
    number. Classes are the lines of `classes.txt` beside the shards, else the names that occur, sorted, or all numbers
    up to the largest. Raises `ConfigError` that names shard and sample for a missing image or label, a label out of
    range and a truncated shard.
    """
    indices = [_index(shard) for shard in shards]
    starts = np.cumsum([0, *(len(index.names) for index in indices)])
    if not starts[-1]:
        raise ConfigError(f"{shards[0]} holds no samples, as 17.jpg with 17.cls.")
    labels = [label for index in indices for label in index.labels]
    names = Names(member for index in indices for member in index.names)
    shard_N = np.repeat(np.arange(len(shards), dtype=np.int32), np.diff(starts))

    def row(index: int) -> str:
        return f"{shards[int(shard_N[index])]}: {names[index]}"

    file = shards[0].parent / CLASSES_FILE
    known = read_labels(str(file)) if file.is_file() else None
    numbers = [label for label in labels if isinstance(label, int)]
    if len(numbers) == len(labels):
        called = known or _number_names(indices, shards, max(numbers))
        targets, classes = index_labels(np.array(numbers, np.int64), called, row)
    else:
        if numbers:
            odd = next(index for index, label in enumerate(labels) if isinstance(label, int))
            raise ConfigError(f"{row(odd)} has a number for a label, others have names; use one of the two.")
        targets, classes = index_labels([str(label) for label in labels], known, row)
    images = TarImages(shards, shard_N, np.concatenate([index.places_N2 for index in indices]), names)
    return Dataset(name, images, targets, classes)


def _number_names(indices: Sequence[_Index], shards: Sequence[Path], largest: int) -> list[str]:
    """Names of the classes 0..largest: those that the samples give, else the numbers themselves."""
    names: dict[int, str] = {}
    for index, shard in zip(indices, shards, strict=True):
        for number, name in index.class_names.items():
            if names.setdefault(number, name) != name:
                raise ConfigError(f"{shard}: class {number} is called {name!r}, and {names[number]!r} before.")
    return [names.get(number, str(number)) for number in range(largest + 1)]


def _index(shard: Path) -> _Index:
    found = _members(shard)
    places, names, labels = [], [], []
    class_names: dict[int, str] = {}
    with shard.open("rb", buffering=0) as file:
        for key, members in found.items():
            images = [kind for kind in _IMAGE if kind in members]
            if len(images) != 1:
                raise ConfigError(f"{shard}: sample {key} has {', '.join(images) or 'no image'}; give it one image.")
            kind = next((kind for kind in _LABEL if kind in members), None)
            if kind is None:
                raise ConfigError(f"{shard}: sample {key} has no label; give it a .cls or a .json with `label`.")
            where = f"{shard}: sample {key}"
            content = os.pread(file.fileno(), members[kind].size, members[kind].offset)
            label, name = _label(content, kind, where)
            if name and isinstance(label, int) and class_names.setdefault(label, name) != name:
                raise ConfigError(f"{where} calls class {label} {name!r}, another one {class_names[label]!r}.")
            places.append(members[images[0]])
            names.append(f"{key}.{images[0]}")
            labels.append(label)
    return _Index(np.array(places, np.int64).reshape(-1, 2), names, labels, class_names)


def _members(shard: Path) -> dict[str, dict[str, _Place]]:
    """Members of a shard by sample and kind, in the order of the tar."""
    found: dict[str, dict[str, _Place]] = {}
    end = 0
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                end = member.offset_data
                folder, _, base = member.name.rpartition("/")
                key, dot, kind = base.partition(".")
                if not member.isreg():
                    continue
                end += -(-member.size // _BLOCK) * _BLOCK
                if not (key and dot):  # hidden, or no sample's
                    continue
                name = f"{folder}/{key}" if folder else key
                members = found.setdefault(name, {})
                if members.setdefault(kind.lower(), place := _Place(member.offset_data, member.size)) is not place:
                    raise ConfigError(f"{shard}: sample {name} has two members .{kind}; samples need their own names.")
        with shard.open("rb") as file:
            file.seek(end)
            ended = file.read(_BLOCK)
    except (tarfile.TarError, OSError) as error:
        raise ConfigError(f"{shard} is no uncompressed tar file, or is truncated: {error}.") from error
    if len(ended) < _BLOCK or any(ended):
        last = f"after sample {next(reversed(found))}" if found else "at its start"
        raise ConfigError(f"{shard} is truncated or broken {last}: a tar file ends with blocks of zeros.")
    return found


def _label(content: bytes, kind: str, where: str) -> tuple[int | str, str]:
    """A label, and the name of its class or ""."""
    name = ""
    label: object
    try:
        text = content.decode("utf-8").strip()
        if kind == "cls":
            label = int(text) if re.fullmatch(r"[+-]?[0-9]{1,18}", text) else text
        else:
            entries = json.loads(text)
            label = entries["label"] if "label" in entries else entries["cls"]
            name = str(entries.get("classname") or "")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{where}: its .{kind} holds no label; give a number or a class name.") from error
    if isinstance(label, bool) or not isinstance(label, (int, str)) or label == "":
        raise ConfigError(f"{where}: its label is {label!r}; give a number or a class name.")
    if isinstance(label, int) and not 0 <= label < _MOST_CLASSES:
        raise ConfigError(f"{where} has label {label}, which lies outside 0..{_MOST_CLASSES - 1}.")
    return label, name
