"""The gateway's page for everyone: by keyboard alone, with a screen reader, narrow, dark and light."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Page, expect

from tests.daemon.browsing import asks, base, browser, context, daemon, finished, page, pytestmark

__all__ = ["base", "browser", "context", "daemon", "page", "pytestmark"]


def test_keyboard_only(page: Page) -> None:
    asks(page, max_tokens=5, temperature=0)
    expect(page.get_by_role("textbox", name="Your message")).to_be_focused()
    page.keyboard.type("first line")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("second line")
    page.keyboard.press("Enter")
    expect(page.locator(".you .words")).to_have_text("first line\nsecond line")
    finished(page)
    names = []
    for _ in range(4):
        page.keyboard.press("Tab")
        names.append(page.evaluate(FOCUSED))
    assert names == ["Send", "Draft", "Mark drafted tokens", "Temperature"]


FOCUSED = """() => {
    const focused = document.activeElement;
    const style = getComputedStyle(focused);
    if (style.outlineStyle === "none" || style.outlineWidth === "0px") return "no visible focus";
    return (focused.labels?.[0] ?? focused).textContent.trim();
}"""


def test_roles_and_names(page: Page) -> None:
    expect(page.get_by_role("main")).to_be_visible()
    expect(page.get_by_role("heading", level=1, name="draftd")).to_be_visible()
    for name in ("Speed", "Drafts accepted, by source", "Daemon"):
        expect(page.get_by_role("region", name=name)).to_be_visible()
    nameless = page.evaluate(
        """() => [...document.querySelectorAll("button, input, textarea, img")].filter((each) =>
            !(each.textContent.trim() || each.labels?.length || each.hasAttribute("alt"))).length"""
    )
    assert nameless == 0
    assert page.locator("html").get_attribute("lang") == "en"


@pytest.mark.parametrize("width", [1280, 360])
def test_nothing_is_cut_off(page: Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 700})
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_dark_and_light(page: Page) -> None:
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        ratios = page.evaluate(CONTRAST)
        assert min(ratios.values()) >= 4.5, (scheme, ratios)
        bright = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", bright))) > 384) == (scheme == "light")


CONTRAST = """() => {
    const light = (colour) => colour.match(/[\\d.]+/g).slice(0, 3).map((part) => part / 255)
        .map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
        .reduce((sum, part, index) => sum + part * [0.2126, 0.7152, 0.0722][index], 0);
    const ground = (each) => {
        const colour = getComputedStyle(each).backgroundColor;
        return colour === "rgba(0, 0, 0, 0)" ? ground(each.parentElement) : colour;
    };
    const found = {};
    for (const each of document.querySelectorAll("h1, h2, p, dt, dd, button, label, .drafted, kbd, strong")) {
        if (!each.checkVisibility() || !each.textContent.trim()) continue;
        const [one, other] = [light(getComputedStyle(each).color), light(ground(each))].sort((a, b) => b - a);
        found[each.textContent.trim().slice(0, 30)] = (one + 0.05) / (other + 0.05);
    }
    return found;
}"""
