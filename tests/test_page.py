"""The page at `/`: its files over HTTP, and the page itself in real Chromium against real services.

Screenshots of its states are left in runs/screenshots.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import httpx
import numpy as np
import pytest
from playwright.sync_api import Browser, FilePayload, Locator, Page, Route, expect, sync_playwright
from starlette.testclient import TestClient

from serving.faces.page import page_routes
from sovit.artifact import Artifact
from sovit.checkpoint import save_checkpoint
from sovit.process import free_port, serving, sovit_serve
from tests.conftest import png, random_model, tiny_spec
from tests.served import truncated_jpeg

in_browser = pytest.mark.browser
Scheme = Literal["light", "dark"]
SCREENSHOTS = Path(__file__).parents[1] / "runs" / "screenshots"
KEY = "page-key"
KINDS = {
    "": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
HOSTILE_NAMES = (
    "<img src=x onerror=document.title='taken'>.png",
    'it\'s; "two", $(three) `four` \\five&six.png',
    "a" * 200 + ".png",
)


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


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("there is no chromium on this machine")
    options = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
    options += ["--disable-sync", "--disable-component-update"]
    expect.set_options(timeout=20_000)  # the machine may be busy
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=options)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def url(exported: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    with serving(sovit_serve(exported.folder, port), address, tmp_path_factory.mktemp("page") / "log"):
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
    assert not found.trouble


@pytest.fixture
def open_page(browser: Browser, url: str) -> Iterator[OpenPage]:
    """Open the page of the service, and at the end hold nothing against it: no error, no stranger, no violation."""
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
    assert [label for label, _ in shown] == [one["label"] for one in wanted]
    assert [score for _, score in shown] == pytest.approx([one["score"] for one in wanted], rel=1e-5)
    first = here.card(name).locator(".score").first
    expect(first).to_have_text(f"{100 * wanted[0]['score']:.1f} %")


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


def transfer(page: Page, files: Sequence[tuple[str, bytes]]) -> Any:
    """A DataTransfer as a browser makes it of files that are dragged."""
    return page.evaluate_handle(
        """(files) => {
            const transfer = new DataTransfer();
            for (const [name, content] of files) {
                const bytes = Uint8Array.from(atob(content), (character) => character.charCodeAt(0));
                transfer.items.add(new File([bytes], name, { type: "image/png" }));
            }
            return transfer;
        }""",
        [[name, base64.b64encode(content).decode()] for name, content in files],
    )


# Its files, over HTTP.


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


# The page.


@in_browser
def test_an_image_that_is_dropped_shows_what_the_api_answers(open_page: OpenPage) -> None:
    here = open_page()
    content = photograph(1)
    here.page.locator("#drop").dispatch_event("drop", {"dataTransfer": transfer(here.page, [("one.png", content)])})
    assert_answers(here, "one.png", content)
    expect(here.page.locator("#results-count")).to_have_text("1 image")
    expect(here.page.locator("#announcer")).to_contain_text("one.png: ")
    assert here.card("one.png").locator("img").evaluate("(image) => image.naturalWidth") == 96


@in_browser
def test_anywhere_on_the_page_is_a_place_to_drop(open_page: OpenPage) -> None:
    here = open_page()
    data = transfer(here.page, [("one.png", photograph(1)), ("two.png", photograph(2))])
    here.page.locator("h1").dispatch_event("dragover", {"dataTransfer": data})
    expect(here.page.locator("#drop")).to_have_class(re.compile("over"))
    here.page.locator("h1").dispatch_event("drop", {"dataTransfer": data})
    expect(here.page.locator("#drop")).not_to_have_class(re.compile("over"))
    expect(here.page.locator(".card[data-state=done]")).to_have_count(2)
    here.page.locator("h1").dispatch_event("drop", {"dataTransfer": transfer(here.page, [])})
    expect(here.page.locator("#intake-notice")).to_have_text("There was no image file in that.")


@in_browser
def test_an_image_that_is_pasted(open_page: OpenPage) -> None:
    here = open_page()
    content = photograph(3)
    here.page.evaluate(
        """async (content) => {
            const bytes = Uint8Array.from(atob(content), (character) => character.charCodeAt(0));
            const blob = new Blob([bytes], { type: "image/png" });
            await navigator.clipboard.write([new ClipboardItem({ "image/png": blob })]);
        }""",
        base64.b64encode(content).decode(),
    )
    for _ in range(2):
        here.page.keyboard.press("ControlOrMeta+V")
    assert_answers(here, "pasted-1.png", content)
    assert_answers(here, "pasted-2.png", content)
    here.page.evaluate("navigator.clipboard.writeText('words')")
    here.page.keyboard.press("ControlOrMeta+V")
    expect(here.page.locator("#intake-notice")).to_have_text("There is no image in the clipboard.")


@in_browser
def test_several_images_by_the_file_chooser_four_at_a_time(open_page: OpenPage, tmp_path: Path) -> None:
    here = open_page()
    files = {f"image-{seed}.png": photograph(seed) for seed in range(6)}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    gate = Gate()
    gate.at(here.page)
    with here.page.expect_file_chooser() as chooser:
        here.page.get_by_text("Choose images").click()
    assert chooser.value.is_multiple()
    accepted = here.page.locator("#files").get_attribute("accept")
    assert accepted == "image/jpeg,image/png,image/webp,image/gif,image/bmp"
    chooser.value.set_files([tmp_path / name for name in files])
    expect(here.page.locator(".card[data-state=sent]")).to_have_count(4)
    expect(here.page.locator(".card[data-state=waiting]")).to_have_count(2)
    expect(here.card("image-5.png")).to_contain_text("Waiting for its turn")
    assert len(gate.held) == 4
    assert gate.held[0].request.headers["content-type"] == "image/png"
    assert gate.held[0].request.post_data_buffer == files["image-0.png"]
    gate.open()
    for name, content in files.items():
        assert_answers(here, name, content)


@in_browser
def test_a_broken_file_says_what_is_wrong_beside_a_good_one(open_page: OpenPage) -> None:
    here = open_page()
    good, bad = photograph(4), truncated_jpeg()
    with here.page.expect_response(lambda response: response.status == 422) as refused:
        here.choose(("good.png", good), ("broken.jpg", bad))
    assert_answers(here, "good.png", good)
    card = here.card("broken.jpg")
    expect(card).to_have_attribute("data-state", "failed")
    problem = here.ask("/classify", bad)
    assert problem["status"] == 422
    expect(card.locator(".problem-title")).to_have_text("422 Invalid image")
    expect(card.locator(".problem-detail")).to_have_text(problem["errors"][0]["detail"])
    expect(card.locator(".problem-id code")).to_have_text(refused.value.headers["x-request-id"])
    expect(card.get_by_role("button", name="Retry")).to_have_count(0)  # it would be no better the next time
    here.shoot("error")


@in_browser
def test_something_that_is_no_image(open_page: OpenPage) -> None:
    here = open_page()
    here.page.set_input_files("#files", [FilePayload(name="notes.txt", mimeType="text/plain", buffer=b"some words")])
    expect(here.card("notes.txt").locator(".problem-title")).to_have_text("415 Unsupported image format")
    expect(here.card("notes.txt").locator(".thumb-none")).to_have_text("txt")


@in_browser
def test_the_latency_split_adds_up(open_page: OpenPage) -> None:
    here = open_page()
    with here.page.expect_response("**/classify*") as response:
        here.choose(("one.png", photograph(1)))
    card = here.card("one.png")
    expect(card).to_have_attribute("data-state", "done")
    measured = float(card.locator(".latency-head").get_attribute("data-ms") or "nan")
    parts = {
        part.get_attribute("data-stage"): float(part.get_attribute("data-ms") or "nan")
        for part in card.locator("[data-stage]").all()
    }
    assert set(parts) - {"other"} == {"read", "decode", "queue", "infer", "encode", "network"}
    assert sum(parts.values()) == pytest.approx(measured, abs=0.06)
    told = dict(re.findall(r"(\w+);dur=([\d.]+)", response.value.headers["server-timing"]))
    for name in ("read", "decode", "queue", "infer", "encode"):
        assert parts[name] == float(told[name])
    assert parts["network"] == pytest.approx(measured - float(told["total"]), abs=0.06)
    drawn = card.locator(".stack > span").evaluate_all("(spans) => spans.map((span) => Number(span.style.flexGrow))")
    assert sum(drawn) == pytest.approx(measured, abs=0.06)


@in_browser
def test_two_images_are_compared_by_their_embeddings(open_page: OpenPage) -> None:
    here = open_page()
    images = [("one.png", photograph(1)), ("two.png", photograph(2)), ("three.png", photograph(3))]
    here.choose(*images)
    vectors = {name: np.array(here.ask("/embed", content)["results"][0]["embedding"]) for name, content in images}

    def toggle(name: str) -> None:
        here.card(name).get_by_role("button", name="Compare").click()

    def expect_similarity(first: str, second: str) -> None:
        wanted = float(vectors[first] @ vectors[second])
        value = here.page.locator(".similarity strong")
        expect(value).to_have_text(f"{wanted:.4f}")
        assert float(value.get_attribute("data-value") or "nan") == pytest.approx(wanted, abs=1e-5)
        meter = here.page.get_by_role("meter")
        assert float(meter.get_attribute("aria-valuenow") or "nan") == pytest.approx(wanted, abs=1e-4)

    toggle("one.png")
    expect(here.page.locator("#compare")).to_contain_text("Choose Compare on a second image.")
    toggle("two.png")
    expect_similarity("one.png", "two.png")
    toggle("three.png")  # takes the place of the first
    expect(here.card("one.png").get_by_role("button", name="Compare")).to_have_attribute("aria-pressed", "false")
    expect_similarity("two.png", "three.png")
    here.card("two.png").get_by_role("button", name="Remove").click()
    expect(here.page.locator("#compare")).to_contain_text("Choose Compare on a second image.")
    here.page.get_by_role("button", name="Done").click()
    expect(here.page.locator("#compare")).to_be_hidden()
    expect(here.card("three.png").get_by_role("button", name="Compare")).to_be_focused()


@in_browser
def test_a_comparison_with_a_broken_image_names_it(open_page: OpenPage) -> None:
    here = open_page()
    here.choose(("good.png", photograph(1)), ("broken.png", truncated_jpeg()))
    for name in ("good.png", "broken.png"):
        here.card(name).get_by_role("button", name="Compare").click()
    outcome = here.page.locator("#compare-outcome")
    expect(outcome).to_contain_text("No comparison with broken.png")
    detail = here.ask("/embed", truncated_jpeg())["errors"][0]["detail"]
    expect(outcome).to_contain_text(detail)
    expect(outcome.get_by_role("meter")).to_have_count(0)


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


@in_browser
@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl on this machine")
def test_the_copied_command_gives_the_same_answer(open_page: OpenPage, tmp_path: Path) -> None:
    here = open_page()
    for seed, name in enumerate(("plain.png", *HOSTILE_NAMES[1:], "ümlaut, ключ.png", "-", " space ")):
        content = photograph(seed)
        here.choose((name, content))
        shown = predictions(here.card(name))
        reply = run_copied(here, name, content, tmp_path)
        found = reply["results"][0]["predictions"]
        assert [one["label"] for one in found] == [label for label, _ in shown]
        assert [one["score"] for one in found] == pytest.approx([score for _, score in shown], rel=1e-5)
        here.page.get_by_role("button", name="Clear all").click()


@in_browser
def test_where_copying_is_not_allowed_the_command_is_shown_and_selected(open_page: OpenPage) -> None:
    here = open_page(
        before=lambda page: page.add_init_script("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
    )
    here.choose(("one.png", photograph(1)))
    here.card("one.png").get_by_role("button", name="Copy curl").click()
    field = here.card("one.png").get_by_label("curl command")
    expect(field).to_have_value(f"curl -F 'images=@one.png' '{here.url}/classify?top_k=5'")
    expect(field).to_be_focused()
    assert here.page.evaluate("getSelection().toString()") == field.input_value()


@in_browser
def test_names_of_files_and_labels_are_text(open_page: OpenPage) -> None:
    label = "<b>bold</b><script>document.title = 'taken'</script>"

    def relabel(route: Route) -> None:
        reply = route.fetch().json()
        reply["results"][0]["predictions"][0]["label"] = label
        route.fulfill(json=reply)

    here = open_page(before=lambda page: page.route("**/classify*", relabel))
    here.choose(*((name, photograph(seed)) for seed, name in enumerate(HOSTILE_NAMES)))
    for name in HOSTILE_NAMES:
        card = here.card(name)
        assert predictions(card)[0][0] == label
        expect(card.locator(".card-name")).to_have_text(name)
        card.get_by_role("button", name="Compare").click()
    expect(here.page.locator(".similarity")).to_be_visible()
    assert here.page.title() == "sovit"
    assert here.page.locator("main b, main script, main img[src='x']").count() == 0


@in_browser
def test_a_slow_model_is_seen_to_be_at_work(open_page: OpenPage) -> None:
    gate = Gate()

    def before(page: Page) -> None:
        page.clock.install()
        gate.at(page)

    here = open_page(before)
    content = photograph(5)
    here.choose(("slow.png", content), ("slower.png", content))
    card = here.card("slow.png")
    expect(card).to_have_attribute("data-state", "sent")
    expect(card).to_have_attribute("aria-busy", "true")
    expect(card).to_contain_text("Waiting for the answer")
    expect(card).not_to_contain_text("slow model")
    here.page.clock.run_for(7000)
    expect(card).to_contain_text("A slow model or a long queue.")
    assert float(card.locator(".elapsed").inner_text().removesuffix(" s")) >= 7.0
    here.shoot("slow")
    gate.open()
    assert_answers(here, "slow.png", content)


@in_browser
def test_a_full_queue_is_retried_when_it_says_so(open_page: OpenPage) -> None:
    def refuse(route: Route) -> None:
        fulfil(route, 429, "Queue full", "the service has all the work it can finish.", **{"retry-after": "7"})

    def before(page: Page) -> None:
        page.clock.install()
        page.route("**/classify*", refuse)

    here = open_page(before)
    content = photograph(6)
    here.choose(("one.png", content), ("two.png", content))
    card = here.card("one.png")
    expect(card.locator(".problem-title")).to_have_text("429 Queue full")
    retry = card.get_by_role("button", name="Retry")
    expect(retry).to_have_text("Retry in 7 s")
    expect(retry).to_have_attribute("aria-disabled", "true")
    retry.click(force=True)
    expect(card).to_have_attribute("data-state", "failed")
    here.page.clock.run_for(3000)
    expect(retry).to_have_text("Retry in 4 s")
    expect(here.page.get_by_role("button", name="Retry all")).to_be_hidden()
    here.page.clock.run_for(5000)
    expect(retry).to_have_text("Retry")
    here.page.unroute("**/classify*")
    retry.click()
    assert_answers(here, "one.png", content)
    here.card("two.png").get_by_role("button", name="Retry").click()
    assert_answers(here, "two.png", content)


@in_browser
def test_without_an_answer_an_image_may_be_sent_again(open_page: OpenPage) -> None:
    here = open_page(before=lambda page: page.route("**/classify*", lambda route: route.abort()))
    here.choose(("one.png", photograph(1)), ("two.png", photograph(2)))
    expect(here.card("one.png")).to_contain_text("The service cannot be reached")
    here.page.unroute("**/classify*")
    here.page.get_by_role("button", name="Retry all").click()
    assert_answers(here, "one.png", photograph(1))
    assert_answers(here, "two.png", photograph(2))


@in_browser
def test_images_wait_for_a_service_that_starts(open_page: OpenPage) -> None:
    def starting(route: Route) -> None:
        fulfil(route, 503, "Not ready", "the service is not ready.", **{"retry-after": "1"})

    here = open_page(before=lambda page: page.route("**/models", starting))
    here.choose(("early.png", photograph(1)))
    expect(here.page.locator("#live-text")).to_have_text("Starting: the model is loading")
    expect(here.card("early.png")).to_contain_text("Waiting for the service")
    here.page.unroute("**/models")
    assert_answers(here, "early.png", photograph(1))
    expect(here.page.locator("#live-text")).to_have_text(re.compile("^Ready"))


@in_browser
def test_the_empty_page_says_what_it_is_for(open_page: OpenPage) -> None:
    here = open_page()
    expect(here.page.locator("#empty")).to_be_visible()
    expect(here.page.get_by_role("button", name="Clear all")).to_be_hidden()
    model = httpx.get(f"{here.url}/models").json()["models"][0]
    expect(here.page.locator("#model-name")).to_have_text("tiny")
    expect(here.page.locator("#model-facts")).to_contain_text(model["artifact_sha256"])
    for fact in ("fp32", model["runtime"], "16 \N{MULTIPLICATION SIGN} 16"):
        expect(here.page.locator("#model-facts")).to_contain_text(fact)
    expect(here.page.locator("#live-text")).to_have_text(re.compile("^Ready"))
    here.shoot("empty")
    here.choose(("one.png", photograph(1)), ("two.png", photograph(2)))
    expect(here.page.locator("#empty")).to_be_hidden()
    addresses = here.page.locator(".thumb-image").evaluate_all("(images) => images.map((image) => image.src)")
    load = """(address) => new Promise((resolve) => {
        const image = new Image();
        image.onload = () => resolve("there");
        image.onerror = () => resolve("gone");
        image.src = address;
    })"""
    assert [here.page.evaluate(load, address) for address in addresses] == ["there", "there"]
    here.page.get_by_role("button", name="Clear all").click()
    expect(here.page.locator("#empty")).to_be_visible()
    # What the images held of memory is given back.
    assert [here.page.evaluate(load, address) for address in addresses] == ["gone", "gone"]
    here.trouble = [line for line in here.trouble if "blob:" not in line]


@in_browser
def test_the_live_strip_shows_what_there_is(open_page: OpenPage) -> None:
    stats: dict[str, Any] = {
        "ready": True, "draining": False, "window_seconds": 60,
        "requests": {"inflight": 0, "per_second": 0.0, "latency_ms": None},
        "models": [{"name": "tiny", "queue_images": 0, "batch_images": None, "ready": True}],
    }  # fmt: skip
    here = open_page(before=lambda page: page.route("**/stats", lambda route: route.fulfill(json=stats)))
    tiles = here.page.locator("#live-tiles > div:visible")
    state = here.page.locator("#live-text")
    expect(state).to_have_text("Ready, idle for a minute")
    expect(tiles).to_have_count(1)  # a queue of none is known; a latency of no request is not
    expect(tiles).to_contain_text("0 images")
    stats["requests"] = {"inflight": 3, "per_second": 12.5, "latency_ms": {"p50": 21.04, "p90": 40.1, "p99": 155.2}}
    stats["models"][0] |= {"queue_images": 3, "batch_images": 4.25}
    expect(tiles).to_have_count(5)
    for text in ("3 images", "4.3", "13/s", "21.0 ms", "155 ms"):
        expect(here.page.locator("#live-tiles")).to_contain_text(text)
    line = here.page.locator("[data-tile=p50] path")
    expect(line).to_have_attribute("d", re.compile(r"M.+L.+"))
    stats["draining"] = True
    expect(state).to_have_text("Draining: it takes no more")


@in_browser
def test_a_service_that_goes_away_is_said_to_be_and_found_again(open_page: OpenPage) -> None:
    here = open_page()
    state = here.page.locator("#live-text")
    expect(state).to_have_text(re.compile("^Ready"))
    here.page.route("**/stats", lambda route: route.abort())
    expect(state).to_have_text("Not reachable")
    expect(here.page.locator("#live-tiles")).to_be_hidden()
    here.page.unroute("**/stats")
    with here.page.expect_response("**/models", timeout=20_000):  # it may have come back as another
        pass
    expect(state).to_have_text(re.compile("^Ready"))


@in_browser
def test_the_strip_shows_a_real_minute(open_page: OpenPage) -> None:
    here = open_page()
    here.choose(("one.png", photograph(1)))
    assert_answers(here, "one.png", photograph(1))
    expect(here.page.locator("[data-tile=p50] dd")).to_have_text(re.compile(r"^[\d.]+ m?s$"))
    expect(here.page.locator("[data-tile=Batch] dd")).to_have_text(re.compile(r"^[\d.]+$"))


@pytest.fixture(scope="module")
def keyed_url(exported: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("keyed")
    keys = folder / "keys.json"
    keys.write_text(json.dumps([{"name": "page", "sha256": sha256(KEY.encode()).hexdigest()}]))
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    with serving(sovit_serve(exported.folder, port, "--keys", str(keys)), address, folder / "log"):
        yield address


@in_browser
def test_a_keyed_service_asks_for_the_key_and_then_works(open_page: OpenPage, keyed_url: str, tmp_path: Path) -> None:
    here = open_page(url=keyed_url, key=KEY)
    content = photograph(1)
    here.choose(("one.png", content))
    field = here.page.get_by_label("This service asks for a key.")
    expect(field).to_be_focused()
    expect(field).to_have_attribute("type", "password")
    expect(here.card("one.png")).to_contain_text("Waiting for a key")
    field.fill("not the key")
    field.press("Enter")
    expect(here.page.get_by_text("That key is not known here.")).to_be_visible()
    field.fill(KEY)
    here.page.get_by_role("button", name="Use this key").click()
    assert_answers(here, "one.png", content)
    expect(here.page.locator("#key-form")).to_be_hidden()
    expect(here.page.locator("#live-text")).to_have_text(re.compile("^Ready"))
    assert KEY not in here.page.content()
    assert here.page.evaluate("Object.values({ ...sessionStorage })") == [KEY]
    assert here.page.evaluate("[localStorage.length, document.cookie]") == [0, ""]
    if shutil.which("curl"):
        reply = run_copied(here, "one.png", content, tmp_path)
        assert reply["results"] == here.ask("/classify", content, top_k=5)["results"]
        command = here.page.evaluate("navigator.clipboard.readText()")
        assert '-H "Authorization: Bearer $KEY"' in command
        assert KEY not in command
    here.page.reload()
    expect(here.page.locator("#live-text")).to_have_text(re.compile("^Ready"))
    expect(here.page.locator("#key-form")).to_be_hidden()


@in_browser
def test_a_key_that_is_taken_away_is_asked_for_again(open_page: OpenPage, keyed_url: str) -> None:
    here = open_page(url=keyed_url, key=KEY)
    field = here.page.get_by_label("This service asks for a key.")
    field.fill(KEY)
    field.press("Enter")
    expect(here.page.locator("#key-form")).to_be_hidden()
    here.page.route("**/classify*", lambda route: fulfil(route, 401, "Unauthorized", "this needs a key."))
    here.choose(("one.png", photograph(1)))
    expect(field).to_be_visible()
    expect(here.card("one.png")).to_contain_text("Waiting for a key")
    here.page.unroute("**/classify*")
    field.fill(KEY)
    field.press("Enter")
    assert_answers(here, "one.png", photograph(1))


@pytest.fixture(scope="module")
def two_models_url(exported: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The tiny model, and one without a head."""
    from export.reference import reference_images
    from export.to_onnx import export_onnx, from_checkpoint

    folder = tmp_path_factory.mktemp("two")
    spec = tiny_spec(num_classes=0)
    save_checkpoint(folder / "checkpoint", random_model(spec.model, seed=7), spec, {"weights": "random"})
    images = reference_images(spec.preprocess, None)
    headless = export_onnx(from_checkpoint(folder / "checkpoint", "headless"), folder / "artifact", images)
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    words = ["sovit", "serve", f"insects={exported.folder}", f"vectors={headless.folder}", "--port", str(port)]
    with serving(words, address, folder / "log"):
        yield address


