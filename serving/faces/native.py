"""Our own language: `POST /classify` and `POST /embed`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from serving.inference.model import ServedModel
from serving.road import Asked, answer, enter_key, require_logits
from serving.wire.body import is_raw, parse_body
from serving.wire.head import accept_header, content_type_header, query_fields
from serving.wire.replies import Reply, Results, classify_reply, embed_reply
from serving.wire.schema import AnyOptions, ClassifyOptions, EmbedOptions, Encoding, accepted_encoding, parse_options
from serving.worker import Worker

_MakeReply = Callable[[ServedModel, Results, Any, Encoding], Reply]


async def classify(request: Request, worker: Worker) -> Response:
    """`POST /classify`."""
    return await _answer(request, worker, ClassifyOptions, classify_reply, check=require_logits)


async def embed(request: Request, worker: Worker) -> Response:
    """`POST /embed`."""
    return await _answer(request, worker, EmbedOptions, embed_reply)


async def _answer(request: Request, worker: Worker, kind: type[AnyOptions], reply: _MakeReply, **how: Any) -> Response:
    use = enter_key(request, worker)
    content_type, accept = content_type_header(request), accept_header(request)
    query = query_fields(request)
    parse = partial(_parse, kind, reply, query, content_type, accept, worker.config.max_images)
    model = next((value for name, value in query if name == "model"), None)
    return await answer(request, worker, use, parse, model=model, in_thread=not is_raw(content_type), **how)


def _parse(
    kind: type[AnyOptions],
    reply: _MakeReply,
    query: list[tuple[str, str]],
    content_type: str,
    accept: str,
    max_images: int,
    content: bytes,
) -> Asked:
    body = parse_body(content_type, content, max_images)
    options = parse_options(kind, query, body.options)
    encoding = options.encoding or accepted_encoding(accept)
    return Asked(
        images=body.images,
        write=lambda model, results: reply(model, results, options, encoding),
        model=options.model,
        each_alone=options.on_error == "item" and encoding != "npy",  # an array has no place for an error
    )
