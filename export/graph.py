"""The ONNX graph of a ViT, written node by node.

    image [B, Y, X, C] uint8 -> Cast, Transpose, Conv -> [B, N, D] -> blocks -> pooling -> pre_logits, logits

The model has a dozen kinds of nodes, so nothing is traced: the batch is dynamic by construction, attention is one node
on [B, N, D] without a transpose, and every element type is chosen here. `tests/test_graph.py` counts the operators of a
block; the parity check of every export compares the result with the torch module. Folded into the weights are: the
normalisation of pixels (into the patch embedding), LayerScale, 1 / sqrt(K) of attention (into the queries), and the
query of the MAP head, which is a constant.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import ml_dtypes
import numpy as np
from onnx import TensorProto, helper

from export.builder import Array, GraphBuilder
from sovit.artifact import INPUT, OPSETS, Precision, TensorInfo
from sovit.config import ViTConfig
from sovit.preprocess import Preprocess

OPSET: Final = OPSETS[-1]  # 23 is the first with Attention; Gelu is in since 20
IR_VERSION: Final = 11
MAP_HEAD: Final = "map_head"
Rest = Literal["fp32", "fp16", "bf16"]
Products = Literal["fp32", "fp16", "bf16", "int8", "fp8"]

_NUMPY: Final[dict[str, Any]] = {
    "fp32": np.float32, "fp16": np.float16, "bf16": ml_dtypes.bfloat16, "int8": np.int8,
    "fp8": ml_dtypes.float8_e4m3fn,
}  # fmt: skip
_ONNX: Final[dict[str, int]] = {
    "fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16,
}  # fmt: skip
_LARGEST: Final[dict[str, float]] = {"int8": 127.0, "fp8": 448.0}


@dataclass(frozen=True)
class Types:
    """Element types of a graph: those of the matrix products, and those of all the rest."""

    products: Products
    rest: Rest

    @classmethod
    def of(cls, precision: Precision) -> Types:
        """`int8-bf16`: products in int8, the rest in bf16; `bf16`: all in bf16; `int8`: the rest in fp32."""
        products, _, rest = precision.partition("-")
        default = "fp32" if products in _LARGEST else products
        return cls(products, rest or default)  # type: ignore[arg-type]

    @property
    def quantized(self) -> bool:
        """Whether products are taken of quantised values."""
        return self.products in _LARGEST


def write_graph(
    path: Path,
    config: ViTConfig,
    weights: Mapping[str, Array],
    preprocess: Preprocess,
    precision: Precision,
    outputs: Sequence[TensorInfo],
    ranges: Mapping[str, float] | None = None,
) -> None:
    """Write the graph of a model whose float32 `weights` have the torch module's names, with these outputs.

    `ranges` are the largest absolute values of activations, by the name of the layer that takes them, and of each
    block's `attn.q`, `attn.k` and `attn.v`. A quantised precision quantises what has a range.
    """
    builder = GraphBuilder()
    _ViTGraph(builder, config, weights, Types.of(precision), ranges or {}).write(
        preprocess, tokens=any(tensor.name == "tokens" for tensor in outputs)
    )
    size_y, size_x = config.image_size
    inputs = [helper.make_tensor_value_info(INPUT, TensorProto.UINT8, ["B", size_y, size_x, 3])]
    declared = [helper.make_tensor_value_info(tensor.name, TensorProto.FLOAT, tensor.shape) for tensor in outputs]
    builder.save(path, inputs, declared, opset=OPSET, ir_version=IR_VERSION)


class _ViTGraph:
    """The layers, in the order and with the names of `sovit.model`."""

    def __init__(
        self,
        builder: GraphBuilder,
        config: ViTConfig,
        weights: Mapping[str, Array],
        types: Types,
        ranges: Mapping[str, float],
    ) -> None:
        self._graph = builder
        self._config = config
        self._weights = weights
        self._types = types
        self._ranges = ranges
        self._wide: dict[str, str] = {}  # values of which there is a float32 one, by name

    def write(self, preprocess: Preprocess, *, tokens: bool) -> None:
        """All of it, from the input to the outputs."""
        graph, config = self._graph, self._config
        x_BND = self._embed(preprocess)
        for index in range(config.depth):
            x_BND = self._block(x_BND, f"blocks.{index}")
        if not config.fc_norm:
            x_BND = self._norm(x_BND, "norm", narrow=config.pool == "map")
        if tokens:
            graph.node("Identity", self._widen(x_BND), output="tokens")
        x_BD = self._pool(x_BND)
        if config.fc_norm:
            x_BD = self._norm(x_BD, "norm", narrow=False)
        graph.node("Identity", x_BD, output="pre_logits")
        if config.num_classes:
            # Few parameters, and what the user reads: never quantised.
            weight, bias = self._weights["head.weight"], self._weights["head.bias"]
            product = graph.node("MatMul", x_BD, graph.constant("head.weight", weight.T))
            graph.node("Add", product, graph.constant("head.bias", bias), output="logits")

    def _embed(self, preprocess: Preprocess) -> str:
        graph, config = self._graph, self._config
        weight, bias = self._weights["patch_embed.weight"], self._weights["patch_embed.bias"]
        # conv(W, (x / 255 - mean) / std) = conv(W / (255 std), x) + b - sum(W mean / std)
        std, mean = (np.array(values)[:, None, None] for values in (preprocess.std, preprocess.mean))
        folded = (weight / (255 * std)).astype(np.float32)
        shift = (bias - (weight * (mean / std)).sum(axis=(1, 2, 3))).astype(np.float32)
        pixels = graph.node("Cast", INPUT, to=TensorProto.FLOAT)
        pixels = graph.node("Transpose", pixels, perm=[0, 3, 1, 2])
        side = [config.patch_size] * 2
        x = graph.node(
            "Conv", pixels, graph.constant("patch_embed.weight", folded), graph.constant("patch_embed.bias", shift),
            strides=side, kernel_shape=side,
        )  # fmt: skip
        x = graph.node("Reshape", x, graph.constant("shape.0_D_N", [0, config.width, -1]))
        x = graph.node("Transpose", x, perm=[0, 2, 1])
        x = graph.node("Add", x, graph.constant("pos_embed", self._weights["pos_embed"]))
        prefix = [self._weights[name] for name in ("cls", "registers") if name in self._weights]
        if prefix:
            x = graph.node("Concat", self._expand("prefix", np.concatenate(prefix, axis=1), x), x, axis=1)
        return self._narrow(x)

    def _block(self, x_BND: str, name: str) -> str:
        graph = self._graph
        y = self._norm(x_BND, f"{name}.norm1")
        q, k, v = graph.split(self._linear(y, f"{name}.attn.qkv", first=self._query_scale), 3)
        y = self._linear(self._attention(q, k, v, f"{name}.attn"), f"{name}.attn.proj", scale=f"{name}.ls1.gamma")
        x_BND = graph.node("Add", x_BND, y)
        y = self._mlp(self._norm(x_BND, f"{name}.norm2"), f"{name}.mlp", scale=f"{name}.ls2.gamma")
        return graph.node("Add", x_BND, y)

    def _pool(self, x_BND: str) -> str:
        """[B, N, D] to [B, D] in float32."""
        graph, config = self._graph, self._config
        if config.pool == "tok":
            token = graph.node("Gather", x_BND, graph.constant("index.0", np.array(0)), axis=1)
            return self._widen(self._as(x_BND, token))
        if config.num_prefix_tokens:
            start, end = [config.num_prefix_tokens], [np.iinfo(np.int64).max]
            names = ("start", start), ("end", end), ("axis.1", [1])
            limits = (graph.constant(f"patches.{name}", value) for name, value in names)
            x_BND = self._as(x_BND, graph.node("Slice", x_BND, *limits))
        if config.pool == "gap":
            return graph.node("ReduceMean", self._widen(x_BND), graph.constant("axis.1", [1]), keepdims=0)
        return self._map_head(x_BND, MAP_HEAD)

    def _map_head(self, x_BND: str, name: str) -> str:
        graph, weights = self._graph, self._weights
        query = weights[f"{name}.probe"] @ weights[f"{name}.q.weight"].T + weights[f"{name}.q.bias"]
        query = query * np.float32(self._query_scale)
        q = self._expand(f"{name}.query", query.astype(_NUMPY[self._types.rest]), x_BND)
        k, v = graph.split(self._linear(x_BND, f"{name}.kv"), 2)
        y = self._widen(self._linear(self._attention(q, k, v, name), f"{name}.proj"))
        x = graph.node("Add", y, self._widen(self._mlp(self._norm(y, f"{name}.norm"), f"{name}.mlp")))
        return graph.node("Reshape", x, graph.constant("shape.0_D", [0, self._config.width]))

    def _mlp(self, x_BND: str, name: str, scale: str = "") -> str:
        # GELU in float32: its tail is where half precision loses most.
        hidden = self._widen(self._linear(x_BND, f"{name}.fc1"))
        approximate = {"erf": "none", "tanh": "tanh"}[self._config.gelu]
        hidden = self._narrow(self._note_wide(self._graph.node("Gelu", hidden, approximate=approximate)))
        return self._linear(hidden, f"{name}.fc2", scale=scale)

    def _norm(self, x: str, name: str, *, narrow: bool = True) -> str:
        graph = self._graph
        gain = graph.constant(f"{name}.weight", self._weights[f"{name}.weight"])
        shift = graph.constant(f"{name}.bias", self._weights[f"{name}.bias"])
        y = graph.node("LayerNormalization", self._widen(x), gain, shift, axis=-1, epsilon=self._config.layer_norm_eps)
        self._note_wide(y)
        return self._narrow(y) if narrow else y

    def _attention(self, q_BND: str, k_BND: str, v_BND: str, name: str) -> str:
        graph, heads = self._graph, self._config.num_heads
        if self._types == Types("int8", "fp32") and f"{name}.q" in self._ranges:
            return self._quantized_attention(q_BND, k_BND, v_BND, name)
        if self._types.products == "fp8" and f"{name}.q" in self._ranges and name != MAP_HEAD:
            # GPUs that fuse attention in fp8 take all three so; others read past this (runtime/tensorrt/network.py).
            q_BND = self._quantize(q_BND, f"{name}.q", self._query_scale)
            k_BND, v_BND = self._quantize(k_BND, f"{name}.k"), self._quantize(v_BND, f"{name}.v")
        # No softmax_precision: runtimes compute the same without it, and TensorRT refuses it (docs/adr/0011).
        return graph.node("Attention", q_BND, k_BND, v_BND, q_num_heads=heads, kv_num_heads=heads, scale=1.0)

    def _quantized_attention(self, q_BND: str, k_BND: str, v_BND: str, name: str) -> str:
        """Attention in its parts, so that a CPU runtime can take q, k and v as int8; probabilities stay float32."""
        graph, config = self._graph, self._config

        def heads(value: str, part: str, perm: list[int], scale: float = 1.0) -> str:
            shape = graph.constant("shape.0_N_H_K", [0, -1, config.num_heads, config.head_dim])
            return self._quantize(
                graph.node("Transpose", graph.node("Reshape", value, shape), perm=perm), f"{name}.{part}", scale
            )

        q = heads(q_BND, "q", [0, 2, 1, 3], self._query_scale)
        k, v = heads(k_BND, "k", [0, 2, 3, 1]), heads(v_BND, "v", [0, 2, 1, 3])
        y = graph.node("MatMul", graph.node("Softmax", graph.node("MatMul", q, k), axis=-1), v)
        shape = graph.constant("shape.0_N_D", [0, -1, config.width])
        return graph.node("Reshape", graph.node("Transpose", y, perm=[0, 2, 1, 3]), shape)

    def _linear(self, x_BND: str, name: str, scale: str = "", first: float = 1.0) -> str:
        """A dense layer, with LayerScale's factors folded in where the model has them.

        `first` multiplies the first third of the outputs, the queries.
        """
        graph, rest = self._graph, _NUMPY[self._types.rest]
        weight, bias = self._weights[f"{name}.weight"], self._weights.get(f"{name}.bias")
        if first != 1.0:
            factors = np.ones(len(weight), np.float32)
            factors[: len(weight) // 3] = first
            weight, bias = weight * factors[:, None], None if bias is None else bias * factors
        if scale in self._weights:
            weight = weight * self._weights[scale][:, None]
            bias = None if bias is None else bias * self._weights[scale]
        if self._types.quantized and name in self._ranges:
            product = graph.node("MatMul", self._quantize(x_BND, name), self._quantized_weight(name, weight))
        else:
            product = graph.node("MatMul", x_BND, graph.constant(f"{name}.weight", weight.T.astype(rest, copy=False)))
        if bias is None:
            return product
        return graph.node("Add", product, graph.constant(f"{name}.bias", bias.astype(rest, copy=False)))

    @property
    def _query_scale(self) -> float:
        """1 / sqrt(K), folded into the queries' weights: no runtime multiplies scores, or rounds the factor."""
        return float(self._config.head_dim**-0.5)

    def _quantize(self, x: str, name: str, factor: float = 1.0) -> str:
        """An activation through the quantised type, one scale for all of it."""
        graph, kind = self._graph, self._types.products
        scale = graph.constant(f"{name}.scale", self._scale(np.asarray(self._ranges[name] * factor)))
        zero = graph.constant(f"zero.{kind}", np.zeros((), _NUMPY[kind]))
        return graph.node("DequantizeLinear", graph.node("QuantizeLinear", x, scale, zero), scale, zero)

    def _quantized_weight(self, name: str, weight_FD: Array) -> str:
        """A weight in the quantised type: one scale for each output in int8, one for all in fp8."""
        graph, kind = self._graph, self._types.products
        largest = np.abs(weight_FD).max(axis=1 if kind == "int8" else None)
        scale = self._scale(largest)
        scaled_DF = weight_FD.T / scale.astype(np.float32)
        limit = _LARGEST[kind]
        values = np.clip(np.rint(scaled_DF) if kind == "int8" else scaled_DF, -limit, limit).astype(_NUMPY[kind])
        parts = (
            graph.constant(f"{name}.weight", values),
            graph.constant(f"{name}.weight.scale", scale),
            graph.constant(f"{name}.weight.zero", np.zeros(scale.shape, _NUMPY[kind])),
        )
        axis: dict[str, Any] = {"axis": 1} if kind == "int8" else {}
        return graph.node("DequantizeLinear", *parts, **axis)

    def _scale(self, largest: Array) -> Array:
        """Step sizes in the type of the rest; what is quantised here must round as the runtime's values will."""
        step = np.maximum(largest.astype(np.float32), np.finfo(np.float32).tiny * 1e6) / _LARGEST[self._types.products]
        return step.astype(_NUMPY[self._types.rest])

    def _expand(self, name: str, value_1ND: Array, like: str) -> str:
        """A constant [1, N, D] for every image of the batch."""
        graph = self._graph
        batch = graph.node("Shape", like, start=0, end=1)
        shape = graph.node("Concat", batch, graph.constant(f"{name}.shape", list(value_1ND.shape[1:])), axis=0)
        return graph.node("Expand", graph.constant(name, value_1ND), shape)

    def _note_wide(self, x: str) -> str:
        self._wide[x] = x
        return x

    def _as(self, x: str, part: str) -> str:
        """A part of a value has its type."""
        return self._note_wide(part) if self._wide.get(x) == x else part

    def _widen(self, x: str) -> str:
        if self._types.rest == "fp32" or x in self._wide:
            return self._wide.get(x, x)
        return self._note_wide(self._graph.node("Cast", x, to=TensorProto.FLOAT))

    def _narrow(self, x: str) -> str:
        if self._types.rest == "fp32":
            return x
        narrow = self._graph.node("Cast", x, to=_ONNX[self._types.rest])
        self._wide[narrow] = x
        return narrow
