"""Weight files, read lazily and without ever unpickling: safetensors (one file or shards) and npz."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

import numpy as np
import safetensors
import torch
from torch import Tensor

from sovit.checkpoint import WEIGHTS
from sovit.convert.rules import Shape
from sovit.errors import CheckpointMismatch
from sovit.jsonio import read_json

SHARD_INDEX: Final = "model.safetensors.index.json"
SHARDS: Final = "model-*-of-*.safetensors"
_ALL_LAYERS: Final = "Transformer/encoderblock/"  # in a key: a scan-stacked array of the image tower
_NPY_TYPES: Final = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "V2")
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
    if (folder / SHARD_INDEX).is_file():
        index = read_json(folder / SHARD_INDEX)
        shards = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(shards, dict) or not shards or not all(isinstance(name, str) for name in shards.values()):
            raise CheckpointMismatch(f"{folder / SHARD_INDEX} has no weight_map.")
        names = sorted(set(shards.values()))
        if any(Path(name).name != name for name in names):
            raise CheckpointMismatch(f"{folder / SHARD_INDEX} lists a shard outside its folder.")
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
        self._members: dict[str, str] = {}
        shapes: dict[str, Shape] = {}
        with self._open() as archive:
            for info in archive.infolist():
                key = info.filename.removesuffix(".npy")
                if key in shapes:
                    raise CheckpointMismatch(f"{self.name} has the key {key} twice.")
                self._members[key] = info.filename
                shapes[key] = self._shape(archive, key, info)
        self.shapes: Mapping[str, Shape] = shapes

    def read(self, key: str) -> Tensor:
        """See `Weights.read`."""
        if key in self._kept:
            return self._kept[key]
        with self._open() as archive, archive.open(self._members[key]) as stream:
            array = np.lib.format.read_array(stream, allow_pickle=False)
            if array.dtype.kind == "V":
                tensor = torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
            else:
                tensor = torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))
        if _ALL_LAYERS in key:
            self._kept[key] = tensor
        return tensor

    def _shape(self, archive: zipfile.ZipFile, key: str, info: zipfile.ZipInfo) -> Shape:
        with archive.open(info) as stream:
            shape, dtype = _npy_header(stream)
            header_bytes = stream.tell()
        if dtype.hasobject:
            raise CheckpointMismatch(f"{self.name}: {key} is a pickled object; sovit never unpickles.")
        if f"{dtype.kind}{dtype.itemsize}" not in _NPY_TYPES or dtype.names is not None:
            raise CheckpointMismatch(f"{self.name}: {key} holds {dtype}, which is no kind of number we know.")
        # An array is allocated by its header: a lie there must not take the machine's memory.
        if header_bytes + math.prod(shape) * dtype.itemsize != info.file_size:
            raise CheckpointMismatch(f"{self.name}: {key} is not as long as its header says.")
        return shape

    @contextmanager
    def _open(self) -> Iterator[zipfile.ZipFile]:
        if not self._path.exists():
            raise CheckpointMismatch(f"{self.name} is missing.")
        try:
            with zipfile.ZipFile(self._path) as archive:
                yield archive
        except CheckpointMismatch:
            raise
        # Damage shows in the archive, in one of its compressions or in an array's header, which is parsed as Python:
        # each raises errors of its own, and there is no common base.
        except Exception as error:
            raise CheckpointMismatch(f"{self.name} is truncated, damaged or no npz file.") from error


def _npy_header(stream: IO[bytes]) -> tuple[Shape, np.dtype[np.generic]]:
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(stream)
    return shape, dtype
