"""Writes an ONNX graph node by node, and its weights straight from their arrays to a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

Array = NDArray[Any]

# protobuf stops at 2 GiB; and weights in a file of their own are mapped by the runtimes instead of copied.
EXTERNAL_BYTES: Final = 64 * 2**20
_PAGE: Final = 4096
_SMALL: Final = 1024  # stays in the graph: shapes, scales, zero points


class GraphBuilder:
    """Collects nodes and constants. Every method that adds a node returns the name of its output."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, Array] = {}
        self._count = 0

    def node(self, kind: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """Add a node with one output."""
        name = output or self._name(kind)
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def split(self, value: str, parts: int) -> list[str]:
        """Split the last axis of a [B, N, D] value into equal parts."""
        names = [self._name("Split") for _ in range(parts)]
        self.nodes.append(helper.make_node("Split", [value], names, name=names[0], axis=2, num_outputs=parts))
        return names

    def constant(self, name: str, value: Array | list[int]) -> str:
        """A constant by name; asked for again it is the same one. A list becomes int64."""
        if name not in self._constants:
            self._constants[name] = np.array(value, np.int64) if isinstance(value, list) else np.asarray(value)
        return name

    def save(
        self,
        path: Path,
        inputs: Sequence[onnx.ValueInfoProto],
        outputs: Sequence[onnx.ValueInfoProto],
        *,
        opset: int,
        ir_version: int,
    ) -> None:
        """Write the model; constants of any size go to `<path>.data` when they are large together."""
        external = sum(array.nbytes for array in self._constants.values()) > EXTERNAL_BYTES
        graph = helper.make_graph(self.nodes, "sovit", inputs, outputs)
        if external:
            with Path(f"{path}.data").open("wb") as stream:
                for name, array in self._constants.items():
                    if array.nbytes <= _SMALL:
                        graph.initializer.append(_tensor(name, array))
                        continue
                    offset = -(-stream.tell() // _PAGE) * _PAGE  # runtimes map whole pages
                    stream.seek(offset)
                    stream.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
                    graph.initializer.append(_external(name, array, f"{path.name}.data", offset))
        else:
            graph.initializer.extend(_tensor(name, array) for name, array in self._constants.items())
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version, producer_name="sovit"
        )
        path.write_bytes(model.SerializeToString(deterministic=True))

    def _name(self, kind: str) -> str:
        self._count += 1
        return f"{kind}_{self._count}"


def _tensor(name: str, array: Array) -> onnx.TensorProto:
    return helper.make_tensor(name, _data_type(array), array.shape, np.ascontiguousarray(array).tobytes(), raw=True)


def _external(name: str, array: Array, location: str, offset: int) -> onnx.TensorProto:
    tensor = TensorProto(name=name, data_type=_data_type(array), dims=array.shape, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", offset), ("length", array.nbytes)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def _data_type(array: Array) -> int:
    return int(helper.np_dtype_to_tensor_dtype(array.dtype))
