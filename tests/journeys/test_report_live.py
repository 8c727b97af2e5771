"""The report of a running study, as a browser sees it."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from grandrounds.core.journal import Journal
from tests.helpers.browser import OVERFLOW, barriers, launched, opened
from tests.helpers.command import started
from tests.helpers.federation import TINY
from tests.helpers.live_report import Shown, go_on, shown
from tests.helpers.run_folders import PFLSYNTH, one_round, write_run

GROW = "part => part.insertAdjacentHTML('afterbegin', '<p style=\"height: 300px\">Gone soon.</p>')"
TOP = "part => part.getBoundingClientRect().top"
# Remembers every word of the live line; a page that was loaded anew would have forgotten them.
REMEMBER = """() => {
  const live = document.getElementById("live");
  window.said = [live.textContent];
  new MutationObserver(() => window.said.push(live.textContent))
    .observe(live, { childList: true });
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launched() as found:
        yield found


def wait_until_it_says(page: Page, words: str) -> None:
    page.locator("#live", has_text=words).wait_for(timeout=30_000)


@pytest.mark.browser
@pytest.mark.slow
def test_the_page_follows_a_run_from_before_its_start_to_its_end(browser: Browser, tmp_path: Path):
    words = ("run", TINY, "--rounds", "4", "--out", tmp_path, "--quiet")
    with started("report", tmp_path, "--serve") as server:
        assert server.stdout is not None
        with opened(browser, server.stdout.readline().strip()) as seen:
            seen.page.evaluate(REMEMBER)
            wait_until_it_says(seen.page, "not started yet")
            assert f"No run has begun in {tmp_path}" in seen.page.inner_text("main")
            with started(*words) as run:
                assert run.wait(timeout=120) == 0
            wait_until_it_says(seen.page, "round 4 of 4, finished")
            seen.page.get_by_text("test patients").first.wait_for()
            said = seen.page.evaluate("window.said")
            assert seen.complaints == []
            assert len([url for url in seen.requests if not url.startswith("data:")]) == 3
            server.send_signal(signal.SIGINT)
            assert (server.wait(timeout=20), server.stdout.read()) == (0, "")
            wait_until_it_says(seen.page, "Connection lost: trying again")
    rounds = [text for text in said if text.startswith("round")]
    assert rounds == sorted(set(rounds))
    assert len(rounds) > 1


@pytest.mark.browser
@pytest.mark.slow
def test_the_reader_keeps_the_place_the_open_parts_and_the_focus(browser: Browser, page_of: Shown):
    with opened(browser, page_of.server.url, width=400) as seen:
        page = seen.page
        page.evaluate(REMEMBER)
        folded = page.locator("#record details").last
        region = page.locator("#part .scroll").first
        folded.evaluate("part => part.open = true")
        page.locator("#summary").evaluate(GROW)
        region.evaluate("part => part.scrollIntoView({ behavior: 'instant' })")
        region.evaluate("part => { part.focus(); part.scrollLeft = 40; }")
        assert -1 < region.evaluate(TOP) < 1
        Journal(page_of.folder / "journal.jsonl").append(one_round(PFLSYNTH, 3)[0])
        page_of.watch.look()
        for number in (3, 4):
            go_on(page_of.folder, number)
            page_of.watch.look()
            wait_until_it_says(page, f"round {number} of 10")
        assert folded.evaluate("part => part.open") is True
        assert region.evaluate("part => part === document.activeElement") is True
        assert region.evaluate("part => part.scrollLeft") == 40
        assert -1 < region.evaluate(TOP) < 1
        assert page.evaluate("window.said") == [f"round {n} of 10" for n in (2, 3, 4)]
        assert seen.complaints == []


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 400])
def test_axe_finds_no_barrier_on_the_live_page_nor_before_its_start(
    browser: Browser, tmp_path: Path, width: int
):
    with shown(tmp_path) as empty, opened(browser, empty.server.url, width=width) as seen:
        assert (barriers(seen.page), seen.page.evaluate(OVERFLOW)) == ([], 0)
        write_run(tmp_path / "run", PFLSYNTH, until=2).rename(tmp_path / "later")
        for path in (tmp_path / "later").iterdir():
            path.rename(tmp_path / path.name)
        empty.watch.look()
        wait_until_it_says(seen.page, "round 2 of 10")
        assert (barriers(seen.page), seen.page.evaluate(OVERFLOW)) == ([], 0)


@pytest.mark.browser
@pytest.mark.slow
def test_the_page_says_when_the_connection_is_lost_and_when_it_is_back(
    browser: Browser, page_of: Shown
):
    with opened(browser, page_of.server.url) as seen:
        seen.page.evaluate(REMEMBER)
        go_on(page_of.folder, 3)
        page_of.watch.look()
        wait_until_it_says(seen.page, "round 3 of 10")
        seen.page.locator("details").last.evaluate("part => part.open = true")
        seen.page.locator("main").evaluate("main => main.kept = true")
        page_of.server.cut()
        wait_until_it_says(seen.page, "Connection regained: round 3 of 10")
        assert seen.page.locator("main").evaluate("main => main.kept") is True
        assert seen.page.evaluate("window.said") == [
            "round 2 of 10",
            "round 3 of 10",
            "Connection lost: trying again",
            "Connection regained: round 3 of 10",
        ]
        page_of.server.token = "another server's"
        page_of.server.cut()
        wait_until_it_says(seen.page, "Connection lost: open the address that the server prints")
