"""ONNX Runtime on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sovit.cores import available_cores
from sovit.errors import ArtifactMismatch, ConfigError, MissingDependency, RuntimeFailure


class OnnxRuntime:
    """A graph in ONNX Runtime's CPU provider. `threads` None takes all cores."""

    name = "onnxruntime"

    def __init__(
        self,
        graph: Path,
        *,
        precision: str,
        input_name: str,
        output_names: Sequence[str],
        threads: int | None = None,
    ) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise MissingDependency("onnxruntime is not installed: pip install 'sovit[cpu]' (or [gpu]).") from error
        if threads is not None and threads < 1:
            raise ConfigError(f"threads is {threads}, it must be at least 1.")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or available_cores()
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self.precision = precision
        self._input = input_name
        self._outputs = list(output_names)
        # The package has no common base for its errors: what the border must catch is named by no public type.
        try:
            self._session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise ArtifactMismatch(f"ONNX Runtime cannot load {graph}: {_first_line(error)}.") from error

    def run(self, image_BYXC: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """See `Runtime.run`."""
        try:
            values = self._session.run(self._outputs, {self._input: image_BYXC})
        except Exception as error:
            raise RuntimeFailure(f"ONNX Runtime failed: {_first_line(error)}.") from error
        return dict(zip(self._outputs, values, strict=True))

    def close(self) -> None:
        """See `Runtime.close`."""
        del self._session


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
