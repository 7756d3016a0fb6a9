"""The gateway's page in a real browser: headless Chromium before a real gateway and daemon."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import httpx
from playwright.sync_api import Browser, Page, Route, expect

from tests.daemon.browsing import (
    ENDLESS,
    answers,
    asks,
    base,
    browser,
    context,
    daemon,
    finished,
    page,
    pytestmark,
    say,
)
from tests.daemon.conftest import Daemon
from tests.daemon.gateways import free_address, gateway

__all__ = ["base", "browser", "context", "daemon", "page", "pytestmark"]


def test_an_answer_streams_with_its_drafted_tokens_marked(page: Page) -> None:
    asks(page, max_tokens=60, speculate="model:4", temperature=0)
    say(page, "hello")
    expect(answers(page)).to_have_count(1)
    finished(page)
    note = answers(page).locator(".note")
    expect(note).to_contain_text(re.compile(r"\d+ tokens, \d+ of them drafted \(\d+ %\) · [\d.]+ tokens/s"))
    marked, whole = answers(page).locator(".drafted"), answers(page).locator(".words")
    assert 0 < len("".join(marked.all_text_contents())) < len(whole.text_content() or "")
    expect(marked.first).not_to_have_css("background-color", "rgba(0, 0, 0, 0)")
    page.get_by_role("checkbox", name="Mark drafted tokens").uncheck()
    expect(marked.first).to_have_css("background-color", "rgba(0, 0, 0, 0)")
    # What a screen reader hears is the whole answer, once, when it is there.
    expect(page.locator("#spoken")).to_contain_text((whole.text_content() or "")[:20])


def test_the_figures(page: Page, daemon: Daemon) -> None:
    asks(page, max_tokens=40, speculate="model:4", temperature=0)
    say(page, "figures")
    finished(page)
    aside = page.get_by_role("complementary", name="Live figures")
    expect(aside.locator("#sources")).to_contain_text(re.compile(r"Draft model\d+ % of \d+"))
    expect(aside.locator("#speed-now")).to_contain_text(re.compile(r"^[\d.]+ tokens/s$"))
    expect(aside.locator("#running")).to_have_text("0 of 2")
    expect(aside.locator("#memory")).to_have_text(re.compile(r"^[\d.]+ [MG]B$"))
    heat = daemon.status().governor["temperature"]
    expect(aside.locator("#temperature-now")).to_have_text("no sensor" if heat is None else re.compile("°C$"))


def test_the_target_alone_is_known_once_it_was_measured(page: Page) -> None:
    asks(page, max_tokens=40, temperature=0)
    page.get_by_role("checkbox", name="Draft", exact=True).uncheck()
    say(page, "alone")
    finished(page)
    expect(answers(page).locator(".note")).to_contain_text("drafting off")
    expect(page.locator("#speed-alone")).to_have_text(re.compile(r"^[\d.]+ tokens/s$"))
    expect(page.locator("#gain")).to_have_text("\u2013")  # an answer without drafts is no gain
    page.get_by_role("checkbox", name="Draft", exact=True).check()
    say(page, "again")
    expect(page.locator("#gain")).to_have_text(re.compile(r"^[\d.]+\u00d7$"))


def test_stop_in_mid_answer(page: Page, daemon: Daemon) -> None:
    asks(page, **ENDLESS)
    say(page, "a long answer")
    expect(answers(page).locator(".drafted, .prose span").nth(5)).to_be_attached()
    page.get_by_role("button", name="Stop").click()
    finished(page)
    expect(answers(page).locator(".note")).to_contain_text(re.compile(r"^Stopped\. \d+ tokens"))
    expect(page.get_by_role("textbox", name="Your message")).to_be_focused()
    daemon.wait_for(lambda status: not status.requests["running"])
    say(page, "another long answer")
    expect(answers(page)).to_have_count(2)
    expect(answers(page).nth(1).locator("span").first).to_be_attached()
    page.keyboard.press("Escape")
    finished(page)
    daemon.wait_for(lambda status: not status.requests["running"])


def test_a_reload_keeps_the_conversation(page: Page) -> None:
    asks(page, max_tokens=30, speculate="model:4", temperature=0)
    page.get_by_role("spinbutton", name="Temperature").fill("0.3")
    say(page, "remember")
    finished(page)
    before = page.get_by_role("region", name="Conversation").inner_html()
    page.get_by_role("textbox", name="Your message").fill("half a quest")
    page.reload()
    expect(answers(page)).to_have_count(1)
    assert page.get_by_role("region", name="Conversation").inner_html() == before
    expect(page.get_by_role("textbox", name="Your message")).to_have_value("half a quest")
    expect(page.get_by_role("spinbutton", name="Temperature")).to_have_value("0.3")
    page.get_by_role("button", name="New chat").click()
    expect(page.get_by_text("Ask the model on this machine")).to_be_visible()
    page.reload()
    expect(answers(page)).to_have_count(0)


def test_a_reload_in_mid_answer_keeps_what_had_come(page: Page, daemon: Daemon) -> None:
    asks(page, **ENDLESS)
    say(page, "long")
    expect(answers(page).locator("span").nth(3)).to_be_attached()
    page.reload()
    expect(answers(page).locator("span").nth(3)).to_be_attached()
    finished(page)
    daemon.wait_for(lambda status: not status.requests["running"])


def test_a_conversation_that_the_browser_can_not_keep_goes_on(page: Page) -> None:
    full = "() => { throw new DOMException('', 'QuotaExceededError'); }"
    page.evaluate(f"() => {{ Storage.prototype.setItem = {full}; }}")
    asks(page, max_tokens=5, temperature=0)
    say(page, "a long text")
    expect(answers(page).locator(".note")).to_contain_text("first after")
    finished(page)


def test_the_policy_lets_nothing_else_in(page: Page, base: str) -> None:
    for path in ("/", "/page/page.js", "/page/page.css"):
        headers = httpx.get(base + path).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
    say(page, "<img src=x onerror=alert(1)><script>alert(1)</script>")
    expect(page.locator(".you .words")).to_have_text("<img src=x onerror=alert(1)><script>alert(1)</script>")
    assert page.locator("#talk img, #talk script").count() == 0
    page.keyboard.press("Escape")
    finished(page)


def test_a_question_that_got_no_answer_is_not_sent_again(page: Page) -> None:
    sent: list[Any] = []

    def refuse(route: Route) -> None:
        sent.append((route.request.post_data_json or {})["messages"])
        route.fulfill(status=503, json={"error": {"message": "the queue is full"}})

    page.route("**/v1/chat/completions", refuse)
    for text in ("one", "two"):
        say(page, text)
        expect(answers(page).last).to_contain_text("the queue is full")
        finished(page)
    page.get_by_role("button", name="Try again").click()
    expect(answers(page).last).to_contain_text("the queue is full")
    finished(page)
    assert sent == [[{"role": "user", "content": text}] for text in ("one", "two", "two")]


def test_code_stands_in_a_box(page: Page) -> None:
    """However the text is cut into tokens, and whoever guessed them."""
    text = "Look:\n```python\nx = 1\n\ny = 2\n```\nThat is all."
    for step in (1, 4, 100):
        pieces = [[text[at : at + step], at % 3 == 0] for at in range(0, len(text), step)]
        boxes = page.evaluate(WRITTEN, pieces)
        assert [kind for kind, _ in boxes] == ["DIV", "PRE", "DIV"]
        assert [words.strip() for _, words in boxes] == ["Look:", "x = 1\n\ny = 2", "That is all."]


WRITTEN = """async (pieces) => {
    const { Writer } = await import("/page/writer.js");
    const made = document.createElement("div");
    const writer = new Writer(made);
    pieces.forEach((piece) => writer.add(...piece));
    writer.finish();
    return [...made.children].map((each) => [each.tagName, each.textContent]);
}"""


def test_lengths_count_characters_and_not_javascript_s_units(page: Page) -> None:
    chunk = {
        "choices": [{"delta": {"content": "a\U0001f600bc!"}}],
        "draftd": {"drafted": [False, True, True, False], "lengths": [1, 1, 2, 0]},
    }
    runs = "async (chunk) => (await import('/page/stream.js')).runs(chunk)"
    assert page.evaluate(runs, chunk) == [["a", False], ["\U0001f600bc", True], ["!", False]]
    del chunk["draftd"]  # a daemon that does not tell
    assert page.evaluate(runs, chunk) == [["a\U0001f600bc!", False]]


def test_the_daemon_goes_and_comes_back(page: Page, daemon: Daemon) -> None:
    """In mid-answer, which then goes on where it was; and between answers."""
    trouble = page.locator("#trouble")
    expect(page.locator("#state")).to_have_text("ready")
    asks(page, **ENDLESS)
    say(page, "a long answer")
    expect(answers(page).locator("span").nth(3)).to_be_attached()
    daemon.process.kill()
    daemon.process.wait()
    expect(trouble).to_contain_text("start it with `draftd serve` This page goes on by itself")
    expect(page.locator("#state")).to_have_text("away")
    daemon.start_again()
    expect(trouble).to_have_text("The daemon is back.")
    page.keyboard.press("Escape")
    finished(page)
    expect(answers(page).locator(".note")).to_contain_text("Stopped.")
    expect(trouble).to_be_empty()


def test_figures_that_break_off_come_again(page: Page) -> None:
    """The gateway ended in the middle of a status: the page goes on looking."""
    expect(page.locator("#state")).to_have_text("ready")
    page.route("**/status", lambda route: route.fulfill(status=200, body='{"state": '))
    expect(page.locator("#state")).to_have_text("away")
    page.unroute("**/status")
    expect(page.locator("#state")).to_have_text("ready")


def test_a_gateway_with_keys_that_goes_and_comes_back(
    browser: Browser, daemon: Daemon, tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    keys.write_text("schlüssel-1\n", "utf-8")
    keys.chmod(0o600)
    listen = free_address()  # the page finds the second gateway where the first one was
    given = (daemon.endpoint, "--api-keys", str(keys))
    context = browser.new_context()
    try:
        with gateway(*given, listen=listen) as address:
            assert httpx.get(f"{address}/status").status_code == 401
            page = context.new_page()
            page.goto(f"{address}/")
            for key in ("ключ", "schlüssel-1"):  # the first is wrong, so that it is asked for again
                page.get_by_label("This gateway asks for a key").fill(key)
                page.keyboard.press("Enter")
            expect(page.locator("#state")).to_have_text("ready")
        expect(page.locator("#trouble")).to_contain_text("Is `draftd gateway` running?")
        asks(page, max_tokens=5)
        say(page, "anyone there?")
        expect(answers(page).locator(".note")).to_contain_text("Is `draftd gateway` running?")
        with gateway(*given, listen=listen):
            expect(page.locator("#trouble")).to_have_text("The daemon is back.")
            page.get_by_role("button", name="Try again").click()
            finished(page)
            expect(answers(page).locator(".note")).to_contain_text("tokens")
            expect(answers(page)).to_have_count(1)
    finally:
        context.close()
