"""Choose a runtime by name and load an artifact into it. Engines are imported only when chosen."""

from __future__ import annotations

import importlib.util
from typing import Any, Final, get_args

from sovit.artifact import Artifact, Precision
from sovit.cores import available_cores
from sovit.errors import ConfigError, MissingDependency
from sovit.runtime.base import Runtime
from sovit.runtime.ort import Name as OrtName

AUTO: Final = "auto"
RUNTIMES: Final = (AUTO, *get_args(OrtName), "openvino", "tensorrt", "fake")


# Which runtimes compute what on a CPU: ONNX Runtime has no bf16 products.
_ON_CPU: Final[dict[str, tuple[str, ...]]] = {
    "fp32": ("onnxruntime", "openvino"),
    "fp16": ("onnxruntime", "openvino"),
    "bf16": ("openvino",),
    "int8": ("openvino", "onnxruntime"),
    "int8-bf16": ("openvino",),
    "fp8-bf16": ("openvino",),
}


def parity_runtimes(precision: Precision) -> list[str]:
    """The installed runtimes that compute a precision on a CPU, the better first. Raises `MissingDependency`."""
    found = [name for name in _ON_CPU[precision] if importlib.util.find_spec(name) is not None]
    if not found:
        raise MissingDependency(f"{precision} needs {' or '.join(_ON_CPU[precision])} here: pip install 'sovit[cpu]'.")
    return found


def open_runtime(artifact: Artifact, name: str = AUTO, *, threads: int | None = None) -> Runtime:
    """Load a checked artifact into the runtime called `name`, with `threads` CPU threads (None: all cores).

    `auto` is the first of `parity_runtimes`.
    """
    return open_lanes(artifact, name, threads=threads)[0]


def open_lanes(artifact: Artifact, name: str, *, threads: int | None = None, lanes: int = 1) -> list[Runtime]:
    """`lanes` runtimes that may run side by side, with `threads` CPU threads each (None: the cores divided).

    Raises `ConfigError` for an unknown name, `MissingDependency` where the engine or its device is not there, and
    `ArtifactMismatch` for a graph the engine cannot take.
    """
    if lanes < 1:
        raise ConfigError(f"lanes is {lanes}, it must be at least 1.")
    manifest = artifact.manifest
    if name == AUTO:
        name = parity_runtimes(manifest.precision)[0]
    declared: dict[str, Any] = {
        "precision": manifest.precision, "inputs": manifest.inputs, "outputs": manifest.outputs,
    }  # fmt: skip
    if name in get_args(OrtName):
        from sovit.runtime.ort import OnnxRuntime

        share = threads or max(1, available_cores() // lanes)
        return [OnnxRuntime(artifact.graph, name=name, threads=share, **declared) for _ in range(lanes)]  # type: ignore[arg-type]
    if name == "openvino":
        from sovit.runtime.openvino import open_openvino

        return [*open_openvino(artifact.graph, threads=threads, lanes=lanes, **declared)]
    if name == "fake":
        from sovit.runtime.fake import FakeRuntime

        return [FakeRuntime(manifest.model, precision=manifest.precision) for _ in range(lanes)]
    raise ConfigError(f"no runtime is called {name!r}; known are {', '.join(RUNTIMES)}.")
