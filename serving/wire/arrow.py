"""Results as an Arrow IPC stream: one record batch, one row for each image in order.

A row of an image that failed has nulls in place of its result, and its `status` and `error`.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import nanoarrow
import numpy as np
from nanoarrow import ipc
from numpy.typing import NDArray

from serving.wire.schema import DType
from sovit.errors import SoViTError
from sovit.predict import Classification

_FLOATS: Any = {"float32": nanoarrow.float32, "float16": nanoarrow.float16}


def embedding_stream(rows: Sequence[NDArray[Any] | SoViTError], dim: int, dtype: DType) -> bytes:
    """`embedding` fixed_size_list<float>[dim]."""
    empty_D = np.zeros(dim, dtype)
    values = np.concatenate([empty_D if isinstance(row, SoViTError) else row for row in rows])
    kind = nanoarrow.fixed_size_list(_FLOATS[dtype](), dim)
    return _stream(rows, {"embedding": (kind, [], _FLOATS[dtype](), values)})


def classification_stream(rows: Sequence[Classification | SoViTError], dtype: DType) -> bytes:
    """`label` list<string>, `index` list<int32> and `score` list<float>: the best classes, best first."""
    lengths = [0 if isinstance(row, SoViTError) else len(row.predictions) for row in rows]
    offsets = np.array([0, *accumulate(lengths)], np.int32)
    best = [one for row in rows if not isinstance(row, SoViTError) for one in row.predictions]
    columns = {
        "label": (nanoarrow.string(), [one.label for one in best]),
        "index": (nanoarrow.int32(), np.array([one.index for one in best], np.int32)),
        "score": (_FLOATS[dtype](), np.array([one.score for one in best], dtype)),
    }
    return _stream(
        rows, {name: (nanoarrow.list_(kind), [offsets], kind, values) for name, (kind, values) in columns.items()}
    )


def _stream(rows: Sequence[object], columns: dict[str, tuple[Any, list[NDArray[Any]], Any, Any]]) -> bytes:
    """One record batch. A column is its kind, the buffers beside its validity, and the kind and values of its items."""
    count = len(rows)
    errors = [row if isinstance(row, SoViTError) else None for row in rows]
    valid = np.packbits([error is None for error in errors], bitorder="little")
    fields = {name: kind for name, (kind, _, _, _) in columns.items()}
    children = [
        nanoarrow.c_array_from_buffers(kind, count, [valid, *buffers], children=[_items(item, values)])
        for kind, buffers, item, values in columns.values()
    ]
    fields |= {"status": nanoarrow.int32(), "error": nanoarrow.string()}
    children.append(nanoarrow.c_array([error and error.status for error in errors], nanoarrow.int32()))
    children.append(nanoarrow.c_array([error and str(error) for error in errors], nanoarrow.string()))
    batch = nanoarrow.c_array_from_buffers(nanoarrow.struct(fields), count, [None], children=children)
    out = io.BytesIO()
    with ipc.StreamWriter.from_writable(out) as writer:
        writer.write_stream(nanoarrow.c_array_stream(batch))
    return out.getvalue()


def _items(kind: Any, values: Any) -> Any:
    if isinstance(values, np.ndarray):
        return nanoarrow.c_array_from_buffers(kind, len(values), [None, values])
    return nanoarrow.c_array(values, kind)
