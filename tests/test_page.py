"""The page at `/` in real Chromium: images given to it, their predictions, errors, comparisons and commands."""

from __future__ import annotations

import base64
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import FilePayload, Page, Route, expect

from tests.browser import (
    Gate,
    OpenPage,
    assert_answers,
    photograph,
    predictions,
    run_copied,
)
from tests.served import truncated_jpeg

pytestmark = pytest.mark.browser
HOSTILE_NAMES = (
    "<img src=x onerror=document.title='taken'>.png",
    'it\'s; "two", $(three) `four` \\five&six.png',
    "a" * 200 + ".png",
)


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


def test_an_image_that_is_dropped_shows_what_the_api_answers(open_page: OpenPage) -> None:
    here = open_page()
    content = photograph(1)
    here.page.locator("#drop").dispatch_event("drop", {"dataTransfer": transfer(here.page, [("one.png", content)])})
    assert_answers(here, "one.png", content)
    expect(here.page.locator("#results-count")).to_have_text("1 image")
    expect(here.page.locator("#announcer")).to_contain_text("one.png: ")
    assert here.card("one.png").locator("img").evaluate("(image) => image.naturalWidth") == 96


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


def test_something_that_is_no_image(open_page: OpenPage) -> None:
    here = open_page()
    here.page.set_input_files("#files", [FilePayload(name="notes.txt", mimeType="text/plain", buffer=b"some words")])
    expect(here.card("notes.txt").locator(".problem-title")).to_have_text("415 Unsupported image format")
    expect(here.card("notes.txt").locator(".thumb-none")).to_have_text("txt")


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