@in_browser
def test_one_of_two_models_is_picked(open_page: OpenPage, two_models_url: str, tmp_path: Path) -> None:
    here = open_page(url=two_models_url)
    content = photograph(1)
    here.choose(("one.png", content))
    assert_answers(here, "one.png", content, model="insects")
    picker = here.page.get_by_label("Model")
    expect(picker).to_have_value("insects")
    picker.select_option("vectors")
    card = here.card("one.png")
    expect(card).to_contain_text("This model only embeds.")
    expect(card).to_contain_text("32 numbers")
    expect(here.page.locator("#model-facts")).to_contain_text("none, it only embeds")
    embedding = here.ask("/embed", content, model="vectors")["results"][0]["embedding"]
    assert card.locator(".values span").all_inner_texts() == [f"{value:.4f}" for value in embedding[:12]]
    if shutil.which("curl"):
        reply = run_copied(here, "one.png", content, tmp_path)
        assert reply["model"]["name"] == "vectors"
        assert reply["results"][0]["embedding"] == pytest.approx(embedding, rel=1e-5)
    here.choose(("two.png", photograph(2)))
    for name in ("one.png", "two.png"):
        here.card(name).get_by_role("button", name="Compare").click()
    other = here.ask("/embed", photograph(2), model="vectors")["results"][0]["embedding"]
    expect(here.page.locator(".similarity strong")).to_have_text(f"{np.dot(embedding, other):.4f}")
    picker.select_option("insects")
    assert_answers(here, "one.png", content, model="insects")


