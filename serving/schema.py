"""Options in, replies out: the shapes of the HTTP contract."""

from __future__ import annotations

import io
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal, TypeVar

import numpy as np
import orjson
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sovit.errors import BadRequest, NotAcceptable, SoViTError
from sovit.jsonio import explain
from sovit.predict import DEFAULT_TOP_K, Classification

JSON = "application/json"
NPY = "application/x-npy"
PROBLEM = "application/problem+json"


class Options(BaseModel):
    """Options that both endpoints take."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = Field(None, description="Name of the model to use; the served one when left out.")
    on_error: Literal["request", "item"] = Field(
        "request",
        description="What one bad image does: fail the whole request, or only its own item in `results`.",
    )


class ClassifyOptions(Options):
    """Options of /classify."""

    top_k: int = Field(DEFAULT_TOP_K, ge=1, le=10_000, description="How many classes to return, best first.")


class EmbedOptions(Options):
    """Options of /embed."""

    normalize: bool = Field(True, description="Divide the embedding by its length.")
    encoding: Literal["json", "base64", "npy"] | None = Field(
        None,
        description="Form of the embeddings: numbers, base64 of little-endian float32, or one .npy file [B, D].",
    )


AnyOptions = TypeVar("AnyOptions", bound=Options)


def parse_options(kind: type[AnyOptions], query: Iterable[tuple[str, str]], body: Mapping[str, Any]) -> AnyOptions:
    """Merge options of the query string and of the body. One given twice, or unknown, is a `BadRequest`."""
    merged = dict(body)
    for name, value in query:
        if name in merged:
            raise BadRequest("an option is given twice.")
        merged[name] = value
    try:
        return kind.model_validate(merged)
    except ValidationError as error:
        raise BadRequest(f"{_clip(explain(error, tuple(kind.model_fields)))}.") from error


def _clip(text: str) -> str:
    """A field name comes from the client: keep a reply short and free of control characters whatever it was."""
    return "".join(character if character.isprintable() else "?" for character in text[:200])


def embedding_encoding(options: EmbedOptions, accept: str) -> Literal["json", "base64", "npy"]:
    """The reply's form: the option decides, else the Accept header. Raises `NotAcceptable`."""
    if options.encoding is not None:
        return options.encoding
    wanted = [part.split(";")[0].strip().lower() for part in accept.split(",")]
    for media_type in wanted:
        if media_type == NPY:
            return "npy"
        if media_type in ("", "*/*", "application/*", JSON):
            return "json"
    raise NotAcceptable(f"/embed replies in {JSON} or {NPY}.")


def check_accepts_json(accept: str) -> None:
    """Raise `NotAcceptable` when the client would not take JSON."""
    wanted = {part.split(";")[0].strip().lower() for part in accept.split(",")}
    if not wanted & {"", "*/*", "application/*", JSON}:
        raise NotAcceptable(f"/classify replies in {JSON}.")


def classify_reply(model: dict[str, Any], results: Sequence[Classification | SoViTError]) -> bytes:
    """JSON of the classifications, in the order of the images; an error takes the place of its item."""
    items = [_item_error(result) if isinstance(result, SoViTError) else asdict(result) for result in results]
    return orjson.dumps({"model": model, "results": items})


def embed_reply(
    model: dict[str, Any], results: Sequence[NDArray[np.float32] | SoViTError], *, dim: int, as_base64: bool
) -> bytes:
    """JSON of the embeddings, in the order of the images; an error takes the place of its item."""
    items = [
        _item_error(result)
        if isinstance(result, SoViTError)
        else {
            "embedding": b64encode(result.astype("<f4").tobytes()).decode()
            if as_base64
            else np.ascontiguousarray(result)
        }
        for result in results
    ]
    return orjson.dumps({"model": model, "dim": dim, "results": items}, option=orjson.OPT_SERIALIZE_NUMPY)


def npy_reply(embeddings: Sequence[NDArray[np.float32]]) -> bytes:
    """A .npy file of float32 [B, D]."""
    buffer = io.BytesIO()
    np.save(buffer, np.stack(embeddings))
    return buffer.getvalue()


def problem(error: SoViTError, request_id: str, items: Mapping[int, SoViTError] | None = None) -> bytes:
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
    return orjson.dumps(document)


def _item_error(error: SoViTError) -> dict[str, Any]:
    return {"error": {"status": error.status, "title": error.title, "detail": str(error)}}
