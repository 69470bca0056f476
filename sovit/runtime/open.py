"""Choose a runtime by name, by measurement or by default, and load an artifact into it.

Engines are imported only when chosen.
"""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from typing import Any, Final, get_args

from sovit.artifact import Artifact, Precision
from sovit.cores import available_cores
from sovit.errors import ConfigError, MissingDependency
from sovit.machine import this_machine
from sovit.runtime.base import Runtime
from sovit.runtime.ort import Name as OrtName
from sovit.runtime.ort import has_provider
from sovit.runtime.profile import AUTO, Goal, Setting, tuned_setting
from sovit.runtime.tensorrt.library import LIBRARIES

RUNTIMES: Final = (AUTO, *get_args(OrtName), "openvino", *LIBRARIES, "fake")
# The other one builds its engine anew at every start, which takes minutes.
_ORT_ON_GPU: Final[tuple[OrtName, ...]] = ("onnxruntime-cuda", "onnxruntime-tensorrt")
ON_GPU: Final = (*LIBRARIES, *_ORT_ON_GPU)

# Which runtimes compute what on a CPU, the faster first: ONNX Runtime has no bf16 products.
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
        names = " or ".join(_ON_CPU[precision])
        raise MissingDependency(f"{precision} needs {names} for its parity check: pip install {_ON_CPU[precision][0]}.")
    return found


def installed_runtimes(artifact: Artifact) -> list[str]:
    """The runtimes that can take an artifact here, the likely fastest first: the GPU's, or without one the CPU's."""
    if this_machine().gpu:
        from sovit.runtime.tensorrt.runtime import is_compiled

        if compiled := [name for name, library in LIBRARIES.items() if is_compiled(artifact, library)]:
            return [*compiled, *(name for name in _ORT_ON_GPU if has_provider(name))]
        if on_gpu := [name for name in _ORT_ON_GPU if has_provider(name)]:
            return [*on_gpu]
    return parity_runtimes(artifact.manifest.precision)


def setting_for(
    artifact: Artifact, goal: Goal = "latency", *, runtime: str = AUTO, threads: int = 0, lanes: int = 0, batch: int = 0
) -> Setting:
    """How to run an artifact here: what is asked for, and what is left open (`auto`, 0) as `sovit tune` measured it.

    Where nothing was tuned: the first of `installed_runtimes`, one lane, all cores.
    """
    if runtime not in RUNTIMES:
        raise unknown_runtime(runtime)
    found = tuned_setting(artifact, goal, runtime=runtime, threads=threads, lanes=lanes)
    if found is None:
        name = installed_runtimes(artifact)[0] if runtime == AUTO else runtime
        lanes = lanes or 1
        found = Setting(runtime=name, threads=threads or max(1, available_cores() // lanes), lanes=lanes)
    return replace(found, batch=batch) if batch else found


def open_runtime(artifact: Artifact, name: str = AUTO, *, threads: int = 0) -> Runtime:
    """Load a checked artifact into one lane of the runtime called `name`, with `threads` CPU threads (0: choose)."""
    return open_lanes(artifact, setting_for(artifact, runtime=name, threads=threads, lanes=1))[0]


def open_lanes(artifact: Artifact, setting: Setting, *, keep_compiled: bool = False) -> list[Runtime]:
    """As many runtimes as the setting has lanes, which may run side by side.

    With `keep_compiled` an engine that can do so keeps what it compiled in this machine's cache, for the next start.

    Raises `ConfigError` for an unknown name, `MissingDependency` where the engine or its device is not there, and
    `ArtifactMismatch` for a graph the engine cannot take.
    """
    manifest, name, lanes = artifact.manifest, setting.runtime, setting.lanes
    declared: dict[str, Any] = {
        "precision": manifest.precision, "inputs": manifest.inputs, "outputs": manifest.outputs,
    }  # fmt: skip
    if name in get_args(OrtName):
        from sovit.runtime.ort import OnnxRuntime

        return [OnnxRuntime(artifact.graph, name=name, threads=setting.threads, **declared) for _ in range(lanes)]  # type: ignore[arg-type]
    if name == "openvino":
        from sovit.runtime.openvino import compiled_folder, open_openvino

        cache = compiled_folder(artifact.sha256, setting.threads, lanes) if keep_compiled else None
        return [*open_openvino(artifact.graph, threads=setting.threads, lanes=lanes, cache=cache, **declared)]
    if name in LIBRARIES:
        from sovit.runtime.tensorrt.runtime import open_tensorrt

        return [*open_tensorrt(artifact, LIBRARIES[name], lanes=lanes)]
    if name == "fake":
        from sovit.runtime.fake import FakeRuntime

        return [FakeRuntime(manifest.model, precision=manifest.precision) for _ in range(lanes)]
    raise unknown_runtime(name)


def is_compiled(artifact: Artifact, setting: Setting) -> bool:
    """Whether `open_lanes` with `keep_compiled` finds something to take from this machine's cache."""
    if setting.runtime != "openvino":
        return False
    from sovit.runtime.openvino import compiled_folder

    folder = compiled_folder(artifact.sha256, setting.threads, setting.lanes)
    return folder is not None and any(folder.glob("*.blob"))


def unknown_runtime(name: str) -> ConfigError:
    """The error for a name that no runtime has. The stand-in of the tests is no engine to offer."""
    known = ", ".join(runtime for runtime in RUNTIMES if runtime != "fake")
    return ConfigError(f"no runtime is called {name!r}; known are {known} (torch runs checkpoints, not artifacts).")
