"""The audit's page in a real browser: it loads nothing, and lets everyone read it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from grandrounds.report.page.audit import write_audit_page
from tests.helpers.browser import OVERFLOW, barriers, launched, opened
from tests.unit.report.test_audit import AUDIT, MEMBERSHIP, pictures_of

pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launched() as found:
        yield found


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "audit.html"
    write_audit_page(path, AUDIT, pictures_of(MEMBERSHIP.title))
    return path


@pytest.mark.parametrize("width", [1280, 400])
def test_nothing_overflows_and_axe_finds_no_barrier(browser: Browser, page: Path, width: int):
    with opened(browser, page.as_uri(), width=width) as seen:
        assert seen.page.evaluate(OVERFLOW) == 0
        assert barriers(seen.page) == []
        assert seen.complaints == []
        assert [url for url in seen.requests if not url.startswith("data:")] == [page.as_uri()]
        assert seen.page.locator("script").count() == 0
