"""The report in a real browser: it opens from a file, loads nothing, and lets everyone read it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from grandrounds.core.journal import Journal
from grandrounds.report.page.html import write_report
from tests.helpers.browser import OPEN_ALL, OVERFLOW, barriers, launched, opened, tabbed
from tests.helpers.cosines import compared
from tests.helpers.cycles import cycle
from tests.helpers.run_folders import run_folder, write_comparison

A4 = 794  # pixels across, 96 to the inch

pytestmark = [pytest.mark.browser, pytest.mark.slow]
UNDRAWN = "images => images.filter(image => image.naturalWidth === 0).map(image => image.alt)"
HEADED = "tables => tables.every(table => table.caption && table.querySelector('th[scope]'))"
STOPS = """elements => elements.map(
  element => element.id || element.getAttribute('aria-label') || element.textContent)"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launched() as found:
        yield found


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_comparison(tmp_path_factory.mktemp("comparison"))
    for event in (*cycle(10), compared(5, decoder=0.2, all=-0.1), compared(10, decoder=-0.6)):
        Journal(run_folder(folder, "fedavg") / "journal.jsonl").append(event)
    return write_report(folder)


def test_it_opens_from_a_file_and_asks_for_nothing_else(browser: Browser, report: Path):
    with opened(browser, report.as_uri()) as seen:
        seen.page.evaluate(OPEN_ALL)
        seen.page.wait_for_load_state("networkidle")
        asked = [url for url in seen.requests if not url.startswith("data:")]
        assert asked == [report.as_uri()]
        assert seen.complaints == []


def test_every_table_has_its_heads_and_every_picture_is_drawn(browser: Browser, report: Path):
    written = report.read_text("utf-8")
    with opened(browser, report.as_uri()) as seen:
        tables, pictures = seen.page.locator("table"), seen.page.locator("img")
        assert tables.count() == written.count("<table") >= 10
        assert pictures.count() == written.count("<img") >= 16
        assert tables.evaluate_all(HEADED) is True
        assert pictures.evaluate_all(UNDRAWN) == []
        assert seen.page.locator("script").count() == 0


@pytest.mark.parametrize("width", [1280, 400])
def test_nothing_overflows_and_axe_finds_no_barrier(browser: Browser, report: Path, width: int):
    with opened(browser, report.as_uri(), width=width) as seen:
        assert seen.page.evaluate(OVERFLOW) == 0
        seen.page.evaluate(OPEN_ALL)
        assert seen.page.evaluate(OVERFLOW) == 0
        assert barriers(seen.page) == []


def test_a_printed_page_is_as_wide_as_the_paper(browser: Browser, report: Path):
    with opened(browser, report.as_uri(), width=A4) as seen:
        seen.page.emulate_media(media="print")
        assert seen.page.evaluate(OVERFLOW) == 0


def test_axe_would_find_a_barrier(browser: Browser, report: Path):
    with opened(browser, report.as_uri()) as seen:
        seen.page.locator("img").first.evaluate("image => image.removeAttribute('alt')")
        [found] = barriers(seen.page)
        assert found.startswith("image-alt (critical)")


def test_the_keyboard_reaches_every_link_scrolled_table_and_folded_part(
    browser: Browser, report: Path
):
    with opened(browser, report.as_uri(), width=400) as seen:
        seen.page.evaluate(OPEN_ALL)
        stops = seen.page.locator("a[href], summary, [tabindex='0']").evaluate_all(STOPS)
        scrolled = seen.page.locator(".scroll").count()
        assert len(stops) > scrolled > 5
        assert [name for name in tabbed(seen.page) if name in stops] == stops


def test_the_keyboard_opens_a_folded_part(browser: Browser, report: Path):
    with opened(browser, report.as_uri()) as seen:
        folded = seen.page.locator("details:not([open])").first
        folded.evaluate("part => part.id = 'folded'")
        folded.locator("summary").press("Enter")
        assert seen.page.locator("#folded").evaluate("part => part.open") is True
