"""Parquet files in Hugging Face's layout: encoded images in one column, labels in another."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from sovit.errors import ConfigError, MissingDependency
from sovit.machine import free_memory
from train.data.columns import choose_column, index_labels
from train.data.dataset import Dataset
from train.data.images import LazyImages

_BATCH: Final = 1024  # rows: larger nested batches may be more than Arrow puts into one array


class ParquetImages(LazyImages):
    """Encoded images as Arrow holds them in memory: no Python object for each.

    A forked process shares them. A spawned one reads the files again, when it is first asked.
    """

    def __init__(self, files: Sequence[Path], column: str) -> None:
        self._files = tuple(files)
        self._column = column
        self._chunks: list[Any] = []
        self._lock = threading.Lock()
        self._read_files()

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_chunks", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _chunks=[], _lock=threading.Lock())

    def read(self, index: int) -> bytes:
        if not self._chunks:  # asked first without the lock, which a fork may have found locked
            with self._lock:
                if not self._chunks:
                    self._read_files()
        chunk = int(np.searchsorted(self._ends, index, side="right"))
        content: bytes = self._chunks[chunk][index - int(self._ends[chunk])].as_py()  # from its end: negative
        return content

    def _read_files(self) -> None:
        chunks = [chunk for file in self._files for chunk in _images(file, self._column)]
        self._ends = np.cumsum([len(chunk) for chunk in chunks], dtype=np.int64)
        self._chunks = chunks


def read_parquet(files: Sequence[Path], name: str) -> Dataset:
    """Parquet files, shards of one data set in this order, held in memory.

    The image column is a struct with `bytes`, or binary; the label column holds integers or text. Classes are named by
    the `huggingface` entry of the schema, else they are the labels that occur. Raises `ConfigError` for other columns,
    null images and labels, broken files, and where more than half of the free memory would be needed.
    """
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise MissingDependency("Parquet files are read with pyarrow: pip install 'sovit[train]'.") from error
    with _errors(files[0]):
        schema = _file(files[0]).schema_arrow
    features, where = _features(schema, files[0]), str(files[0])
    images = [field.name for field in schema if _is_image(field.type)]
    labels = [field.name for field in schema if _label_kind(field.type)]
    named = [column for column in labels if features.get(column)]
    image = choose_column("image", images, schema.names, where)
    label = choose_column("label", labels, schema.names, where, named)
    _check_files(files, schema, (image, label), features.get(label))
    _check_memory(files, image)
    labels_by_file = [_labels(file, label) for file in files]
    starts = np.cumsum([0, *map(len, labels_by_file)])

    def row(index: int) -> str:
        file = int(np.searchsorted(starts, index, side="right")) - 1
        return f"row {index - int(starts[file])} of {files[file]}"

    if not starts[-1]:
        raise ConfigError(f"{files[0]} has no rows; a data set needs images.")
    found = np.concatenate(labels_by_file)
    # A column of text comes as objects.
    targets, classes = index_labels(found.tolist() if found.dtype == object else found, features.get(label), row)
    return Dataset(name, ParquetImages(files, image), targets, classes)


@contextmanager
def _errors(file: Path) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise ConfigError(f"{file} is no Parquet file, or is truncated: {reason}.") from error


def _file(file: Path) -> Any:
    import pyarrow.parquet as pq

    return pq.ParquetFile(file)


def _is_image(kind: Any) -> bool:
    from pyarrow import types

    if types.is_struct(kind):
        names = [field.name for field in kind]
        return "bytes" in names and _is_image(kind.field("bytes").type)
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _label_kind(kind: Any) -> Literal["number", "text"] | None:
    from pyarrow import types

    if types.is_dictionary(kind):
        kind = kind.value_type
    if types.is_string(kind) or types.is_large_string(kind):
        return "text"
    return "number" if types.is_integer(kind) else None


def _features(schema: Any, file: Path) -> dict[str, list[str] | None]:
    """Class names of columns that Hugging Face's metadata knows; None for one that has no classes."""
    metadata = (schema.metadata or {}).get(b"huggingface")
    if metadata is None:
        return {}
    try:
        features = json.loads(metadata)["info"]["features"]
        found = {column: feature.get("names") for column, feature in features.items() if isinstance(feature, dict)}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{file}: the `huggingface` entry of the schema is not as Hugging Face writes it.") from error
    return {
        column: names if isinstance(names, list) and all(isinstance(name, str) for name in names) else None
        for column, names in found.items()
    }


def _check_files(files: Sequence[Path], schema: Any, columns: tuple[str, str], names: list[str] | None) -> None:
    """Shards agree on the two columns and on the classes."""
    image, label = columns
    for file in files:
        with _errors(file):
            other = _file(file).schema_arrow
        if image not in other.names or not _is_image(other.field(image).type):
            raise ConfigError(f"{file} has no column {image} of images, as {files[0]} has.")
        if label not in other.names or _label_kind(other.field(label).type) != _label_kind(schema.field(label).type):
            raise ConfigError(f"{file} has no column {label} of {schema.field(label).type}, as {files[0]} has.")
        if _features(other, file).get(label) != names:
            raise ConfigError(f"{file} names other classes than {files[0]}; shards of one data set share them.")


def _check_memory(files: Sequence[Path], column: str) -> None:
    needed = 0
    for file in files:
        with _errors(file):
            metadata = _file(file).metadata
        for group in map(metadata.row_group, range(metadata.num_row_groups)):
            leaves = map(group.column, range(group.num_columns))
            needed += sum(leaf.total_uncompressed_size for leaf in leaves if _leaf_of(leaf.path_in_schema, column))
    free = free_memory()
    if free is not None and needed > free / 2:
        raise ConfigError(
            f"{files[0].parent} takes {needed / 2**30:.1f} GiB of memory, more than half of the {free / 2**30:.1f} GiB "
            "that are free; write it as tar shards or as a folder of images instead."
        )


def _leaf_of(path: str, column: str) -> bool:
    return path in (column, f"{column}.bytes")


def _images(file: Path, column: str) -> list[Any]:
    """Binary arrays of one file."""
    import pyarrow.compute as pc
    from pyarrow import types

    chunks = []
    first = 0
    with _errors(file):
        opened = _file(file)
        struct = types.is_struct(opened.schema_arrow.field(column).type)
        for batch in opened.iter_batches(_BATCH, columns=[f"{column}.bytes" if struct else column]):
            chunk = batch.column(0)
            chunk = pc.struct_field(chunk, "bytes") if struct else chunk
            _check_nulls(chunk, file, first, column)
            first += len(chunk)
            if len(chunk):
                chunks.append(chunk)
    return chunks


def _labels(file: Path, column: str) -> NDArray[Any]:
    """Labels of one file, int64 or objects of text."""
    import pyarrow as pa
    from pyarrow import types

    with _errors(file):
        found = _file(file).read(columns=[column]).column(column)
        if types.is_dictionary(found.type):
            found = found.cast(found.type.value_type)
        _check_nulls(found, file, 0, column)
        whole: NDArray[Any] = (found.cast(pa.int64()) if types.is_integer(found.type) else found).to_numpy()
    return whole


def _check_nulls(values: Any, file: Path, first: int, column: str) -> None:
    if values.null_count:
        import pyarrow.compute as pc

        row = first + pc.index(pc.is_null(values), True).as_py()
        raise ConfigError(f"row {row} of {file} has no {column}: it is null; leave such rows out.")
