"""sovit: shape-optimised vision transformers, from checkpoint to artifact to service.

load_model(folder) gives a torch module of a checkpoint folder, load_artifact(folder) a `Predictor` of an artifact.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sovit.model import ViT
    from sovit.predict import Predictor

__version__ = "0.1.0"


def load_model(folder: str | Path, *, image_size: tuple[int, int] | None = None) -> ViT:
    """The torch module of a checkpoint folder: `out = model(image_BCYX)` has `.pre_logits` and `.logits`.

    Images are float32, normalised with the checkpoint's mean and std, of the checkpoint's size or of `image_size`
    (Y, X), for which the position embedding is resampled.
    """
    from sovit.errors import MissingDependency

    try:
        from sovit.checkpoint import load_model as load
        from sovit.model import ViT  # noqa: F401  (fails here, with a sentence, where torch is missing)
    except ModuleNotFoundError as error:
        raise MissingDependency(f"load_model needs {error.name}: pip install 'sovit[train]'.") from error
    return load(folder, image_size=image_size)


def load_artifact(folder: str | Path, *, runtime: str = "onnxruntime", threads: int | None = None) -> Predictor:
    """A `Predictor` of an artifact folder: `.classify(images, top_k=5)`, `.embed(images, normalize=True)`."""
    from sovit.predict import load_artifact as load

    return load(folder, runtime=runtime, threads=threads)


__all__ = ["__version__", "load_artifact", "load_model"]
