"""Replies out: results and problems in the forms of the HTTP contract."""

from __future__ import annotations

import io
import math
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple

import numpy as np
import orjson
from numpy.typing import NDArray

from serving.inference.model import ServedModel
from serving.wire.schema import MEDIA_TYPES, ClassifyOptions, DType, EmbedOptions, Encoding
from sovit.errors import SoViTError
from sovit.predict import to_classifications, to_embeddings, to_scores

PROBLEM: Final = "application/problem+json"
Floats = NDArray[np.float32]
Results = Sequence[Mapping[str, Floats] | SoViTError]  # one for each image: its outputs, or its error


class Reply(NamedTuple):
    """A body, its media type, and headers of its own."""

    content: bytes
    media_type: str
    headers: Mapping[str, str] | None = None


def classify_reply(model: ServedModel, results: Results, options: ClassifyOptions, encoding: Encoding) -> Reply:
    """Classifications in the order of the images; an error takes the place of its item."""
    spec = model.spec
    logits_BL = rows(results, "logits")
    if encoding in ("npy", "base64"):
        scores_BL = to_scores(logits_BL, spec.score)
        if encoding == "npy":
            return _npy(scores_BL, options.dtype)
        items: list[Any] = [{"scores": text} for text in base64_rows(scores_BL, options.dtype)]
    else:
        found = to_classifications(logits_BL, spec.labels, spec.score, options.top_k)
        if encoding == "arrow":
            from serving.wire.arrow import classification_stream

            return Reply(classification_stream(_places(results, found), options.dtype), MEDIA_TYPES["arrow"])
        narrow = np.dtype(options.dtype).type
        items = [
            {
                "predictions": [
                    {"label": one.label, "index": one.index, "score": float(narrow(one.score))}
                    for one in classification.predictions
                ]
            }
            for classification in found
        ]
    return _json({"model": model.summary, "results": _places(results, items)})


def embed_reply(model: ServedModel, results: Results, options: EmbedOptions, encoding: Encoding) -> Reply:
    """Embeddings in the order of the images; an error takes the place of its item."""
    embeddings_BD = to_embeddings(rows(results, "pre_logits"), options.normalize)
    if encoding == "npy":
        return _npy(embeddings_BD, options.dtype)
    dim = model.spec.model.width
    if encoding == "arrow":
        from serving.wire.arrow import embedding_stream

        narrow_BD = embeddings_BD.astype(options.dtype)
        return Reply(embedding_stream(_places(results, list(narrow_BD)), dim, options.dtype), MEDIA_TYPES["arrow"])
    if encoding == "base64":
        items: list[Any] = [{"embedding": text} for text in base64_rows(embeddings_BD, options.dtype)]
    else:
        items = [{"embedding": embedding_D} for embedding_D in embeddings_BD.astype(options.dtype)]
    return _json({"model": model.summary, "dim": dim, "results": _places(results, items)})


class RejectedImages(SoViTError):
    """Some images of a request could not be used; `items` says which and why."""

    def __init__(self, items: Mapping[int, SoViTError]) -> None:
        # The request takes its images' status; of several the largest, so that no fault of ours hides behind theirs.
        worst = max(items.values(), key=lambda item: item.status)
        self.status, self.title = worst.status, worst.title
        self.items = items
        index, first = next(iter(items.items()))
        super().__init__(f"image {index}: {first}")


class ErrorReply(NamedTuple):
    """An error in the form of a face."""

    status: int
    content: bytes
    media_type: str


WriteError = Callable[[SoViTError, str, Mapping[int, SoViTError]], ErrorReply]  # the error, a request id, its items


def problem(error: SoViTError, request_id: str, items: Mapping[int, SoViTError]) -> ErrorReply:
    """An RFC 9457 problem document. `items` are the errors of single images, by index."""
    document: dict[str, Any] = {
        "type": f"urn:sovit:problem:{error.title.lower().replace(' ', '-')}",
        "title": error.title,
        "status": error.status,
        "detail": str(error),
        "instance": f"urn:request:{request_id}",
    }
    if items:
        document["errors"] = [{"index": index, **_item_error(item)["error"]} for index, item in items.items()]
    retry_after = getattr(error, "retry_after", None)
    if retry_after is not None:
        document["retry_after_seconds"] = retry_after
    return ErrorReply(error.status, orjson.dumps(document), PROBLEM)


def rows(results: Results, name: str) -> Floats:
    """One output of all images that have a result, [B, ...]."""
    found = [result[name] for result in results if not isinstance(result, SoViTError)]
    return np.stack(found) if found else np.empty((0, 1), np.float32)


def _places(results: Results, items: Sequence[Any]) -> list[Any]:
    """The items in their places among the errors. What is no image of the model's keeps its error."""
    found = iter(items)
    return [result if isinstance(result, SoViTError) else next(found) for result in results]


def _json(document: dict[str, Any]) -> Reply:
    document["results"] = [_item_error(item) if isinstance(item, SoViTError) else item for item in document["results"]]
    return Reply(orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY), MEDIA_TYPES["json"])


def base64_rows(values_BK: Floats, dtype: DType) -> list[str]:
    """Each row as base64 of its little-endian numbers."""
    little = np.dtype(dtype).newbyteorder("<")
    return [b64encode(values_K.astype(little).tobytes()).decode() for values_K in values_BK]


def _npy(values_BK: Floats, dtype: DType) -> Reply:
    values = values_BK.astype(np.dtype(dtype).newbyteorder("<"), copy=False)
    return Reply(_npy_header(values.shape, dtype) + values.tobytes(), MEDIA_TYPES["npy"])


@lru_cache(maxsize=1024)
def _npy_header(shape: tuple[int, ...], dtype: DType) -> bytes:
    """What comes before the numbers in a .npy file: numpy itself takes longer to write it than we to answer."""
    buffer = io.BytesIO()
    np.save(buffer, np.empty(shape, np.dtype(dtype).newbyteorder("<")))
    content = buffer.getvalue()
    return content[: len(content) - math.prod(shape) * np.dtype(dtype).itemsize]


def _item_error(error: SoViTError) -> dict[str, Any]:
    return {"error": {"status": error.status, "title": error.title, "detail": str(error)}}
