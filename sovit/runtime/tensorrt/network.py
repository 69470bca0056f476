"""An artifact's ONNX graph as a TensorRT network, and what is decided about its attention.

TensorRT computes attention in one fused kernel or falls apart into products and a softmax. Asked to keep it whole
(`decomposable` False) it refuses to build where it has no kernel: that is how it is known what is fused, without a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from sovit.artifact import Artifact
from sovit.errors import MissingDependency, RuntimeFailure
from sovit.runtime.tensorrt.library import Library, log_of

Part = Literal["blocks", "map_head"]  # of the model, whose attentions are all alike
Fusion = Literal["fused", "fused fp8", "not fused"]
_FP8_STEP: Final = 1 / 448  # of probabilities: the largest is 1, and 448 the largest fp8


@dataclass(frozen=True)
class AttentionPlan:
    """What is asked of the attentions: which parts must be fused, and whether those of the blocks take fp8 values."""

    fused: frozenset[Part]
    fp8: bool = False

    def of(self, part: Part) -> Fusion:
        """What a part's attention becomes under this plan."""
        if part not in self.fused:
            return "not fused"
        return "fused fp8" if self.fp8 and part == "blocks" else "fused"


def attention_plans(artifact: Artifact) -> list[AttentionPlan]:
    """What to try, the best first; the last is taken whatever the kernels are.

    Attention in float32 has no fused kernel, and the int8 of CPUs has no attention as one node.
    """
    parts = model_parts(artifact)
    everything: frozenset[Part] = frozenset(parts)
    nothing: frozenset[Part] = frozenset()
    if artifact.manifest.precision in ("fp32", "int8"):
        return [AttentionPlan(nothing)]
    fused = [everything, *(frozenset({part}) for part in parts if len(parts) > 1)]
    plans = [*map(AttentionPlan, fused), AttentionPlan(nothing)]
    if _quantizes_attention(artifact):
        plans[:0] = [AttentionPlan(parts_fused, fp8=True) for parts_fused in fused if "blocks" in parts_fused]
    return plans


def model_parts(artifact: Artifact) -> list[Part]:
    """The parts of a model that have attention."""
    return ["blocks", "map_head"] if artifact.manifest.model.pool == "map" else ["blocks"]


def parse(trt: Any, library: Library, network: Any, artifact: Artifact, plan: AttentionPlan) -> list[Any]:
    """Read the graph into a network under a plan. Returns what must outlive the build.

    Weights outside the ONNX file are found beside it. Raises `RuntimeFailure` with the parser's reason.
    """
    parser = trt.OnnxParser(network, log_of(trt))  # owns what it parsed
    path = artifact.graph
    content = _rewritten(path, plain_attention=not plan.fp8 and _quantizes_attention(artifact))
    read = parser.parse_from_file(str(path)) if content is None else parser.parse(content, str(path))
    if not read:
        raise RuntimeFailure(f"{library.title} cannot read {path}: {_first_error(parser)}.")
    kept: list[Any] = [parser]
    for part, attention in _attentions(trt, network, artifact):
        kept.append(_decide(trt, network, attention, part, plan))
    return kept


def _decide(trt: Any, network: Any, attention: Any, part: Part, plan: AttentionPlan) -> NDArray[np.float32]:
    """Set one attention as the plan says. ONNX has no word for a softmax in fp8: its step is set here."""
    attention.decomposable = part not in plan.fused
    step = np.array([_FP8_STEP], np.float32)  # the network refers to it until it is built
    if plan.fp8 and part == "blocks":
        scale = network.add_constant((), trt.Weights(trt.float32, step.ctypes.data, 1)).get_output(0)
        attention.normalization_quantize_to_type = trt.DataType.FP8
        attention.normalization_quantize_scale = network.add_cast(scale, trt.DataType.BF16).get_output(0)
    return step


def _first_error(parser: Any) -> str:
    """The first thing the parser objects to, with the node it is about."""
    if not parser.num_errors:
        return "it gave no reason"
    error = parser.get_error(0)
    if "Plugin not found" in error.desc():  # what it says of an operator that it does not know
        return f"it does not know the operator {error.node_operator()} (node {error.node_name()})"
    words = (str(error.desc()).strip().splitlines() or ["it gave no reason"])[0].rstrip(".")
    node = getattr(error, "node_name", lambda: "")()
    operator = getattr(error, "node_operator", lambda: "")()
    at = f" (node {node or operator})" if node or operator else ""
    more = f", and {parser.num_errors - 1} more" if parser.num_errors > 1 else ""
    return f"{words}{at}{more}"


def _attentions(trt: Any, network: Any, artifact: Artifact) -> Iterator[tuple[Part, Any]]:
    """Each attention with the part it belongs to, in the order of the graph: the blocks come first."""
    number = 0
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type == trt.LayerType.ATTENTION_INPUT:
            layer.__class__ = trt.IAttentionInputLayer  # get_layer gives the base class
            yield ("blocks" if number < artifact.manifest.model.depth else "map_head"), layer.attention
            number += 1


def _quantizes_attention(artifact: Artifact) -> bool:
    """Whether the graph quantises what the blocks' attention takes."""
    return artifact.manifest.precision == "fp8-bf16" and _holds(artifact.graph, b"blocks.0.attn.q.scale")


def _rewritten(path: Path, *, plain_attention: bool) -> bytes | None:
    """The graph as TensorRT takes it, without the weights outside it; None where that is the file itself.

    Older artifacts set `softmax_precision` on Attention, which the parser refuses; no runtime that takes it computes
    anything else without it (docs/adr/0011). With `plain_attention` attention takes its inputs as they were before they
    were quantised.
    """
    if not plain_attention and not _holds(path, b"softmax_precision"):
        return None
    try:
        import onnx
    except ImportError as error:
        raise MissingDependency(
            "onnx is not installed, and this graph must be rewritten for TensorRT: pip install onnx."
        ) from error
    model = onnx.load(str(path), load_external_data=False)
    made_by = {name: node for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        if node.op_type != "Attention":
            continue
        kept = [attribute for attribute in node.attribute if attribute.name != "softmax_precision"]
        del node.attribute[:]
        node.attribute.extend(kept)
        if plain_attention:
            for index, name in enumerate(node.input):
                before = made_by.get(name)
                if before is not None and before.op_type == "DequantizeLinear":
                    node.input[index] = made_by[before.input[0]].input[0]
    return bytes(model.SerializeToString())


def _holds(path: Path, text: bytes) -> bool:
    """Whether a graph's file, whose large weights lie beside it, holds some bytes."""
    return text in path.read_bytes()
