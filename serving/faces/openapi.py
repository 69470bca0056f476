"""The OpenAPI 3.1 description, made from the option models.

python -m serving.faces.openapi > docs/openapi.json
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from typing import Any

from serving.faces.open_inference import HEADER_LENGTH
from serving.road import TIMEOUT_HEADER
from serving.wire.replies import PROBLEM
from serving.wire.schema import ARROW, JSON, NPY, ClassifyOptions, EmbedOptions, Options
from sovit import __version__

_ERRORS = {
    400: "Malformed request, unknown field or model",
    401: "No key, or one that is not known",
    403: "The key does not give this right",
    406: "No reply form the client accepts",
    413: "Body, part, image count or decoded pixels over its limit",
    414: "The query is over its limit",
    415: "Content type or image format we do not take",
    422: "An image that cannot be decoded or is over a limit; `errors` says which",
    429: "Queue full, or the key is over its rate; see Retry-After",
    431: "Headers over their limit",
    500: "Something failed on our side",
    503: "Not ready or draining; see Retry-After",
    504: "Deadline passed",
}
_NOT_FOUND = "No such model, or not in that version"
_KEYS: list[dict[str, list[str]]] = [{}, {"bearer": []}, {"header": []}]  # none where the service has no key file


def _parameter(name: str, where: str, about: str, **schema: Any) -> dict[str, Any]:
    return {"name": name, "in": where, "required": where == "path", "schema": schema, "description": about}


_TIMEOUT = _parameter(
    TIMEOUT_HEADER,
    "header",
    "Seconds the request may take, up to the service's own limit.",
    type="number",
    exclusiveMinimum=0,
)
_MODEL = _parameter("model", "path", "A served model's name.", type="string")
_BINARY: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}


@cache
def openapi() -> dict[str, Any]:
    """The OpenAPI document."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "sovit",
            "version": __version__,
            "description": "SoViT image classification and embeddings.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": {
            "/classify": _inference("Classify images", ClassifyOptions, "ClassifyReply"),
            "/embed": _inference("Embed images", EmbedOptions, "EmbedReply"),
            "/model": _get(
                "A served model, the first unless one is named; its ETag is the hash of its artifact",
                _schema("Model"),
                *(400, 401, 503),
                parameters=[_parameter("model", "query", "Its name.", type="string")],
            ),
            "/models": _get("All served models", _schema("Models"), 401, 503),
            "/stats": _get("The last minute: requests, latency, queues and batches", _schema("Stats"), 401, 503),
            **_openai(),
            **_open_inference(),
            "/admin/models/{model}": {
                "post": {
                    "parameters": [_MODEL],
                    **_operation(
                        "Serve another artifact under a name, once it is warm; takes an admin key",
                        _schema("Swapped"),
                        *(400, 401, 403, 413, 422, 503),
                    ),
                    "requestBody": _json_body(_object("artifact", artifact={"type": "string"})),
                },
            },
            "/livez": _get("Whether the process works", _schema("Status"), 503),
            "/readyz": _get("Whether requests are taken", _schema("Status"), 503),
            "/metrics": _get("Prometheus metrics", None, 401, 403, 503),
            "/drain": {
                "post": _operation("Take nothing more, and answer when all is done", _schema("Status"), 401, 403, 503)
            },
        },
        "components": {
            "schemas": _schemas(),
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            },
        },
    }


def _schema(name: str) -> dict[str, Any]:
    return {"schema": {"$ref": f"#/components/schemas/{name}"}}


def _problems(*statuses: int) -> dict[str, Any]:
    return {
        str(status): {"description": _ERRORS[status], "content": {PROBLEM: _schema("Problem")}} for status in statuses
    }


def _operation(summary: str, schema: dict[str, Any] | None, *errors: int) -> dict[str, Any]:
    content = {"text/plain": {"schema": {"type": "string"}}} if schema is None else {JSON: schema}
    replies: dict[str, Any] = {"200": {"description": "OK", "content": content}, **_problems(*errors)}
    return {"summary": summary, "responses": replies} | ({"security": _KEYS} if 401 in errors else {})


def _get(
    summary: str, schema: dict[str, Any] | None, *errors: int, parameters: Sequence[dict[str, Any]] = ()
) -> dict[str, Any]:
    operation = _operation(summary, schema, *errors) | ({"parameters": parameters} if parameters else {})
    if schema == _schema("Model"):
        operation["responses"]["304"] = {"description": "It is the one whose ETag came in If-None-Match"}
    return {"get": operation}


def _json_body(schema: dict[str, Any]) -> dict[str, Any]:
    return {"required": True, "content": {JSON: {"schema": schema}}}