def fill(here: Opened) -> None:
    """Cards of every kind, and a comparison."""
    here.choose(("a-file-that-is-broken-and-has-a-rather-long-name-without-spaces-in-it.jpg", truncated_jpeg()))
    here.choose(("goldfinch.png", photograph(11, 320)), ("hammerhead.png", photograph(12, 320)))
    expect(here.page.locator(".card[data-state=done]")).to_have_count(2)
    expect(here.page.locator(".card[data-state=failed]")).to_have_count(1)
    for name in ("goldfinch.png", "hammerhead.png"):
        here.card(name).get_by_role("button", name="Compare").click()
    expect(here.page.locator(".similarity")).to_be_visible()
    expect(here.page.locator("[data-tile=p50] path")).to_have_attribute("d", re.compile(r"M.+L.+"))


CONTRAST = """() => {
    const parse = (color) => color.match(/[\\d.]+/g).map(Number);
    const light = ([r, g, b]) => [r, g, b].map((value) => value / 255)
        .map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4))
        .reduce((sum, value, index) => sum + value * [0.2126, 0.7152, 0.0722][index], 0);
    const ground = (node) => {
        for (let one = node; one; one = one.parentElement) {
            const color = parse(getComputedStyle(one).backgroundColor);
            if (color.length === 3) return color;
            if (color[3] > 0) throw new Error(`a background that is neither opaque nor clear: ${one.className}`);
        }
    };
    const poor = [];
    for (const node of document.querySelectorAll("body *")) {
        const words = [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim());
        if (!words || !node.checkVisibility() || node.closest("noscript")) continue;
        const [low, high] = [light(parse(getComputedStyle(node).color)), light(ground(node))].sort((a, b) => a - b);
        const ratio = (high + 0.05) / (low + 0.05);
        if (ratio < 4.5) poor.push(`${node.tagName}.${node.className} ${node.textContent} ${ratio.toFixed(2)}`);
    }
    return poor;
}"""


