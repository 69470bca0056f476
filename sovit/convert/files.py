"""Weight files, read lazily and without ever unpickling: safetensors (one file or shards) and npz."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

import numpy as np
import safetensors
import torch
from torch import Tensor

from sovit.convert.rules import Shape
from sovit.errors import CheckpointMismatch
from sovit.jsonio import read_json

WEIGHTS: Final = "model.safetensors"
_INDEX: Final = "model.safetensors.index.json"
_PICKLES: Final = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def refuse_pickles(path: Path) -> None:
    """Raise for a file that only unpickling could read: that runs code of whoever made it."""
    if path.suffix in _PICKLES:
        raise CheckpointMismatch(
            f"{path} holds pickled weights, which can run code when they are read; sovit takes safetensors and npz."
        )


class SafetensorsFiles:
    """One safetensors file, or the shards of one model. Tensors are mapped, not copied."""

    def __init__(self, paths: list[Path]) -> None:
        self.name = str(paths[0] if len(paths) == 1 else paths[0].parent)
        self._handles = {}
        shapes: dict[str, Shape] = {}
        for path in paths:
            refuse_pickles(path)
            try:
                handle = safetensors.safe_open(path, framework="pt")
            except FileNotFoundError as error:
                raise CheckpointMismatch(f"{path} is missing.") from error
            except (safetensors.SafetensorError, OSError) as error:
                raise CheckpointMismatch(f"{path} is truncated or is no safetensors file.") from error
            for key in handle.keys():  # type: ignore[no-untyped-call]  # noqa: SIM118  (no mapping)
                info = handle.get_slice(key)  # type: ignore[no-untyped-call]
                if key in shapes:
                    raise CheckpointMismatch(f"{path} has the key {key} of another shard once more.")
                shapes[key] = tuple(info.get_shape())
                self._handles[key] = handle
        self.shapes: Mapping[str, Shape] = shapes

    def read(self, key: str) -> Tensor:
        """See `Weights.read`."""
        return self._handles[key].get_tensor(key)  # type: ignore[no-untyped-call,no-any-return]


def safetensors_in(folder: Path) -> SafetensorsFiles:
    """The weights of a hub folder: `model.safetensors`, or the shards its index lists."""
    if (folder / WEIGHTS).is_file():
        return SafetensorsFiles([folder / WEIGHTS])
    if (folder / _INDEX).is_file():
        index = read_json(folder / _INDEX)
        shards = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
            raise CheckpointMismatch(f"{folder / _INDEX} has no weight_map.")
        names = sorted(set(shards.values()))
        if any(Path(name).name != name for name in names):
            raise CheckpointMismatch(f"{folder / _INDEX} lists a shard outside its folder.")
        return SafetensorsFiles([folder / name for name in names])
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLES)
    if pickles:
        refuse_pickles(folder / pickles[0])
    raise CheckpointMismatch(f"{folder} holds no {WEIGHTS}.")


class NpzFile:
    """A big_vision npz. Arrays that hold all layers are kept once read; bfloat16, stored as two bytes, is known."""

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._path = path
        self._kept: dict[str, Tensor] = {}
        with self._open() as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            self.shapes: Mapping[str, Shape] = {key: self._shape(archive, info) for key, info in members.items()}

    def read(self, key: str) -> Tensor:
        """See `Weights.read`."""
        if key in self._kept:
            return self._kept[key]
        with self._open() as archive, archive.open(f"{key}.npy") as stream:
            array = np.lib.format.read_array(stream, allow_pickle=False)
        if array.dtype.kind == "V":
            tensor = torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        else:
            tensor = torch.from_numpy(array)
        if "/encoderblock/" in key:
            self._kept[key] = tensor
        return tensor

    def _shape(self, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Shape:
        key = info.filename.removesuffix(".npy")
        with archive.open(info) as stream:
            shape, dtype = _npy_header(stream)
            header_bytes = stream.tell()
        if dtype.hasobject:
            raise CheckpointMismatch(f"{self.name}: {key} is a pickled object; sovit never unpickles.")
        if dtype.kind not in "fiubV" or (dtype.kind == "V" and dtype.itemsize != 2):
            raise CheckpointMismatch(f"{self.name}: {key} holds {dtype}, which is no kind of number we know.")
        # An array is allocated by its header: a lie there must not take the machine's memory.
        if header_bytes + math.prod(shape) * dtype.itemsize != info.file_size:
            raise CheckpointMismatch(f"{self.name}: {key} is not as long as its header says.")
        return shape

    @contextmanager
    def _open(self) -> Iterator[zipfile.ZipFile]:
        try:
            with zipfile.ZipFile(self._path) as archive:
                yield archive
        except FileNotFoundError as error:
            raise CheckpointMismatch(f"{self.name} is missing.") from error
        # Damage shows in the archive, in its compression or in an array's header, each with an error of its own.
        except (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, NotImplementedError) as error:
            raise CheckpointMismatch(f"{self.name} is truncated, damaged or no npz file.") from error


def _npy_header(stream: IO[bytes]) -> tuple[Shape, np.dtype[np.generic]]:
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(stream)
    return shape, dtype