def _in_words_of(error: str, operation: dict[str, Any], *errors: int) -> dict[str, Any]:
    """An operation whose errors have the form of another API."""
    descriptions = _ERRORS | {404: _NOT_FOUND}
    for status in errors:
        operation["responses"][str(status)] = {
            "description": descriptions[status],
            "content": {JSON: _schema(error)},
        }
    return operation | ({"security": _KEYS} if 401 in errors else {})


def _openai() -> dict[str, Any]:
    text, integer = {"type": "string"}, {"type": "integer"}
    image = {"anyOf": [text, _object("image", image=text)], "description": "A data URI, or {image: base64}."}
    embeddings = _in_words_of(
        "OpenAIError", _operation("OpenAI's embeddings, of images", _schema("OpenAIEmbeddings")), 404, *_ERRORS
    )
    body = _object(
        "input model",
        input={"anyOf": [image, {"type": "array", "items": image, "minItems": 1}]},
        model=text,
        encoding_format={"enum": ["float", "base64"]},
        dimensions={**integer, "description": "Only the embedding's own length."},
        user=text,
    )
    embeddings["requestBody"] = _json_body(body | {"additionalProperties": False})
    embeddings["parameters"] = [_TIMEOUT]
    listed = _in_words_of(
        "OpenAIError", _operation("The served models, as OpenAI lists them", _schema("OpenAIModels")), 401, 503
    )
    one = _in_words_of("OpenAIError", _operation("A served model", _schema("OpenAIModel")), 401, 404, 503)
    return {
        "/v1/embeddings": {"post": embeddings},
        "/v1/models": {"get": listed},
        "/v1/models/{model}": {"get": one | {"parameters": [_MODEL]}},
    }


def _open_inference() -> dict[str, Any]:
    def get(summary: str, schema: str, *errors: int) -> dict[str, Any]:
        return {"get": _in_words_of("V2Error", _operation(summary, _schema(schema)), *errors)}

    infer = _in_words_of(
        "V2Error", _operation("Infer, by the Open Inference Protocol", _schema("V2Reply")), 404, *_ERRORS
    )
    infer["responses"]["200"]["content"]["application/octet-stream"] = _BINARY
    infer["requestBody"] = {
        "required": True,
        "content": {JSON: _schema("V2Request"), "application/octet-stream": _BINARY},
    }
    length = _parameter(HEADER_LENGTH, "header", "Bytes of the JSON before the binary data.", type="integer", minimum=0)
    version = _parameter("version", "path", "Short hash of the artifact.", type="string")
    paths: dict[str, Any] = {
        "/v2": get("The server", "V2Server"),
        "/v2/health/live": get("Whether the process works", "V2Live", 503),
        "/v2/health/ready": get("Whether requests are taken", "V2Ready", 503),
    }
    for path, of_path in (
        ("/v2/models/{model}", [_MODEL]),
        ("/v2/models/{model}/versions/{version}", [_MODEL, version]),
    ):
        paths[path] = get("A model's inputs and outputs", "V2Model", 401, 404, 503)
        paths[f"{path}/ready"] = get("Whether a model takes requests", "V2Ready", 404, 503)
        for path_item in (paths[path], paths[f"{path}/ready"]):
            path_item["get"]["parameters"] = of_path
        paths[f"{path}/infer"] = {"post": infer | {"parameters": [*of_path, _TIMEOUT, length]}}
    return paths


def _inference(summary: str, options: type[Options], reply: str) -> dict[str, Any]:
    properties = options.model_json_schema()["properties"]
    images = {"type": "array", "minItems": 1}
    files = {**images, "items": {"type": "string", "format": "binary"}}
    encoded = {**images, "items": {"type": "string", "description": "base64, or a data URI with ;base64"}}

    def body(items: dict[str, Any]) -> dict[str, Any]:
        return {
            "schema": {
                "type": "object",
                "required": ["images"],
                "properties": {"images": items, **properties},
                "additionalProperties": False,
            }
        }

    return {
        "post": {
            "summary": summary,
            "security": _KEYS,
            "parameters": [
                _parameter(name, "query", schema.get("description", ""), **schema)
                for name, schema in properties.items()
            ]
            + [_TIMEOUT],
            "requestBody": {
                "required": True,
                "content": {
                    "multipart/form-data": body(files),
                    JSON: body(encoded),
                    "image/*": _BINARY,
                    "application/octet-stream": _BINARY,
                },
            },
            "responses": {
                "200": {
                    "description": "One result for each image, in order",
                    "content": {JSON: _schema(reply), NPY: _BINARY, ARROW: _BINARY},
                },
                **_problems(*_ERRORS),
            },
        }
    }