@in_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark_can_be_read(open_page: OpenPage, scheme: Scheme) -> None:
    here = open_page(color_scheme=scheme)
    fill(here)
    here.page.mouse.move(0, 0)
    assert here.page.evaluate(CONTRAST) == []
    ground = here.page.evaluate("getComputedStyle(document.body).backgroundColor")
    brightness = sum(int(value) for value in re.findall(r"\d+", ground)) / 3
    assert brightness > 230 if scheme == "light" else brightness < 30
    here.shoot(f"desktop-{scheme}")


@in_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_nothing_scrolls_sideways(open_page: OpenPage, scheme: Scheme) -> None:
    here = open_page(width=360, has_touch=True, is_mobile=True, color_scheme=scheme)
    expect(here.page.locator("#live-text")).to_have_text(re.compile("^Ready"))
    assert here.page.evaluate("document.documentElement.scrollWidth") == 360
    fill(here)
    assert here.page.evaluate("document.documentElement.scrollWidth") == 360
    small = here.page.locator("button:visible, .choose, select:visible").evaluate_all(
        "(nodes) => nodes.filter((node) => node.getBoundingClientRect().height < 44).map((node) => node.textContent)"
    )
    assert small == []  # a finger finds them
    here.shoot("phone" if scheme == "light" else "phone-dark")


