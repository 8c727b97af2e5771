"""A real browser for tests: the system's chromium without a window, and what it complains of."""

import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright

RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
OPEN_ALL = "document.querySelectorAll('details').forEach(part => part.open = true)"


@dataclass
class Opened:
    """A page, what it asked for, and what the browser had to say about it."""

    page: Page
    requests: list[str] = field(default_factory=list[str])
    complaints: list[str] = field(default_factory=list[str])

    def __post_init__(self) -> None:
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", self._hear)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def _hear(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)


def executable() -> str:
    """Find chromium; without it a test is skipped, and fails where CI is to have it."""
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found:
        return found
    reason = "the browser test needs chromium, and none is installed"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


@contextmanager
def launched() -> Generator[Browser]:
    """Start a browser, and see that it is gone in the end."""
    found = executable()
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def opened(browser: Browser, url: str, *, width: int = 1280) -> Generator[Opened]:
    """Open an address in a window of its own, which shares nothing with another."""
    context = browser.new_context(viewport={"width": width, "height": 900})
    seen = Opened(context.new_page())
    seen.page.goto(url)
    yield seen
    context.close()


def barriers(page: Page) -> list[str]:
    """List what axe-core finds against WCAG 2.1 A and AA and against good practice."""
    options = {"runOnly": {"type": "tag", "values": RULES}, "resultTypes": ["violations"]}
    found = Axe().run(page, options=options).response["violations"]
    return [
        f"{each['id']} ({each['impact']}): {node['target']} {node['html'][:120]}"
        for each in found
        for node in each["nodes"]
    ]


def tabbed(page: Page) -> list[str]:
    """Press Tab through the page, and name what the focus came by until it left the page."""
    name = "element => element.id || element.getAttribute('aria-label') || element.textContent"
    met: list[str] = []
    while True:
        page.keyboard.press("Tab")
        focused = page.evaluate_handle("document.activeElement").as_element()
        assert focused is not None
        if focused.evaluate("element => element === document.body"):
            return met
        met.append(focused.evaluate(name))
