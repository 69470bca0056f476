"""sovit: shape-optimised vision transformers, from checkpoint to artifact to service.

import_checkpoint(source, folder) makes a checkpoint folder of a public one, load_model(folder) a torch module of a
checkpoint folder, load_artifact(folder) a `Predictor` of an artifact.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sovit.convert.foreign import ImportOptions
    from sovit.convert.importer import Imported
    from sovit.model import ViT
    from sovit.predict import Predictor

__version__ = "0.1.0"


def load_model(folder: str | Path, *, image_size: tuple[int, int] | None = None) -> ViT:
    """The torch module of a checkpoint folder: `out = model(image_BCYX)` has `.pre_logits` and `.logits`.

    Images are float32, normalised with the checkpoint's mean and std, of the checkpoint's size or of `image_size`
    (Y, X), for which the position embedding is resampled.
    """
    _need_torch("load_model")
    from sovit.checkpoint import load_model as load

    return load(folder, image_size=image_size)


def import_checkpoint(source: str | Path, folder: str | Path, options: ImportOptions | None = None) -> Imported:
    """Import a big_vision npz, a timm or transformers checkpoint or `hf:OWNER/NAME` into a checkpoint folder.

    See `sovit.convert.importer`; what `sovit convert` can be told is in `sovit.convert.foreign.ImportOptions`.
    """
    _need_torch("import_checkpoint")
    from sovit.convert.importer import import_checkpoint as run

    return run(source, folder, options)


def load_artifact(folder: str | Path, *, runtime: str = "auto", threads: int = 0) -> Predictor:
    """A `Predictor` of an artifact folder: `.classify(images, top_k=5)`, `.embed(images, normalize=True)`."""
    from sovit.predict import load_artifact as load

    return load(folder, runtime=runtime, threads=threads)


def _need_torch(caller: str) -> None:
    from sovit.errors import MissingDependency

    try:
        import torch  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingDependency(f"{caller} needs {error.name}: pip install 'sovit[convert]'.") from error


__all__ = ["__version__", "import_checkpoint", "load_artifact", "load_model"]
