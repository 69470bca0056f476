"""The Open Inference Protocol, version 2, as Triton and KServe speak it: JSON, and its binary tensor extension.

A model has one input, `image`: BYTES [B] (or [B, 1]), each element an encoded image. Its outputs are `embedding`, FP32
[B, D], of length 1, and with a head `scores`, FP32 [B, L], or the best N classes as BYTES "score:index:label", [B, N],
where `classification` asks for them. A model's version is the short hash of its artifact.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
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
from serving.wire.schema import JSON, clip
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
_NUMBER: Final = re.compile(r"[0-9]{1,12}", re.ASCII)
_NESTED: Final = 32  # lists and objects of a body besides its images

OutputName = Literal["embedding", "scores"]
Count = Annotated[int, Field(ge=1, le=1_000_000)]
Size = Annotated[int, Field(ge=0, le=2**53)]


class _Lenient(BaseModel):
    """The protocol lets a server ignore parameters that it does not know."""

    model_config = ConfigDict(strict=True, extra="ignore")


class _InputParameters(_Lenient):
    binary_data_size: Size | None = None
    shared_memory_region: str | None = None


class _Input(_Lenient):
    name: str
    shape: Annotated[list[Count], Field(min_length=1, max_length=2)]
    datatype: str
    parameters: _InputParameters = _InputParameters()
    data: list[Any] | None = None


class _OutputParameters(_Lenient):
    binary_data: bool | None = None
    classification: Size = 0
    shared_memory_region: str | None = None


class _Output(_Lenient):
    name: str
    parameters: _OutputParameters = _OutputParameters()


class _Parameters(_Lenient):
    binary_data_output: bool = False
    timeout: Size = 0  # microseconds; 0 is none


class _Infer(_Lenient):
    id: Annotated[str, Field(max_length=256)] | None = None
    inputs: list[_Input]
    outputs: list[_Output] | None = None
    parameters: _Parameters = _Parameters()


@dataclass(frozen=True)
class _Wanted:
    """One output of a reply: numbers, or the best `classes` in words; in which form, unless that is left open."""

    name: OutputName
    binary: bool | None = None
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
    enter_key(request, worker)
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
    length = request.headers.get(HEADER_LENGTH)
    parse = partial(_parse, length, worker.config.max_images, record_of(request).request_id)
    version = request.path_params.get("version")
    return await answer(
        request, worker, use, parse, model=request.path_params["model"], check=partial(_check_version, version)
    )


def write_error(error: SoViTError, request_id: str, _: Mapping[int, SoViTError]) -> ErrorReply:
    """An error as the protocol writes it. Here a model that there is not is not found."""
    status = 404 if isinstance(error, UnknownModel) else error.status
    return ErrorReply(status, orjson.dumps({"error": f"{error} (request {request_id})"}), JSON)


def _find(request: Request, worker: Worker) -> ServedModel:
    found = worker.models.find(request.path_params["model"])
    _check_version(request.path_params.get("version"), found)
    return found


def _check_version(version: str | None, model: ServedModel) -> None:
    if version not in (None, model.version):
        raise UnknownModel(f"{model.name} is served in version {model.version} only.")


def _parse(header_length: str | None, most: int, request_id: str, content: bytes) -> Asked:
    length = len(content)
    if header_length is not None:
        length = int(header_length) if _NUMBER.fullmatch(header_length) else -1
        if not 0 <= length <= len(content):
            raise BadRequest("Inference-Header-Content-Length must be the number of bytes of the JSON in the body.")
    try:
        asked = _Infer.model_validate(load_json(content[:length], most, max_nested=most + _NESTED))
    except ValidationError as error:
        raise BadRequest(f"{clip(explain(error))}.") from error
    images = _images(asked.inputs, content[length:], most)
    wanted = _wanted(asked)
    return Asked(
        images,
        partial(_write, wanted, asked.parameters.binary_data_output, asked.id or request_id),
        check=partial(_check_outputs, wanted),
        seconds=asked.parameters.timeout * _MICROSECOND or math.inf,
    )


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
    if len(images) != math.prod(tensor.shape):
        raise BadRequest(f"the shape has {math.prod(tensor.shape)} elements, and the input {len(images)}.")
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


def _wanted(asked: _Infer) -> list[_Wanted]:
    """The outputs that are asked for by name."""
    outputs = asked.outputs or []
    if len({output.name for output in outputs}) < len(outputs):
        raise BadRequest("an output is asked for twice.")
    wanted = []
    for output in outputs:
        parameters = output.parameters
        if output.name not in ("embedding", "scores"):
            raise BadRequest("there is no such output: models have `embedding`, and `scores` where they have a head.")
        if parameters.shared_memory_region is not None:
            raise BadRequest("this service has no shared memory; take the outputs from the reply.")
        if parameters.classification and output.name != "scores":
            raise BadRequest("classification is for the output `scores`.")
        name: OutputName = "scores" if output.name == "scores" else "embedding"
        wanted.append(_Wanted(name, parameters.binary_data, parameters.classification))
    return wanted


def _check_outputs(wanted: Sequence[_Wanted], model: ServedModel) -> None:
    if not model.spec.model.num_classes and any(output.name == "scores" for output in wanted):
        raise BadRequest("there is no such output: this model has no head, and one output, `embedding`.")


def _all_outputs(model: ServedModel) -> list[_Wanted]:
    names: tuple[OutputName, ...] = ("embedding", "scores") if model.spec.model.num_classes else ("embedding",)
    return [_Wanted(name) for name in names]


def _write(
    wanted: Sequence[_Wanted], binary_default: bool, request_id: str, model: ServedModel, results: Results
) -> Reply:
    outputs, binary = [], []
    for output in wanted or _all_outputs(model):
        tensor, data = _tensor(output, model, results)
        if binary_default if output.binary is None else output.binary:
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
