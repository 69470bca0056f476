"""A model's matrix products alone, as a graph of its own: what any fp32 runtime has to do at least.

Every dense product of the tokens at its own size, one after the other, each with weights of its own, so that they come
from memory as the model's do; nothing between them. Of a MAP head that is keys and values: what it does for its one
query, less than a thousandth of the whole, is left out. With `attention` the two products of every head as well: their
operands are the dense product's values read in another order, which costs nothing and has the right sizes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper

from export.builder import GraphBuilder
from export.graph import IR_VERSION, OPSET
from sovit.artifact import INPUT, TensorInfo
from sovit.config import ViTConfig

OUTPUT: Final = "pre_logits"


def write_products(path: Path, config: ViTConfig, *, attention: bool) -> None:
    """Write the graph: uint8 images [B, Y, X, C] in, as the model takes them, and a float32 [B, D] out."""
    graph = GraphBuilder()
    rng = np.random.default_rng(0)

    def product(x: str, name: str, inputs: int, outputs: int, size: float = 1.0) -> str:
        weight: NDArray[Any] = rng.standard_normal((inputs, outputs), np.float32) * np.float32(size * inputs**-0.5)
        return graph.node("MatMul", x, graph.constant(name, weight))

    width, mlp_dim, heads, head_dim = config.width, config.mlp_dim, config.num_heads, config.head_dim
    side = [config.patch_size] * 2
    kernel = rng.standard_normal((width, 3, *side), np.float32) * np.float32(1e-3)
    pixels = graph.node("Transpose", graph.node("Cast", INPUT, to=TensorProto.FLOAT), perm=[0, 3, 1, 2])
    x = graph.node("Conv", pixels, graph.constant("patch_embed", kernel), strides=side, kernel_shape=side)
    x = graph.node("Reshape", x, graph.constant("shape.0_D_N", [0, width, -1]))
    x = graph.node("Transpose", x, perm=[0, 2, 1])
    rows = graph.constant("shape.0_H_N_K", [0, heads, -1, head_dim])
    columns = graph.constant("shape.0_H_K_N", [0, heads, head_dim, -1])
    for index in range(config.depth):
        q, k, v = graph.split(product(x, f"{index}.qkv", width, 3 * width), 3)
        size = 1.0
        if attention:
            scores = graph.node("MatMul", graph.node("Reshape", q, rows), graph.node("Reshape", k, columns))
            y = graph.node("MatMul", scores, graph.node("Reshape", v, rows))
            x = graph.node("Reshape", y, graph.constant("shape.0_N_D", [0, -1, width]))
            size = (head_dim * config.num_tokens) ** -0.5  # values keep their size from block to block
        else:
            x = q
        x = product(x, f"{index}.proj", width, width, size)
        x = product(product(x, f"{index}.fc1", width, mlp_dim), f"{index}.fc2", mlp_dim, width)
    if config.pool == "map":
        x, _ = graph.split(product(x, "map.kv", width, 2 * width), 2)
    graph.node("ReduceMean", x, graph.constant("axis.1", [1]), keepdims=0, output=OUTPUT)
    image, output = declared(config)
    graph.save(
        path,
        [helper.make_tensor_value_info(image.name, TensorProto.UINT8, image.shape)],
        [helper.make_tensor_value_info(output.name, TensorProto.FLOAT, output.shape)],
        opset=OPSET,
        ir_version=IR_VERSION,
    )


def declared(config: ViTConfig) -> tuple[TensorInfo, TensorInfo]:
    """The input and the output of that graph."""
    return (
        TensorInfo(name=INPUT, dtype="uint8", shape=("B", *config.image_size, 3)),
        TensorInfo(name=OUTPUT, dtype="float32", shape=("B", config.width)),
    )
