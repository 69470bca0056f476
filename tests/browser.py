"""What the tests of the page share: chromium, a service, the page opened in it, and what is done and read there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from playwright.sync_api import Browser, FilePayload, Locator, Page, Route, expect, sync_playwright

from sovit.artifact import Artifact
from sovit.process import free_port, serving, sovit_serve
from tests.conftest import png

# Pictures of the page in its states are left here.
SCREENSHOTS = Path(__file__).parents[1] / "runs" / "screenshots"


def photograph(seed: int, size: int = 96) -> bytes:
    """A PNG with some structure, so that two of them are told apart by the model and by eye."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:size, 0:size] / size
    waves = [np.sin(6 * (a * x + b * y) + c) for a, b, c in random.uniform(-2, 2, (3, 3))]
    return png(np.stack([120 + 100 * wave for wave in waves], axis=-1).astype(np.uint8))


@dataclass
class Opened:
    """A page of the service at `url`, and everything that went wrong in it."""

    page: Page
    url: str
    key: str = ""
    trouble: list[str] = field(default_factory=list)

    def ask(self, path: str, content: bytes, **query: str | int) -> dict[str, Any]:
        """What the API itself answers to an image."""
        headers = {"authorization": f"Bearer {self.key}"} if self.key else {}
        response = httpx.post(f"{self.url}{path}", params=query, files={"images": content}, headers=headers)
        found: dict[str, Any] = response.json()
        return found

    def card(self, name: str) -> Locator:
        return self.page.locator(".card").filter(has=self.page.get_by_role("heading", name=name, exact=True))

    def choose(self, *files: tuple[str, bytes]) -> None:
        """Give the file field some files."""
        self.page.set_input_files(
            "#files", [FilePayload(name=name, mimeType="image/png", buffer=content) for name, content in files]
        )

    def shoot(self, name: str) -> None:
        """Keep a picture of all of the page, in a window that is tall enough for it."""
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        width, height = self.page.evaluate("[innerWidth, Math.max(document.documentElement.scrollHeight, 640)]")
        self.page.set_viewport_size({"width": width, "height": height})
        self.page.screenshot(path=SCREENSHOTS / f"{name}.png")


OpenPage = Callable[..., Opened]


@contextmanager
def chromium() -> Iterator[Browser]:
    """The machine's own browser."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("there is no chromium on this machine")
    options = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
    options += ["--disable-sync", "--disable-component-update"]
    expect.set_options(timeout=20_000)  # the machine may be busy
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=options)
        yield browser
        browser.close()


@contextmanager
def service(artifact: Artifact, folder: Path, *options: str) -> Iterator[str]:
    """A service of the artifact, and its address."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    with serving(sovit_serve(artifact.folder, port, *options), address, folder / "log"):
        yield address


@contextmanager
def opened(browser: Browser, url: str, *, key: str = "", width: int = 1280, **options: Any) -> Iterator[Opened]:
    context = browser.new_context(viewport={"width": width, "height": 900}, **options)
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    page = context.new_page()
    found = Opened(page, url, key)

    # Chromium reports answers such as 422 as errors too: these are asked for by the tests themselves.
    def on_console(message: Any) -> None:
        if message.type in ("error", "warning") and not message.text.startswith("Failed to load resource"):
            found.trouble.append(message.text)

    def on_request(request: Any) -> None:
        if not request.url.startswith((f"{url}/", "blob:", "data:")):
            found.trouble.append(f"a request to {request.url}")

    page.on("console", on_console)
    page.on("pageerror", lambda error: found.trouble.append(str(error)))
    page.on("request", on_request)
    yield found
    context.close()
    assert not found.trouble, found.trouble


@contextmanager
def opening(browser: Browser, url: str) -> Iterator[OpenPage]:
    """Open pages of the service, and at the end hold nothing against it: no error, no stranger, no violation."""
    pages: list[Any] = []

    def open_one(before: Callable[[Page], None] = lambda _: None, **options: Any) -> Opened:
        manager = opened(browser, options.pop("url", url), **options)
        found = manager.__enter__()
        pages.append(manager)
        before(found.page)
        found.page.goto(f"{found.url}/")
        return found

    yield open_one
    for manager in reversed(pages):
        manager.__exit__(None, None, None)


def predictions(card: Locator) -> list[tuple[str, float]]:
    """What a card shows when its answer is there."""
    expect(card).to_have_attribute("data-state", "done")
    rows = card.locator(".predictions li").all()
    return [(row.locator(".label").inner_text(), float(row.get_attribute("data-score") or "nan")) for row in rows]


def assert_answers(here: Opened, name: str, content: bytes, **query: str | int) -> None:
    wanted = here.ask("/classify", content, top_k=5, **query)["results"][0]["predictions"]
    shown = predictions(here.card(name))
    assert [label for label, _ in shown] == [one["label"] for one in wanted], (shown, wanted)
    assert [score for _, score in shown] == pytest.approx([one["score"] for one in wanted], rel=1e-5), (shown, wanted)
    first = here.card(name).locator(".score").first
    expect(first).to_have_text(f"{100 * wanted[0]['score']:.1f} %")


def run_copied(here: Opened, name: str, content: bytes, folder: Path) -> dict[str, Any]:
    """Copy the command of a card, and run it in a shell beside the file."""
    (folder / name).write_bytes(content)
    with here.page.expect_event("console", lambda message: message.text == "copied"):
        here.page.evaluate(
            "() => new MutationObserver(() => console.log('copied')).observe(document.querySelector('#announcer'), "
            "{ childList: true })"
        )
        here.card(name).get_by_role("button", name="Copy curl").click()
    command = here.page.evaluate("navigator.clipboard.readText()")
    done = subprocess.run(
        command, shell=True, cwd=folder, capture_output=True, check=False, timeout=30, executable="/bin/sh",
        env={"PATH": os.environ["PATH"], "NO_PROXY": "*", "KEY": here.key},
    )  # fmt: skip
    assert done.returncode == 0, (command, done.stderr)
    reply: dict[str, Any] = json.loads(done.stdout)
    assert "results" in reply, (command, reply)
    return reply


def fulfil(route: Route, status: int, title: str, detail: str, **headers: str) -> None:
    problem = {"type": "urn:x", "title": title, "status": status, "detail": detail, "instance": "urn:request:abc"}
    headers = {"content-type": "application/problem+json", "x-request-id": "abc"} | headers
    route.fulfill(status=status, headers=headers, body=json.dumps(problem))


class Gate:
    """Keeps requests from the service until it is opened."""

    def __init__(self) -> None:
        self.held: list[Route] = []
        self._is_open = False

    def at(self, page: Page) -> None:
        page.route("**/classify*", self._on_request)

    def open(self) -> None:
        self._is_open = True
        for route in self.held:
            route.continue_()

    def _on_request(self, route: Route) -> None:
        if self._is_open:
            route.continue_()
        else:
            self.held.append(route)
