"""The files of the page at `/`, over HTTP: their types, tags and policy, and that nothing comes from elsewhere."""

from __future__ import annotations

import re
from pathlib import Path

from starlette.testclient import TestClient

from serving.faces.page import page_routes

KINDS = {
    "": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


def test_every_file_comes_with_its_type_a_tag_and_a_policy(client: TestClient) -> None:
    paths = [path for path, _ in page_routes()]
    assert {"/", "/page/style.css", "/page/main.js", "/page/icon.svg"} <= set(paths)
    for path in paths:
        response = client.get(path)
        assert response.status_code == 200, path
        assert response.headers["content-type"] == KINDS[Path(path).suffix]
        assert response.headers["cache-control"] == "no-cache"
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["referrer-policy"] == "no-referrer"
        policy = response.headers["content-security-policy"]
        assert "default-src 'none'; script-src 'self'; style-src 'self';" in policy
        assert "unsafe" not in policy
        tag = response.headers["etag"]
        for known in (tag, f"W/{tag}", f'"other", {tag}', "*"):
            again = client.get(path, headers={"if-none-match": known})
            assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
        assert client.get(path, headers={"if-none-match": '"other"'}).status_code == 200
        head = client.head(path)
        assert (head.status_code, head.headers["etag"]) == (200, tag)


def test_no_other_name_finds_a_file(client: TestClient) -> None:
    names = ("", "index.html", "nothing.js", "../app.py", "..%2fapp.py", "%2e%2e/app.py", "/etc/hosts")
    for name in names:
        assert client.get(f"/page/{name}").status_code == 404, name


def test_nothing_is_inline_and_nothing_comes_from_elsewhere(client: TestClient) -> None:
    html = client.get("/").text
    assert re.findall(r"\son\w+=|\sstyle=|<style|javascript:", html) == []
    assert all('src="page/' in tag for tag in re.findall(r"<script[^>]*>", html))
    for path, _ in page_routes():
        text = client.get(path).text.replace("http://www.w3.org/2000/svg", "")
        assert "//" not in re.sub(r"^\s*//.*$| // .*$", "", text, flags=re.MULTILINE), path
        for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "localStorage"):
            assert word not in text, (path, word)
