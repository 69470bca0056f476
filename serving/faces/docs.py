"""The description of the API as a page, without any outside asset."""

from __future__ import annotations

import html
from functools import cache
from typing import Final

import orjson
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from serving.faces.openapi import openapi
from serving.wire.schema import JSON
from serving.worker import Worker
from sovit import __version__

_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; frame-ancestors 'none'"


async def openapi_json(_: Request, __: Worker | None) -> Response:
    """`GET /openapi.json`."""
    return Response(orjson.dumps(openapi()), media_type=JSON)


async def docs(_: Request, __: Worker | None) -> Response:
    """`GET /docs`."""
    return HTMLResponse(docs_page(), headers={"content-security-policy": _POLICY, "x-content-type-options": "nosniff"})


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
