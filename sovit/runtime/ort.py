"""ONNX Runtime: on the CPU, and with its CUDA and TensorRT providers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from sovit.errors import ArtifactMismatch, MissingDependency, RuntimeFailure
from sovit.preprocess import Images

if TYPE_CHECKING:
    from sovit.artifact import TensorInfo

Name = Literal["onnxruntime", "onnxruntime-cuda", "onnxruntime-tensorrt"]
# The first provider is the one asked for; the others may take nodes that it has no kernel for.
_PROVIDERS: Final[dict[Name, list[tuple[str, dict[str, str]]]]] = {
    "onnxruntime": [("CPUExecutionProvider", {})],
    "onnxruntime-cuda": [("CUDAExecutionProvider", {"use_tf32": "0"}), ("CPUExecutionProvider", {})],
    "onnxruntime-tensorrt": [
        ("TensorrtExecutionProvider", {}),
        ("CUDAExecutionProvider", {"use_tf32": "0"}),
        ("CPUExecutionProvider", {}),
    ],
}


def _load() -> Any:
    # Without this it writes an id of the machine to disk when it is imported, and reports what it is used for.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependency("onnxruntime is not installed: pip install 'sovit[cpu]' (or [gpu]).") from error
    return onnxruntime


def has_provider(name: Name) -> bool:
    """Whether the installed ONNX Runtime was built with what a runtime of ours needs."""
    try:
        onnxruntime = _load()
    except MissingDependency:
        return False
    return _PROVIDERS[name][0][0] in onnxruntime.get_available_providers()


class OnnxRuntime:
    """A graph in one of ONNX Runtime's providers. `threads` are the CPU's; on a GPU they do next to nothing.

    Raises `MissingDependency` where the provider is not there: ONNX Runtime alone would fall back to the CPU silently.
    """

    def __init__(
        self,
        graph: Path,
        *,
        precision: str,
        inputs: Sequence[TensorInfo],
        outputs: Sequence[TensorInfo],
        name: Name = "onnxruntime",
        threads: int,
    ) -> None:
        onnxruntime = _load()
        self.name: str = name
        self.precision = precision
        provider = _PROVIDERS[name][0][0]
        if name != "onnxruntime":
            onnxruntime.preload_dlls()  # CUDA's libraries where pip has put them
        if not has_provider(name):
            raise MissingDependency(
                f"this onnxruntime has no {provider}: on a machine with an NVIDIA GPU, pip install 'sovit[gpu]' (and "
                "uninstall onnxruntime, which owns the same module)."
            )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._input = inputs[0].name
        self._outputs = [output.name for output in outputs]
        # The package has no common base for its errors: what the border must catch is named by no public type.
        try:
            self._session = onnxruntime.InferenceSession(str(graph), options, providers=_PROVIDERS[name])
        except Exception as error:
            raise ArtifactMismatch(
                f"ONNX Runtime cannot load {graph} ({precision}) with {provider}: {_first_line(error)}."
            ) from error
        if self._session.get_providers()[0] != provider:
            raise MissingDependency(
                f"ONNX Runtime could not start {provider} and fell back to {self._session.get_providers()[0]}: check "
                "the driver and the CUDA libraries it was built for."
            )
        self._check(graph, inputs, self._session.get_inputs())
        self._check(graph, outputs, self._session.get_outputs())

    def run(self, image_BYXC: Images) -> dict[str, NDArray[np.float32]]:
        """See `Runtime.run`."""
        try:
            values = self._session.run(self._outputs, {self._input: np.asarray(image_BYXC)})
        except Exception as error:
            raise RuntimeFailure(f"ONNX Runtime failed: {_first_line(error)}.") from error
        return dict(zip(self._outputs, values, strict=True))

    @staticmethod
    def _check(graph: Path, declared: Sequence[TensorInfo], found: Sequence[Any]) -> None:
        """A graph of another model than the manifest's is refused when it is loaded, not when it is run."""
        kinds = {"tensor(uint8)": "uint8", "tensor(float)": "float32"}
        actual = [(node.name, kinds.get(node.type), tuple(node.shape[1:])) for node in found]
        if actual != [(tensor.name, tensor.dtype, tensor.shape[1:]) for tensor in declared]:
            raise ArtifactMismatch(f"{graph} has other inputs or outputs than the manifest declares.")

    def close(self) -> None:
        """See `Runtime.close`."""
        del self._session


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
