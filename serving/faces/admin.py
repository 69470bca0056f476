"""What those who run the service may change while it runs: which artifact a name stands for."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Final

import orjson
from pydantic import ConfigDict
from starlette.requests import Request
from starlette.responses import Response

from serving.inference.model import ServedModel
from serving.inference.store import STORE
from serving.observing.record import record_of
from serving.process.scratch import remember_artifact
from serving.wire.body import load_json, read_limited
from serving.wire.schema import JSON
from serving.worker import Worker
from sovit.errors import BadRequest, ConfigError, Forbidden, SoViTError
from sovit.jsonio import STRICT, from_dict

logger = logging.getLogger(__name__)

_MOST_BYTES: Final = 65_536
_SECONDS: Final = 10.0


@dataclass(frozen=True)
class _Wish:
    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    artifact: str


class ArtifactRefused(SoViTError):
    """An artifact that cannot be served; the one before goes on."""

    status = 422
    title = "Artifact refused"


async def swap(request: Request, worker: Worker) -> Response:
    """`POST /admin/models/NAME {"artifact": DIR}`: serve another artifact under the name, once it is warm.

    It answers when the newcomer has taken over and the memory of the one before is free. Always takes an admin key.
    """
    if worker.keys is None:
        raise Forbidden("swapping a model takes an admin key, and this service has no key file (--keys).")
    use = worker.keys.require_admin(request.headers)
    name = request.path_params["model"]
    worker.models.find(name)
    try:
        async with asyncio.timeout(_SECONDS):
            content = await read_limited(request.receive, _MOST_BYTES, lambda _: None)
    except TimeoutError as error:
        raise BadRequest("the body did not come in time.") from error
    record_of(request).was_read = True
    try:
        wish = from_dict(_Wish, load_json(content, 0), "swap")
    except ConfigError as error:
        raise BadRequest(f"{error}") from error
    if not wish.artifact.startswith(("/", STORE)):
        raise BadRequest(f"artifact must be the whole path of a folder, from /, or {STORE}TAG.")
    new, old = await worker.models.swap(name, partial(_load, worker, name, wish.artifact))
    logger.info("%s serves %s in place of %s: asked for by %s", name, new.version, old.version, use.key.name)
    remember_artifact(name, wish.artifact)
    return Response(orjson.dumps({"model": new.summary, "replaced": old.summary}), media_type=JSON)


def _load(worker: Worker, name: str, reference: str) -> ServedModel:
    try:
        return worker.load(name, reference)
    except SoViTError as error:
        logger.warning("%s stays as it was: %s", name, error)
        raise ArtifactRefused(f"{name} stays as it was: {error}") from error
    except Exception as error:
        logger.exception("%s cannot be swapped", name)
        raise ArtifactRefused(f"{name} stays as it was: the newcomer cannot be run; the log says why.") from error
