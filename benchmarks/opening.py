"""A model in any runtime that is measured: the engines that take artifacts, and PyTorch, which takes checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from sovit.artifact import Artifact, read_manifest
from sovit.runtime.base import Runtime
from sovit.runtime.open import open_runtime

COMPILED: Final = "torch-compile"
TORCH: Final = ("torch", COMPILED)


def open_any(artifact: Path, runtime: str, *, threads: int, checkpoint: str = "") -> Runtime:
    """A runtime by name, with so many CPU threads.

    The artifact's files are taken as they are: whoever starts many processes has checked them once.
    """
    manifest = read_manifest(artifact)
    if runtime not in TORCH:
        return open_runtime(Artifact(artifact, manifest), runtime, threads=threads)
    import torch

    from sovit.checkpoint import load_model
    from sovit.runtime.pytorch import TorchRuntime

    torch.set_num_threads(threads)
    opened = TorchRuntime(load_model(checkpoint), manifest.preprocess)
    if runtime == COMPILED:
        opened.graph.compile()
    return opened
