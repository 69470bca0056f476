"""OpenAI's embeddings API, for images: what its clients send by default is answered as they expect it.

An item of `input` is a data URI, or `{"image": base64 or data URI}`. Embeddings have length 1, as theirs have.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Final, Literal

import orjson
from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.requests import Request
from starlette.responses import Response

from serving.inference.model import ServedModel
from serving.inference.models import UnknownModel
from serving.road import Asked, answer, enter_key
from serving.wire.body import MAX_FIELDS, count_images, decode_base64, load_json
from serving.wire.replies import ErrorReply, Reply, Results, base64_rows, rows
from serving.wire.schema import JSON, clip
from serving.worker import Worker
from sovit.cost import cost
from sovit.errors import BadRequest, RateLimited, Refused, SoViTError, Unauthorized
from sovit.jsonio import explain
from sovit.predict import to_embeddings

_NESTED: Final = 8  # lists and objects of a body besides its images
_CLIENTS_FAULT: Final = range(400, 500)


class _Embeddings(BaseModel):
    """The fields of a request. `user` is for the caller's own bookkeeping."""

    model_config = ConfigDict(extra="forbid", strict=True)

    input: Any
    model: str
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    user: str | None = None


class WrongParameter(BadRequest):
    """A field of the body that cannot be taken; `param` names it."""

    def __init__(self, message: str, param: str) -> None:
        super().__init__(message)
        self.param = param


async def embeddings(request: Request, worker: Worker) -> Response:
    """`POST /v1/embeddings`."""
    use = enter_key(request, worker)
    return await answer(request, worker, use, partial(_parse, worker.config.max_images), model=None)


async def models(request: Request, worker: Worker) -> Response:
    """`GET /v1/models`."""
    enter_key(request, worker)
    return Response(
        orjson.dumps({"object": "list", "data": [_card(model) for model in worker.models]}), media_type=JSON
    )


async def model(request: Request, worker: Worker) -> Response:
    """`GET /v1/models/NAME`."""
    enter_key(request, worker)
    return Response(orjson.dumps(_card(worker.models.find(request.path_params["model"]))), media_type=JSON)


def write_error(error: SoViTError, request_id: str, items: Mapping[int, SoViTError]) -> ErrorReply:
    """An error as OpenAI writes it; their clients show its message."""
    kind = "invalid_request_error" if error.status in _CLIENTS_FAULT else "server_error"
    if isinstance(error, Unauthorized):
        kind = "authentication_error"
    elif isinstance(error, Refused):
        kind = "rate_limit_error" if isinstance(error, RateLimited) else "overloaded_error"
    status, code, param = error.status, None, getattr(error, "param", None)
    if isinstance(error, UnknownModel):
        status, code, param = 404, "model_not_found", "model"
    elif items:
        code, param = "invalid_image", f"input[{next(iter(items))}]"
    message = f"{error} (request {request_id})"
    body = {"error": {"message": message, "type": kind, "param": param, "code": code}}
    return ErrorReply(status, orjson.dumps(body), JSON)


def _parse(most: int, content: bytes) -> Asked:
    fields = load_json(content, most, max_nested=most + _NESTED, max_fields=most + MAX_FIELDS)
    try:
        asked = _Embeddings.model_validate(fields)
    except ValidationError as error:
        where = clip(str(error.errors(include_url=False, include_input=False)[0]["loc"][0]))
        raise WrongParameter(f"{clip(explain(error, tuple(_Embeddings.model_fields)))}.", where) from error
    given = asked.input if isinstance(asked.input, list) else [asked.input]
    if not given:
        raise WrongParameter("input is an empty list; send at least one image.", "input")
    count_images(given, most)
    images = [_image(item, index) for index, item in enumerate(given)]
    return Asked(
        images,
        partial(_write, asked.encoding_format),
        model=asked.model,
        check=partial(_check_dimensions, asked.dimensions),
    )


def _check_dimensions(dimensions: int | None, model: ServedModel) -> None:
    dim = model.spec.model.width
    if dimensions not in (None, dim):
        raise WrongParameter(
            f"dimensions is not {dim}, the length of this model's embeddings: it was not trained to be cut short. "
            "Leave dimensions out.",
            "dimensions",
        )


def _image(item: object, index: int) -> bytes:
    if isinstance(item, dict) and set(item) == {"image"}:
        content = decode_base64(item["image"], index)
    elif isinstance(item, str) and item[:5].lower() == "data:":
        content = decode_base64(item, index)
    elif isinstance(item, str) and item[:8].lower().startswith(("http://", "https://")):
        raise WrongParameter(
            f"input {index} is a URL, and this service fetches none; send the image as a data URI.", f"input[{index}]"
        )
    else:
        raise WrongParameter(
            f'input {index} is no image: send a data URI with ;base64, or {{"image": "<base64>"}}. '
            "This service embeds images, not text.",
            f"input[{index}]",
        )
    if not content:
        raise WrongParameter(f"input {index} is an empty image (0 bytes).", f"input[{index}]")
    return content


def _write(encoding: str, model: ServedModel, results: Results) -> Reply:
    embeddings_BD = to_embeddings(rows(results, "pre_logits"), normalize=True)
    vectors: list[Any] = base64_rows(embeddings_BD, "float32") if encoding == "base64" else list(embeddings_BD)
    tokens = len(vectors) * cost(model.spec.model).tokens
    body = {
        "object": "list",
        "data": [{"object": "embedding", "index": index, "embedding": vector} for index, vector in enumerate(vectors)],
        "model": model.name,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
    return Reply(orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY), JSON)


def _card(served: ServedModel) -> dict[str, object]:
    return {"id": served.name, "object": "model", "created": 0, "owned_by": "sovit"}
