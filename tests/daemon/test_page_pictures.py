"""Pictures of the page for the README, with a real pair: `make screenshots` writes them into docs/."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from draftd.daemon.private import private_daemon
from tests.daemon.browsing import answers, asks, browser, finished, pytestmark, say
from tests.daemon.gateways import gateway

__all__ = ["browser", "pytestmark"]
DOCS = Path(__file__).parents[2] / "docs"
QUESTIONS = (
    "What is a Unix socket, in two sentences?",
    "Write a Python function that returns the n-th Fibonacci number.",
)


@pytest.mark.screenshots
@pytest.mark.timeout(600)
def test_pictures(browser: Browser, smollm2: str) -> None:
    with private_daemon(smollm2, lambda status: None) as endpoint, gateway(endpoint) as address:
        context = browser.new_context(viewport={"width": 1180, "height": 760})
        try:
            page = context.new_page()
            page.goto(f"{address}/")
            asks(page, max_tokens=260, cache_prompt=False)  # nothing of it comes from an earlier making
            page.get_by_role("checkbox", name="Draft", exact=True).uncheck()
            say(page, QUESTIONS[0])  # so that the target alone has been measured
            finished(page)
            page.get_by_role("checkbox", name="Draft", exact=True).check()
            page.get_by_role("button", name="New chat").click()
            page.get_by_role("spinbutton", name="Temperature").fill("0")
            for count, question in enumerate(QUESTIONS, 1):
                say(page, question)
                expect(answers(page)).to_have_count(count)
                finished(page)
            page.mouse.move(0, 0)
            expect(page.locator("#running")).to_have_text("0 of 4")
            for scheme in ("light", "dark"):
                page.emulate_media(color_scheme=scheme)
                page.screenshot(path=DOCS / f"page-{scheme}.png", animations="disabled")
        finally:
            context.close()