@in_browser
def test_the_keyboard_reaches_everything(open_page: OpenPage) -> None:
    here = open_page()
    expect(here.page.locator("#model-name")).to_be_visible()
    here.choose(("one.png", photograph(1)), ("two.png", photograph(2)))
    expect(here.page.locator(".card[data-state=done]")).to_have_count(2)
    here.page.evaluate("document.activeElement.blur()")
    reached = []
    for _ in range(9):
        here.page.keyboard.press("Tab")
        reached.append(here.page.evaluate("document.activeElement.ariaLabel ?? document.activeElement.id"))
    wanted = ["files", "clear-all"]
    wanted += [f"{word}: {name}" for name in ("one.png", "two.png") for word in ("Compare", "Copy curl", "Remove")]
    assert reached[1:] == wanted  # the first is the link to the API
    here.page.keyboard.press("Space")
    expect(here.page.locator(".card")).to_have_count(1)
    expect(here.card("one.png").get_by_role("button", name="Remove")).to_be_focused()
    here.page.keyboard.press("Shift+Tab")
    here.page.keyboard.press("Shift+Tab")
    here.page.keyboard.press("Space")
    expect(here.card("one.png").get_by_role("button", name="Compare")).to_have_attribute("aria-pressed", "true")


@in_browser
def test_a_model_that_was_replaced_is_noticed(open_page: OpenPage) -> None:
    def replaced(route: Route) -> None:
        reply = route.fetch().json()
        reply["model"]["artifact"] = "another"
        route.fulfill(json=reply)

    here = open_page()
    expect(here.page.locator("#model-name")).to_be_visible()
    here.page.route("**/classify*", replaced)
    with here.page.expect_response("**/models"):
        here.choose(("one.png", photograph(1)))


@in_browser
def test_what_is_removed_is_not_waited_for(open_page: OpenPage) -> None:
    gate = Gate()
    here = open_page(before=gate.at)
    here.choose(*((f"{seed}.png", photograph(seed)) for seed in range(5)))
    expect(here.page.locator(".card[data-state=sent]")).to_have_count(4)
    with here.page.expect_event("requestfailed"):
        here.card("0.png").get_by_role("button", name="Remove").click()
    expect(here.card("4.png")).to_have_attribute("data-state", "sent")
    with here.page.expect_event("requestfailed"):
        here.page.get_by_role("button", name="Clear all").click()
    expect(here.page.locator("#empty")).to_be_visible()
    here.page.unroute("**/classify*")
    here.choose(("again.png", photograph(1)))
    assert_answers(here, "again.png", photograph(1))
