"""OpenVINO on the CPU."""

from __future__ import annotations

import importlib.metadata
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from sovit.cache import cache_folder
from sovit.errors import ArtifactMismatch, ConfigError, MissingDependency, RuntimeFailure
from sovit.preprocess import Images
from sovit.runtime.mapped import release_mapped

if TYPE_CHECKING:
    from sovit.artifact import TensorInfo

# Where a CPU has bf16, OpenVINO computes fp32 graphs in it unless told not to: 5.6e-3 relative error for 1.4e-6.
_HINTS: Final = {"bf16": "bf16", "int8-bf16": "bf16", "fp8-bf16": "bf16"}
_KINDS: Final = {"uint8_t": "uint8", "u8": "uint8", "f32": "float32", "float": "float32"}


class OpenVinoRuntime:
    """One lane of a compiled graph. Lanes of one graph share its weights: see `open_openvino`."""

    name = "openvino"

    def __init__(self, compiled: Any, precision: str, input_name: str, outputs: Sequence[str]) -> None:
        self.precision = precision
        self._input = input_name
        self._outputs = list(outputs)
        self._request = compiled.create_infer_request()

    def run(self, image_BYXC: Images) -> dict[str, NDArray[np.float32]]:
        """See `Runtime.run`."""
        try:
            self._request.infer({self._input: np.ascontiguousarray(image_BYXC)}, share_inputs=True, share_outputs=True)
            # The tensors belong to the request and are written again by its next run.
            return {name: self._request.get_tensor(name).data.copy() for name in self._outputs}
        except RuntimeError as error:
            raise RuntimeFailure(f"OpenVINO failed: {_last_line(error)}.") from error

    def close(self) -> None:
        """See `Runtime.close`."""
        del self._request


def _import_openvino() -> Any:
    # When it is imported it reports that to its makers, and keeps an id in the user's home, unless this is missing.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        import openvino
    except ImportError as error:
        raise MissingDependency("openvino is not installed: pip install 'sovit[cpu]'.") from error
    return openvino


def open_openvino(
    graph: Path,
    *,
    precision: str,
    inputs: Sequence[TensorInfo],
    outputs: Sequence[TensorInfo],
    threads: int,
    lanes: int = 1,
    cache: Path | None = None,
) -> list[OpenVinoRuntime]:
    """Compile a graph once and give `lanes` lanes of it, each with `threads` CPU threads.

    With a `cache` folder the compiled graph is kept there, and the next start takes it from there.
    """
    openvino = _import_openvino()
    settings = {
        "INFERENCE_PRECISION_HINT": _HINTS.get(precision, "f32"),
        "NUM_STREAMS": lanes,
        "INFERENCE_NUM_THREADS": lanes * threads,
        "PERFORMANCE_HINT": "LATENCY" if lanes == 1 else "THROUGHPUT",
    }
    if cache is not None:
        settings["CACHE_DIR"] = str(cache)
    try:
        compiled = openvino.Core().compile_model(graph, "CPU", settings)
    except RuntimeError as error:
        raise ArtifactMismatch(f"OpenVINO cannot load {graph} ({precision}): {_last_line(error)}.") from error
    for declared, ports in ((inputs, compiled.inputs), (outputs, compiled.outputs)):
        actual = {
            name: (
                _KINDS.get(port.element_type.get_type_name()),
                tuple(port.partial_shape.to_string()[1:-1].split(",")[1:]),
            )
            for port in ports
            for name in port.names
        }
        for tensor in declared:
            if actual.get(tensor.name) != (tensor.dtype, tuple(str(side) for side in tensor.shape[1:])):
                raise ArtifactMismatch(f"{graph} has other inputs or outputs than the manifest declares.")
    found = [
        OpenVinoRuntime(compiled, precision, inputs[0].name, [output.name for output in outputs]) for _ in range(lanes)
    ]
    weights = graph.with_name(f"{graph.name}.data")
    if weights.is_file():
        # The first run packs the weights; the file's own pages are of no use then.
        found[0].run(np.zeros((1, *(int(side) for side in inputs[0].shape[1:])), np.uint8))
        for file in (weights, *(cache.glob("*.blob") if cache is not None else ())):
            release_mapped(file)
    return found


def compiled_folder(sha256: str, threads: int, lanes: int) -> Path | None:
    """Where the graph of one artifact, compiled for so many threads and lanes, is kept; None where that cannot be.

    OpenVINO knows what it keeps by the path and the time of the graph's file: each folder is for one thing only.
    """
    try:
        version = importlib.metadata.version("openvino")
        folder = cache_folder("openvino") / sha256[:16] / f"{version}-{threads}x{lanes}"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ConfigError):
        return None
    return folder if os.access(folder, os.W_OK) else None


def _last_line(error: Exception) -> str:
    """Its messages begin with source lines and end with what is wrong."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].rstrip(".")
