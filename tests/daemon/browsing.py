"""The gateway's page in headless Chromium, before a real gateway and daemon, and what a user does there."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Route, expect, sync_playwright

from tests.daemon.conftest import Daemon, serving
from tests.daemon.gateways import gateway
from tests.tiny import write_tiny
from tests.tiny_gguf import write_gguf

CHROMIUM = shutil.which("chromium")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
)
CONTEXT = 32768
ENDLESS = {  # a minute or more of an answer, whatever the machine
    "temperature": 0, "max_tokens": 30_000, "logit_bias": {"256": -100, "258": -100}, "speculate": False
}  # fmt: skip
PATIENCE = 30_000  # milliseconds until the page must show what a test waits for
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: sudo apt install chromium")
expect.set_options(timeout=PATIENCE)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One with room for answers that do not end before a test has stopped them."""
    files = tmp_path_factory.mktemp("models")
    write_tiny(files / "target", context=CONTEXT)
    write_gguf(write_tiny(files / "noisy", noise=0.15, context=CONTEXT), files / "draft.gguf")
    with serving(tmp_path_factory.mktemp("page"), files) as start:
        yield start("--slots", "2", context=str(CONTEXT))


@pytest.fixture(scope="module")
def base(daemon: Daemon) -> Iterator[str]:
    with gateway(daemon.endpoint) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def context(browser: Browser, base: str) -> Iterator[BrowserContext]:
    made = browser.new_context(base_url=base)
    made.set_default_timeout(PATIENCE)
    yield made
    made.close()


@pytest.fixture
def page(context: BrowserContext, base: str) -> Iterator[Page]:
    """The page, loaded; it must not have complained to the console, nor asked anyone but the gateway."""
    made = context.new_page()
    wrong: list[str] = []
    made.on("pageerror", lambda error: wrong.append(str(error)))
    made.on("console", lambda line: wrong.append(line.text) if _complains(line) else None)
    made.on("request", lambda request: None if request.url.startswith(base) else wrong.append(request.url))
    made.goto("/")
    yield made
    assert wrong == [], wrong


def _complains(line: Any) -> bool:
    """A reply that is an error is told on the console too, and is no fault of the page."""
    return line.type in ("error", "warning") and not line.text.startswith("Failed to load resource")


def asks(page: Page, **fields: Any) -> None:
    """Have the page's requests carry further fields: a short answer, a source that surely drafts."""

    def more(route: Route) -> None:
        route.continue_(post_data=(route.request.post_data_json or {}) | fields)

    page.route("**/v1/chat/completions", more)


def say(page: Page, text: str) -> None:
    page.get_by_role("textbox", name="Your message").fill(text)
    page.keyboard.press("Enter")


def answers(page: Page) -> Any:
    return page.get_by_role("article").filter(has=page.get_by_role("heading", name="Answer"))


def finished(page: Page) -> None:
    expect(page.get_by_role("button", name="Send")).to_be_visible()
