"""The page at `/` when its service is slow, full, not ready, gone, keyed, of two models, idle or replaced."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from playwright.sync_api import Page, Route, expect

from sovit.artifact import Artifact
from sovit.checkpoint import save_checkpoint
from sovit.process import free_port, serving
from tests.browser import (
    Gate,
    OpenPage,
    assert_answers,
    fulfil,
    photograph,
    run_copied,
    service,
)
from tests.conftest import random_model, tiny_spec

pytestmark = pytest.mark.browser
KEY = "page-key"


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


def test_without_an_answer_an_image_may_be_sent_again(open_page: OpenPage) -> None:
    here = open_page(before=lambda page: page.route("**/classify*", lambda route: route.abort()))
    here.choose(("one.png", photograph(1)), ("two.png", photograph(2)))
    expect(here.card("one.png")).to_contain_text("The service cannot be reached")
    here.page.unroute("**/classify*")
    here.page.get_by_role("button", name="Retry all").click()
    assert_answers(here, "one.png", photograph(1))
    assert_answers(here, "two.png", photograph(2))


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
    with service(exported, folder, "--keys", str(keys)) as address:
        yield address


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
