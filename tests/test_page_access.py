"""The page at `/` for everybody: contrast in light and in dark, the size of a phone, and the keyboard alone."""

from __future__ import annotations

import re
from typing import Literal

import pytest
from playwright.sync_api import expect

from tests.browser import Opened, OpenPage, photograph
from tests.served import truncated_jpeg

pytestmark = pytest.mark.browser
Scheme = Literal["light", "dark"]
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
