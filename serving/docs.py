"""The OpenAPI 3.1 description, made from the option models, and a page that shows it without any outside asset."""

from __future__ import annotations

import html
from functools import cache
from typing import Any

from serving.schema import JSON, NPY, PROBLEM, ClassifyOptions, EmbedOptions, Options
from sovit import __version__

_ERRORS = {
    400: "Malformed request, unknown field or model",
    406: "No reply form the client accepts",
    413: "Body or image count over its limit",
    415: "Content type or image format we do not take",
    422: "An image that cannot be decoded or is over a limit; `errors` says which",
    429: "Queue full; see Retry-After",
    503: "Not ready; see Retry-After",
    504: "Deadline passed",
}


@cache
def openapi() -> dict[str, Any]:
    """The OpenAPI document."""
    return {
        "openapi": "3.1.0",
        "info": {"title": "sovit", "version": __version__, "description": "SoViT image classification and embeddings."},
        "paths": {
            "/classify": _inference("Classify images", ClassifyOptions, {JSON: _schema("ClassifyReply")}),
            "/embed": _inference(
                "Embed images", EmbedOptions, {JSON: _schema("EmbedReply"), NPY: {"schema": {"type": "string"}}}
            ),
            "/models": _get("The served models", JSON),
            "/livez": _get("Whether the process works", JSON),
            "/readyz": _get("Whether requests are taken", JSON, 503),
            "/metrics": _get("Prometheus metrics", "text/plain"),
        },
        "components": {"schemas": _schemas()},
    }


def _schema(name: str) -> dict[str, Any]:
    return {"schema": {"$ref": f"#/components/schemas/{name}"}}


def _problem(text: str) -> dict[str, Any]:
    return {"description": text, "content": {PROBLEM: _schema("Problem")}}


def _get(summary: str, media_type: str, *errors: int) -> dict[str, Any]:
    replies: dict[str, Any] = {"200": {"description": "OK", "content": {media_type: {}}}}
    replies.update({str(status): _problem(_ERRORS[status]) for status in errors})
    return {"get": {"summary": summary, "responses": replies}}


def _inference(summary: str, options: type[Options], replies: dict[str, Any]) -> dict[str, Any]:
    properties = options.model_json_schema()["properties"]
    images = {"type": "array", "minItems": 1}
    files = {**images, "items": {"type": "string", "format": "binary"}}
    encoded = {**images, "items": {"type": "string", "description": "base64, or a data URI with ;base64"}}

    def body(items: dict[str, Any]) -> dict[str, Any]:
        return {"schema": {"type": "object", "required": ["images"], "properties": {"images": items, **properties}}}

    binary = {"schema": {"type": "string", "format": "binary"}}
    return {
        "post": {
            "summary": summary,
            "parameters": [
                {"name": name, "in": "query", "schema": schema, "description": schema.get("description", "")}
                for name, schema in properties.items()
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
                "200": {"description": "One result for each image, in order", "content": replies},
                **{str(status): _problem(text) for status, text in _ERRORS.items()},
            },
        }
    }


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


def _schemas() -> dict[str, Any]:
    text, number, integer = {"type": "string"}, {"type": "number"}, {"type": "integer"}
    prediction = _object(label=text, index=integer, score=number)
    model = _object(name=text, artifact=text, precision=text, runtime=text)
    embedding = {"oneOf": [{"type": "array", "items": number}, text]}

    def results(item: dict[str, Any]) -> dict[str, Any]:
        return {"type": "array", "items": item}

    return {
        "ClassifyReply": _object(model=model, results=results(_object(predictions=results(prediction)))),
        "EmbedReply": _object(model=model, dim=integer, results=results(_object(embedding=embedding))),
        "Problem": _object(
            type=text,
            title=text,
            status=integer,
            detail=text,
            instance=text,
            errors=results(_object(index=integer, status=integer, title=text, detail=text)),
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