def _object(required: str = "", **properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": required.split(), "properties": properties}


def _stats() -> dict[str, Any]:
    number, integer, flag, text = ({"type": kind} for kind in ("number", "integer", "boolean", "string"))
    maybe = {"type": ["number", "null"]}
    latency = {"anyOf": [_object("p50 p90 p99", p50=number, p90=number, p99=number), {"type": "null"}]}
    requests = _object("inflight per_second latency_ms", inflight=integer, per_second=number, latency_ms=latency)
    model = _object(
        "name queue_images batch_images ready", name=text, queue_images=integer, batch_images=maybe, ready=flag
    )
    return _object(
        "ready draining window_seconds requests models",
        ready=flag,
        draining=flag,
        window_seconds=integer,
        requests=requests,
        models={"type": "array", "items": model},
    )


def _foreign() -> dict[str, Any]:
    """The replies of OpenAI's API and of the Open Inference Protocol."""
    text, number, integer, flag = ({"type": kind} for kind in ("string", "number", "integer", "boolean"))
    maybe = {"type": ["string", "null"]}

    def many(item: dict[str, Any]) -> dict[str, Any]:
        return {"type": "array", "items": item}

    card = _object("id object created owned_by", id=text, object=text, created=integer, owned_by=text)
    error = _object("message type param code", message=text, type=text, param=maybe, code=maybe)
    item = _object("object index embedding", object=text, index=integer, embedding={"anyOf": [text, many(number)]})
    usage = _object("prompt_tokens total_tokens", prompt_tokens=integer, total_tokens=integer)
    tensor = _object("name datatype shape", name=text, datatype=text, shape=many(integer))
    given = _object(
        "name datatype shape",
        name={"const": "image"},
        datatype={"const": "BYTES"},
        shape=many({**integer, "minimum": 1}),
        data=many({**text, "description": "base64"}),
        parameters={"type": "object"},
    )
    wanted = _object("name", name={"enum": ["embedding", "scores"]}, parameters={"type": "object"})
    return {
        "OpenAIError": _object("error", error=error),
        "OpenAIEmbeddings": _object("object data model usage", object=text, data=many(item), model=text, usage=usage),
        "OpenAIModel": card,
        "OpenAIModels": _object("object data", object=text, data=many(card)),
        "V2Error": _object("error", error=text),
        "V2Server": _object("name version extensions", name=text, version=text, extensions=many(text)),
        "V2Live": _object("live", live=flag),
        "V2Ready": _object("ready", name=text, ready=flag),
        "V2Model": _object(
            "name versions platform inputs outputs",
            name=text,
            versions=many(text),
            platform=text,
            inputs=many(tensor),
            outputs=many(tensor),
        ),
        "V2Request": _object(
            "inputs", id=text, inputs=many(given), outputs=many(wanted), parameters={"type": "object"}
        ),
        "V2Reply": _object(
            "model_name model_version id outputs", model_name=text, model_version=text, id=text, outputs=many(tensor)
        ),
    }


def _schemas() -> dict[str, Any]:
    text, number, integer, flag = ({"type": kind} for kind in ("string", "number", "integer", "boolean"))

    def many(item: dict[str, Any]) -> dict[str, Any]:
        return {"type": "array", "items": item}

    prediction = _object("label index score", label=text, index=integer, score=number)
    model = {"name": text, "artifact": text, "precision": text, "runtime": text}
    named = _object("name artifact precision runtime", **model)
    failed = _object("error", error=_object("status title detail", status=integer, title=text, detail=text))
    classified = {
        "anyOf": [_object("predictions", predictions=many(prediction)), _object("scores", scores=text), failed]
    }
    embedded = {"anyOf": [_object("embedding", embedding={"anyOf": [many(number), text]}), failed]}
    described = _object(
        "name artifact_sha256 image_size dim num_classes labels ready",
        **model,
        artifact_sha256=text,
        image_size=many(integer),
        dim=integer,
        num_classes=integer,
        labels=many(text),
        preprocess=text,
        reduced_scale=flag,
        ready=flag,
    )
    return {
        "ClassifyReply": _object("model results", model=named, results=many(classified)),
        "EmbedReply": _object("model dim results", model=named, dim=integer, results=many(embedded)),
        "Model": described,
        "Swapped": _object("model replaced", model=named, replaced=named),
        "Stats": _stats(),
        **_foreign(),
        "Models": _object("models", models=many({"$ref": "#/components/schemas/Model"})),
        "Status": _object("status", status=text),
        "Problem": _object(
            "type title status detail instance",
            type=text,
            title=text,
            status=integer,
            detail=text,
            instance=text,
            errors=many(_object("index status title detail", index=integer, status=integer, title=text, detail=text)),
            retry_after_seconds=integer,
        ),
    }


if __name__ == "__main__":
    print(json.dumps(openapi(), indent=2))
