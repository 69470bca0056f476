"""Images to predictions in three steps: preprocess, run, head."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from sovit.artifact import open_artifact
from sovit.decode import DecodeOptions, ImageSource
from sovit.errors import ConfigError, RuntimeFailure
from sovit.runtime.base import Runtime
from sovit.runtime.open import open_lanes, setting_for
from sovit.runtime.profile import AUTO
from sovit.spec import ModelSpec, Score

DEFAULT_TOP_K: Final = 5
_TINY: Final = np.finfo(np.float32).tiny


@dataclass(frozen=True)
class Prediction:
    """One class with its score."""

    label: str
    index: int
    score: float


@dataclass(frozen=True)
class Classification:
    """The best classes of one image, best first."""

    predictions: tuple[Prediction, ...]


class Predictor:
    """A model ready to take images."""

    def __init__(self, runtime: Runtime, spec: ModelSpec, *, batch_size: int = 8) -> None:
        self.runtime = runtime
        self.spec = spec
        self.batch_size = batch_size
        self.decode = DecodeOptions()

    def classify(self, images: Sequence[ImageSource], top_k: int = DEFAULT_TOP_K) -> list[Classification]:
        """The `top_k` classes of each image. Raises `ConfigError` when the model has no head."""
        if not self.spec.model.num_classes:
            raise ConfigError("this model has no classification head; it only embeds.")
        return [
            classification
            for outputs in self._run(images)
            for classification in to_classifications(outputs["logits"], self.spec.labels, self.spec.score, top_k)
        ]

    def embed(self, images: Sequence[ImageSource], normalize: bool = True) -> NDArray[np.float32]:
        """Embeddings, float32 [B, D], of length 1 unless `normalize` is False."""
        embeddings = [to_embeddings(outputs["pre_logits"], normalize) for outputs in self._run(images)]
        return np.concatenate(embeddings) if embeddings else np.empty((0, self.spec.model.width), np.float32)

    def close(self) -> None:
        """Free the runtime."""
        self.runtime.close()

    def _run(self, images: Sequence[ImageSource]) -> Iterator[dict[str, NDArray[np.float32]]]:
        if isinstance(images, (str, bytes, Path)):
            raise ConfigError("pass a list of images, even for one: predictor.classify([image]).")
        for start in range(0, len(images), self.batch_size):
            batch = [self.spec.preprocess(image, self.decode) for image in images[start : start + self.batch_size]]
            outputs = self.runtime.run(batch)
            if not all(np.isfinite(values).all() for values in outputs.values()):
                raise RuntimeFailure("the model's outputs are not finite: its weights or its preprocessing are broken.")
            yield outputs


def load_artifact(folder: str | Path, *, runtime: str = AUTO, threads: int = 0) -> Predictor:
    """Open and verify an artifact folder and load it: into the runtime and with the threads that are best here."""
    artifact = open_artifact(folder)
    setting = setting_for(artifact, runtime=runtime, threads=threads, lanes=1)
    return Predictor(open_lanes(artifact, setting)[0], artifact.manifest, batch_size=setting.batch)


def load_checkpoint(folder: str | Path) -> Predictor:
    """Load a checkpoint folder into PyTorch."""
    from sovit.checkpoint import load_model, read_config
    from sovit.runtime.pytorch import TorchRuntime

    spec = read_config(Path(folder))
    return Predictor(TorchRuntime(load_model(folder), spec.preprocess), spec)


def to_classifications(
    logits_BL: NDArray[np.float32], labels: Sequence[str], score: Score, top_k: int
) -> list[Classification]:
    """Scores in 0..1 and the best `top_k` classes; more than there are classes gives all of them."""
    if top_k < 1:
        raise ConfigError(f"top_k is {top_k}, it must be at least 1.")
    scores_BL = to_scores(logits_BL, score)
    # Equal scores keep the order of the classes, so that a reply does not depend on the sort's mood.
    best_BK = np.argsort(-logits_BL, axis=1, kind="stable")[:, :top_k]
    return [
        Classification(tuple(Prediction(labels[i], int(i), float(scores_L[i])) for i in best_K))
        for scores_L, best_K in zip(scores_BL, best_BK, strict=True)
    ]


def to_scores(logits_BL: NDArray[np.float32], score: Score) -> NDArray[np.float32]:
    """Softmax over classes, or a sigmoid for each."""
    if score == "sigmoid":
        # The tanh form cannot overflow.
        return 0.5 * (1 + np.tanh(0.5 * logits_BL))  # type: ignore[no-any-return]
    exponentials = np.exp(logits_BL - logits_BL.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)  # type: ignore[no-any-return]


def to_embeddings(pre_logits_BD: NDArray[np.float32], normalize: bool) -> NDArray[np.float32]:
    """The user's vector: pooled features, divided by their length unless told otherwise."""
    if not normalize:
        return pre_logits_BD
    length_B1 = np.sqrt(np.einsum("bd,bd->b", pre_logits_BD, pre_logits_BD))[:, None]
    return pre_logits_BD / np.maximum(length_B1, _TINY)  # type: ignore[no-any-return]
