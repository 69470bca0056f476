"""The work that is the same in every peer: a JPEG's bytes to pixels, pixels to .npy files."""

from __future__ import annotations

import argparse
import io
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from sovit.artifact import open_artifact
from sovit.cores import available_cores
from sovit.errors import SoViTError
from sovit.predict import to_embeddings
from sovit.preprocess import Images
from sovit.runtime.open import open_lanes, setting_for

NPY: Final = "application/x-npy"


class Embedder:
    """Decodes, preprocesses and embeds as `sovit serve` does, in ONNX Runtime."""

    def __init__(self, artifact: str, threads: int) -> None:
        opened = open_artifact(artifact)
        self.decode = opened.manifest.preprocess
        self._runtime = open_lanes(opened, setting_for(opened, runtime="onnxruntime", threads=threads, lanes=1))[0]
        images, _ = opened.reference()
        self.embed(images[:1])

    def embed(self, images: Images) -> list[bytes]:
        """One .npy file for each image."""
        embeddings_BD = to_embeddings(self._runtime.run(images)["pre_logits"], normalize=True)
        return [_npy(embeddings_BD[row : row + 1]) for row in range(len(embeddings_BD))]


def parse_arguments(description: str | None) -> argparse.Namespace:
    """The command line that all of them share."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--workers", type=int, default=available_cores(), help="processes that hold the model")
    parser.add_argument("--threads", type=int, default=1, help="ONNX Runtime's, in each of them")
    arguments = parser.parse_args()
    try:
        open_artifact(arguments.artifact)  # before workers are started that would try and try again
    except SoViTError as error:
        parser.error(str(error))
    return arguments


def _npy(embedding_1D: NDArray[np.float32]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, embedding_1D)
    return buffer.getvalue()
