"""The OpenAPI 3.1 description, made from the option models, and a page that shows it without any outside asset.

python -m serving.docs > docs/openapi.json
"""

from __future__ import annotations

import html
import json
from functools import cache
from typing import Any

from serving.inference import TIMEOUT_HEADER
from serving.replies import PROBLEM
from serving.schema import ARROW, JSON, NPY, ClassifyOptions, EmbedOptions, Options
from sovit import __version__

_ERRORS = {
    400: "Malformed request, unknown field or model",
    401: "No key, or one that is not known",
    403: "The key does not give this right",
    406: "No reply form the client accepts",
    413: "Body, part or image count over its limit",
    415: "Content type or image format we do not take",
    422: "An image that cannot be decoded or is over a limit; `errors` says which",
    429: "Queue full, or the key is over its rate; see Retry-After",
    500: "Something failed on our side",
    503: "Not ready or draining; see Retry-After",
    504: "Deadline passed",
}
_KEYS: list[dict[str, list[str]]] = [{}, {"bearer": []}, {"header": []}]  # none where the service has no key file


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
            "/model": _get("The served model; its ETag is the hash of its artifact", _schema("Model"), 401, 503),
            "/models": _get("All served models", _schema("Models"), 401, 503),
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


def _get(summary: str, schema: dict[str, Any] | None, *errors: int) -> dict[str, Any]:
    operation = _operation(summary, schema, *errors)
    if schema == _schema("Model"):
        operation["responses"]["304"] = {"description": "It is the one whose ETag came in If-None-Match"}
    return {"get": operation}


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

    binary = {"schema": {"type": "string", "format": "binary"}}
    seconds = {"type": "number", "exclusiveMinimum": 0}
    return {
        "post": {
            "summary": summary,
            "security": _KEYS,
            "parameters": [
                {"name": name, "in": "query", "schema": schema, "description": schema.get("description", "")}
                for name, schema in properties.items()
            ]
            + [
                {
                    "name": TIMEOUT_HEADER,
                    "in": "header",
                    "schema": seconds,
                    "description": "Seconds the request may take, up to the service's own limit.",
                }
            ],
            "requestBody": {
                "required": True,
                "content": {
                    "multipart/form-data": body(files),
                    JSON: body(encoded),
                    "image/*": binary,
                    "application/octet-stream": binary,
                },
            },
            "responses": {
                "200": {
                    "description": "One result for each image, in order",
                    "content": {JSON: _schema(reply), NPY: binary, ARROW: binary},
                },
                **_problems(*_ERRORS),
            },
        }
    }


def _object(required: str = "", **properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": required.split(), "properties": properties}


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


@cache
def docs_page() -> str:
    """The description as one self-contained HTML page."""
    sections = []
    for path, methods in openapi()["paths"].items():
        for method, operation in methods.items():
            rows = "".join(
                f"<tr><td><code>{html.escape(parameter['name'])}</code></td>"
                f"<td><code>{html.escape(str(parameter['schema'].get('default')))}</code></td>"
                f"<td>{html.escape(parameter['description'])}</td></tr>"
                for parameter in operation.get("parameters", ())
            )
            options = f"<table><tr><th>option</th><th>default</th><th>meaning</th></tr>{rows}</table>" if rows else ""
            takes = ", ".join(operation.get("requestBody", {}).get("content", {}))
            takes = f"<p>Takes {html.escape(takes)}.</p>" if takes else ""
            replies = "".join(
                f"<li><code>{status}</code> {html.escape(reply['description'])}</li>"
                for status, reply in operation["responses"].items()
            )
            sections.append(
                f"<section><h2><code>{method.upper()} {path}</code></h2><p>{html.escape(operation['summary'])}.</p>"
                f"{takes}{options}<ul>{replies}</ul></section>"
            )
    return _PAGE.format(version=__version__, sections="".join(sections))


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>sovit API</title>
<style>
:root {{ color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }}
body {{ max-width: 48rem; margin: 2rem auto; padding: 0 1rem; }}
table {{ border-collapse: collapse; width: 100%; }}
th, td {{ text-align: left; padding: .25rem .5rem; border-bottom: 1px solid #8884; vertical-align: top; }}
pre {{ overflow-x: auto; padding: .75rem; background: #8882; border-radius: .5rem; }}
h2 {{ margin-top: 2.5rem; }}
</style></head><body>
<h1>sovit {version}</h1>
<p>One option may come as a query parameter, a form field or a JSON field. The machine-readable form of this page is
<a href="openapi.json">openapi.json</a>.</p>
<pre>curl -F images=@cat.jpg "$URL/classify?top_k=3"
curl --data-binary @cat.jpg -H "content-type: image/jpeg" -H "accept: application/x-npy" "$URL/embed" -o cat.npy</pre>
{sections}
</body></html>
"""


if __name__ == "__main__":
    print(json.dumps(openapi(), indent=2))
