"""The report in a real browser: it opens from a file, draws everything, and loads nothing."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from grandrounds.journal import Journal
from grandrounds.report import write_report
from tests.unit.report_cycle import cycle
from tests.unit.report_folder import write_comparison

pytestmark = [pytest.mark.browser, pytest.mark.slow]

QUIET = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--allow-file-access-from-files",
)
# A frame beside the report measures it from outside: the report itself runs no script.
PROBE = """<body><iframe id="report" src="report.html" style="width:WIDTHpx;height:900px"></iframe>
<script>
document.getElementById("report").onload = event => {
  const page = event.target.contentDocument, all = name => [...page.querySelectorAll(name)];
  const drawn = all("img").filter(image => image.naturalWidth === 64).length;
  const wide = page.documentElement.scrollWidth;
  const tall = all("table").filter(table => table.checkVisibility());
  const loaded = event.target.contentWindow.performance.getEntriesByType("resource")
    .filter(entry => !entry.name.startsWith("data:")).length;
  document.title = `drawn=${drawn} tables=${tall.length} wide=${wide} loaded=${loaded}`;
};
</script></body>"""


@pytest.fixture(scope="module")
def chromium() -> str:
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found:
        return found
    reason = "the browser test needs chromium, and none is installed"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_comparison(tmp_path_factory.mktemp("comparison"))
    for event in cycle(10):
        Journal(folder / "arms" / "fedavg" / "journal.jsonl").append(event)
    return write_report(folder)


def dom(chromium: str, page: Path, profile: Path, *options: str) -> str:
    command = [chromium, *QUIET, *options, f"--user-data-dir={profile}", "--dump-dom"]
    found = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=120)
    assert found.returncode == 0, found.stderr
    return found.stdout


def test_the_page_reaches_the_reader_whole(chromium: str, report: Path, tmp_path: Path):
    seen = dom(chromium, report, tmp_path)
    assert seen.count("<table") == 1 + 1 + 8 + 1 + 4 + 1 + 1 + 4
    assert "What one hospital&#39;s turn" in seen or "What one hospital's turn" in seen
    assert seen.count("<img") == 80
    assert "Birch would have been better off alone." in seen
    assert "<script" not in seen
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", seen)


@pytest.mark.parametrize("width", [1280, 400])
def test_pictures_are_drawn_and_nothing_overflows_or_is_loaded(
    chromium: str, report: Path, tmp_path: Path, width: int
):
    probe = report.with_name(f"probe-{width}.html")
    probe.write_text(PROBE.replace("WIDTH", str(width)))
    seen = dom(chromium, probe, tmp_path, "--virtual-time-budget=10000")
    found = re.search(r"drawn=(\d+) tables=(\d+) wide=(\d+) loaded=(\d+)", seen)
    assert found is not None
    drawn, tables, wide, loaded = map(int, found.groups())
    assert (drawn, tables, loaded) == (80, 17, 0)  # the record's four tables are collapsed
    assert wide <= width
