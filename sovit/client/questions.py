"""What can be asked about images, and how the reply about one image is read."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from sovit.errors import ConfigError, ServiceError
from sovit.predict import Classification, Prediction

T = TypeVar("T")
Embedding = NDArray[np.float32]

_FLOAT: Final = np.dtype("<f4")  # little-endian, whatever this machine is


@dataclass(frozen=True)
class Question(Generic[T]):
    """A route and its options. `read` makes an answer of an image's result and the whole reply.

    It raises `ValueError` where they have no form of ours.
    """

    path: str
    options: dict[str, str]
    read: Callable[[Any, Any], T]


def classify_question(top_k: int) -> Question[Classification]:
    """The best classes of each image."""
    if top_k < 1:
        raise ConfigError(f"top_k is {top_k}, it must be at least 1.")
    return Question("/classify", {"top_k": str(top_k)}, _classification)


def embed_question(normalize: bool) -> Question[Embedding]:
    """The embedding of each image, float32 [D]: as base64, which is exact and short."""
    options = {"normalize": "true" if normalize else "false", "encoding": "base64"}
    return Question("/embed", options, _embedding)


def stacked(rows: Sequence[Embedding], url: str) -> Embedding:
    """One array [B, D] of embeddings."""
    if len({row.shape for row in rows}) > 1:
        raise ServiceError(f"{url} gave embeddings of different lengths: its model changed meanwhile.")
    return np.stack(rows)


def _classification(result: Any, _: Any) -> Classification:
    match result:
        case {"predictions": [*predictions]}:
            return Classification(tuple(_prediction(prediction) for prediction in predictions))
    raise ValueError("a result without predictions")


def _prediction(prediction: Any) -> Prediction:
    match prediction:
        case {"label": str(label), "index": int(index), "score": float() | int() as score}:
            return Prediction(label, index, float(score))
    raise ValueError("a prediction without label, index and score")


def _embedding(result: Any, reply: Any) -> Embedding:
    match result:
        case {"embedding": str(text)}:
            content = b64decode(text, validate=True)
            if not content or reply.get("dim") != len(content) / _FLOAT.itemsize:
                raise ValueError("an embedding of another length than the reply's dim")
            return np.frombuffer(content, _FLOAT).astype(np.float32)
    raise ValueError("a result without an embedding in base64")
