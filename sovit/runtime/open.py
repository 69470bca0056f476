"""Choose a runtime by name and load an artifact into it. Engines are imported only when chosen."""

from __future__ import annotations

from sovit.artifact import Artifact
from sovit.errors import ConfigError
from sovit.runtime.base import Runtime

RUNTIMES = ("onnxruntime", "fake")


def open_runtime(artifact: Artifact, name: str = "onnxruntime", *, threads: int | None = None) -> Runtime:
    """Load a checked artifact into the runtime called `name`, with `threads` CPU threads (None: all cores)."""
    manifest = artifact.manifest
    if name == "onnxruntime":
        from sovit.runtime.ort import OnnxRuntime

        return OnnxRuntime(
            artifact.graph,
            precision=manifest.precision,
            inputs=manifest.inputs,
            outputs=manifest.outputs,
            threads=threads,
        )
    if name == "fake":
        from sovit.runtime.fake import FakeRuntime

        return FakeRuntime(manifest.model, precision=manifest.precision)
    raise ConfigError(f"no runtime is called {name!r}; known are {', '.join(RUNTIMES)}.")
