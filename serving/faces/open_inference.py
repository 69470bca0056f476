"""The Open Inference Protocol, version 2, as Triton and KServe speak it: JSON, and its binary tensor extension.

A model has one input, `image`: BYTES [B] (or [B, 1]), each element an encoded image. Its outputs are `embedding`, FP32
[B, D], of length 1, and with a head `scores`, FP32 [B, L], or the best N classes as BYTES "score:index:label", [B, N],
where `classification` asks for them. A model's version is the short hash of its artifact.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Annotated, Any, Final, Literal

import numpy as np
import orjson
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request
from starlette.responses import Response

from serving.inference.model import ServedModel
from serving.inference.models import UnknownModel
from serving.observing.record import record_of
from serving.road import Asked, answer, enter_key
from serving.wire.body import count_images, decode_base64, load_json
from serving.wire.replies import ErrorReply, Reply, Results, rows
from serving.wire.schema import JSON
from serving.worker import Worker, require_alive, require_ready
from sovit import __version__
from sovit.errors import BadRequest, NotReady, SoViTError
from sovit.jsonio import explain
from sovit.predict import to_classifications, to_embeddings, to_scores

HEADER_LENGTH: Final = "inference-header-content-length"
INPUT: Final = "image"
_OCTETS: Final = "application/octet-stream"
_MICROSECOND: Final = 1e-6
_LENGTH: Final = struct.Struct("<I")

OutputName = Literal["embedding", "scores"]
Count = Annotated[int, Field(ge=1)]


class _Lenient(BaseModel):
    """The protocol lets a server ignore parameters that it does not know."""

    model_config = ConfigDict(strict=True, extra="ignore")


class _InputParameters(_Lenient):
    binary_data_size: Annotated[int, Field(ge=0)] | None = None
    shared_memory_region: str | None = None


class _Input(_Lenient):
    name: str
    shape: Annotated[list[Count], Field(min_length=1, max_length=2)]
    datatype: str
    parameters: _InputParameters = _InputParameters()
    data: list[Any] | None = None


class _OutputParameters(_Lenient):
    binary_data: bool | None = None
    classification: Annotated[int, Field(ge=0)] = 0
    shared_memory_region: str | None = None


class _Output(_Lenient):
    name: str
    parameters: _OutputParameters = _OutputParameters()


class _Parameters(_Lenient):
    binary_data_output: bool = False
    timeout: Annotated[int, Field(ge=0)] = 0  # microseconds; 0 is none


class _Infer(_Lenient):
    id: str | None = None
    inputs: list[_Input]
    outputs: list[_Output] | None = None
    parameters: _Parameters = _Parameters()


@dataclass(frozen=True)
class _Wanted:
    """One output of a reply: numbers, or the best `classes` in words."""

    name: OutputName
    binary: bool
    classes: int = 0


async def server(_: Request, __: Worker | None) -> Response:
    """`GET /v2`."""
    document = {"name": "sovit", "version": __version__, "extensions": ["binary_tensor_data", "classification"]}
    return Response(orjson.dumps(document), media_type=JSON)


async def live(_: Request, worker: Worker | None) -> Response:
    """`GET /v2/health/live`."""
    require_alive(worker)
    return Response(orjson.dumps({"live": True}), media_type=JSON)


async def ready(_: Request, worker: Worker) -> Response:
    """`GET /v2/health/ready`."""
    require_ready(worker)
    return Response(orjson.dumps({"ready": True}), media_type=JSON)


async def model_ready(request: Request, worker: Worker) -> Response:
    """`GET /v2/models/NAME[/versions/VERSION]/ready`."""
    found = _find(request, worker)
    if not found.engine.ready or worker.door.draining:
        raise NotReady(f"{found.name} is not ready.")
    return Response(orjson.dumps({"name": found.name, "ready": True}), media_type=JSON)


async def metadata(request: Request, worker: Worker) -> Response:
    """`GET /v2/models/NAME[/versions/VERSION]`."""
    enter_key(request, worker)
    found = _find(request, worker)
    sizes = {"embedding": found.spec.model.width, "scores": found.spec.model.num_classes}
    document = {
        "name": found.name,
        "versions": [found.version],
        "platform": f"sovit_{found.runtime}",
        "inputs": [{"name": INPUT, "datatype": "BYTES", "shape": [-1]}],
        "outputs": [{"name": name, "datatype": "FP32", "shape": [-1, size]} for name, size in sizes.items() if size],
    }
    return Response(orjson.dumps(document), media_type=JSON)


async def infer(request: Request, worker: Worker) -> Response:
    """`POST /v2/models/NAME[/versions/VERSION]/infer`."""
    use = enter_key(request, worker)
    found = _find(request, worker)
    length = request.headers.get(HEADER_LENGTH)
    parse = partial(_parse, found, length, worker.config.max_images, record_of(request).request_id)
    return await answer(request, worker, use, parse, model=found.name)


def write_error(error: SoViTError, request_id: str, _: Mapping[int, SoViTError]) -> ErrorReply:
    """An error as the protocol writes it. Here a model that there is not is not found."""
    status = 404 if isinstance(error, UnknownModel) else error.status
    return ErrorReply(status, orjson.dumps({"error": f"{error} (request {request_id})"}), JSON)


def _find(request: Request, worker: Worker) -> ServedModel:
    found = worker.models.find(request.path_params["model"])
    version = request.path_params.get("version", found.version)
    if version != found.version:
        raise UnknownModel(f"{found.name} is served in version {found.version} only.")
    return found


def _parse(model: ServedModel, header_length: str | None, most: int, request_id: str, content: bytes) -> Asked:
    length = len(content)
    if header_length is not None:
        length = int(header_length) if header_length.isascii() and header_length[:12].isdigit() else -1
        if not 0 <= length <= len(content):
            raise BadRequest("Inference-Header-Content-Length must be the number of bytes of the JSON in the body.")
    try:
        asked = _Infer.model_validate(load_json(content[:length], most))
    except ValidationError as error:
        raise BadRequest(f"{explain(error)[:200]}.") from error
    images = _images(asked.inputs, content[length:], most)
    wanted = _wanted(asked, model)
    seconds = asked.parameters.timeout * _MICROSECOND or float("inf")
    return Asked(images, partial(_write, wanted, asked.id or request_id), model.name, seconds=seconds)


def _images(inputs: Sequence[_Input], binary: bytes, most: int) -> list[bytes]:
    if [tensor.name for tensor in inputs] != [INPUT]:
        raise BadRequest(f"the model has one input, `{INPUT}`; send it once.")
    tensor = inputs[0]
    if tensor.datatype != "BYTES":
        raise BadRequest(
            f"the input `{INPUT}` has the datatype BYTES: encoded images, such as the bytes of a JPEG file."
        )
    if tensor.parameters.shared_memory_region is not None:
        raise BadRequest("this service has no shared memory; send the images in the request.")
    size = tensor.parameters.binary_data_size
    if (size is None) == (tensor.data is None):
        raise BadRequest("the input's elements come either in `data` or, with `binary_data_size`, behind the JSON.")
    if size is None:
        count_images(tensor.data or [], most)
        images = [decode_base64(text, index) for index, text in enumerate(_flat(tensor.data or []))]
        if binary:
            raise BadRequest("there are bytes behind the JSON, and no input's binary_data_size speaks of them.")
    else:
        if size != len(binary):
            raise BadRequest(f"binary_data_size is {size}, and {len(binary)} bytes follow the JSON.")
        images = _elements(binary, most)
    if len(images) != prod(tensor.shape):
        raise BadRequest(f"the shape has {prod(tensor.shape)} elements, and the input {len(images)}.")
    if tensor.shape[1:] not in ([], [1]):
        raise BadRequest(f"the shape of `{INPUT}` is [B] or [B, 1].")
    for index, image in enumerate(images):
        if not image:
            raise BadRequest(f"image {index} is empty (0 bytes).")
    return images


def _flat(data: list[Any]) -> list[Any]:
    return [item[0] if isinstance(item, list) and len(item) == 1 else item for item in data]


def _elements(binary: bytes, most: int) -> list[bytes]:
    """Elements of a BYTES tensor: each behind its length in four bytes."""
    images: list[bytes] = []
    place = 0
    while place < len(binary):
        start = place + _LENGTH.size
        if start > len(binary):
            raise BadRequest("the binary input ends within a length.")
        place = start + _LENGTH.unpack_from(binary, place)[0]
        if place > len(binary):
            raise BadRequest("an element of the binary input is shorter than its length says.")
        images.append(binary[start:place])
        count_images(images, most)
    return images


def _wanted(asked: _Infer, model: ServedModel) -> list[_Wanted]:
    has_head = bool(model.spec.model.num_classes)
    default = asked.parameters.binary_data_output
    if not asked.outputs:
        names: tuple[OutputName, ...] = ("embedding", "scores") if has_head else ("embedding",)
        return [_Wanted(name, default) for name in names]
    if len({output.name for output in asked.outputs}) < len(asked.outputs):
        raise BadRequest("an output is asked for twice.")
    wanted = []
    for output in asked.outputs:
        parameters = output.parameters
        if output.name not in ("embedding", "scores") or (output.name == "scores" and not has_head):
            has = "the outputs `embedding` and `scores`" if has_head else "one output, `embedding`"
            raise BadRequest(f"there is no such output: this model has {has}.")
        if parameters.shared_memory_region is not None:
            raise BadRequest("this service has no shared memory; take the outputs from the reply.")
        if parameters.classification and output.name != "scores":
            raise BadRequest("classification is for the output `scores`.")
        binary = default if parameters.binary_data is None else parameters.binary_data
        name: OutputName = "scores" if output.name == "scores" else "embedding"
        wanted.append(_Wanted(name, binary, parameters.classification))
    return wanted


def _write(wanted: Sequence[_Wanted], request_id: str, model: ServedModel, results: Results) -> Reply:
    outputs, binary = [], []
    for output in wanted:
        tensor, data = _tensor(output, model, results)
        if output.binary:
            content = data.astype("<f4").tobytes() if data.dtype != object else _packed(data)
            tensor["parameters"] = {"binary_data_size": len(content)}
            binary.append(content)
        else:
            tensor["data"] = data.ravel().tolist()
        outputs.append(tensor)
    document = {"model_name": model.name, "model_version": model.version, "id": request_id, "outputs": outputs}
    head = orjson.dumps(document)
    if not binary:
        return Reply(head, JSON)
    return Reply(b"".join([head, *binary]), _OCTETS, {HEADER_LENGTH: str(len(head))})


def _tensor(output: _Wanted, model: ServedModel, results: Results) -> tuple[dict[str, Any], NDArray[Any]]:
    data: NDArray[Any]
    if output.name == "embedding":
        data = to_embeddings(rows(results, "pre_logits"), normalize=True)
    elif output.classes:
        spec = model.spec
        found = to_classifications(rows(results, "logits"), spec.labels, spec.score, output.classes)
        words = [[f"{one.score:f}:{one.index}:{one.label}" for one in image.predictions] for image in found]
        data = np.array(words, dtype=object)
    else:
        data = to_scores(rows(results, "logits"), model.spec.score)
    datatype = "BYTES" if data.dtype == object else "FP32"
    return {"name": output.name, "datatype": datatype, "shape": list(data.shape)}, data


def _packed(words: NDArray[Any]) -> bytes:
    encoded = [word.encode() for word in words.ravel()]
    return b"".join(_LENGTH.pack(len(word)) + word for word in encoded)
