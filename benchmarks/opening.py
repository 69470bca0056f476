"""A model in any runtime that is measured: the engines that take artifacts, and PyTorch, which takes checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from sovit.artifact import Artifact, read_manifest
from sovit.runtime.base import Runtime
from sovit.runtime.open import ON_GPU, open_runtime

# PyTorch by name: the device, and whether it is compiled.
TORCH: Final[dict[str, tuple[str, bool]]] = {
    "torch": ("cpu", False),
    "torch-compile": ("cpu", True),
    "torch-cuda": ("cuda", False),
    "torch-cuda-compile": ("cuda", True),
}
# What PyTorch computes: it takes no quantised artifact.
TORCH_PRECISIONS: Final = ("fp32", "fp16", "bf16")


def is_compiled(runtime: str) -> bool:
    """Whether the first run of a runtime compiles it."""
    return TORCH.get(runtime, ("", False))[1]


def is_on_gpu(runtime: str) -> bool:
    """Whether a runtime computes on a GPU."""
    return runtime in ON_GPU or TORCH.get(runtime, ("cpu", False))[0] != "cpu"


def open_any(artifact: Path, runtime: str, *, threads: int, checkpoint: str = "") -> Runtime:
    """A runtime by name, with so many CPU threads, in the artifact's precision.

    The artifact's files are taken as they are: whoever starts many processes has checked them once.
    """
    manifest = read_manifest(artifact)
    if runtime not in TORCH:
        return open_runtime(Artifact(artifact, manifest), runtime, threads=threads)
    import torch

    from sovit.checkpoint import load_model
    from sovit.runtime.pytorch import TorchRuntime

    device, compiled = TORCH[runtime]
    torch.set_num_threads(threads)
    torch.backends.cudnn.allow_tf32 = False  # fp32 means fp32, in the patch embedding too
    opened = TorchRuntime(load_model(checkpoint), manifest.preprocess, device=device, precision=manifest.precision)
    if compiled:
        opened.graph.compile(dynamic=False)  # every batch size for itself, as an engine compiles them
    return opened
