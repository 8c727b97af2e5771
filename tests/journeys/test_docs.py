"""Every command and every piece of Python of the how-tos runs as it stands there."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest

from grandrounds.tasks import Segmentation
from tests.helpers.grids import with_representatives

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)
PYTHON = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
HAS_NETWORKS = "network" in {each.name for each in fields(Segmentation)}
PAGES = sorted(str(page.relative_to(ROOT)) for page in (ROOT / "docs").glob("**/*.md"))
HOW_TO = [page for page in PAGES if page.startswith(("docs/start/", "docs/how-to/"))]
FIRST_READ = ("docs/start/first-run.md", "docs/start/study-file.md")
WITHOUT_COMMANDS = {"docs/how-to/live-report.md"}  # its command serves until Ctrl-C


def text_of(page: str) -> str:
    return (ROOT / page).read_text("utf-8")


def commands(page: str) -> list[str]:
    return BLOCK.findall(text_of(page))


def pieces(page: str) -> list[str]:
    """The Python of a page; what needs a network of one's own waits until a task can have one."""
    found = PYTHON.findall(text_of(page))
    return [piece for piece in found if HAS_NETWORKS or '"network":' not in piece]


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    """A folder to work in; what a page left running there is ended."""
    for folder in ("studies", "scripts", "examples"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    yield tmp_path
    for left in tmp_path.glob("*.pid"):
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(left.read_text()), signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", with_representatives([page for page in PAGES if commands(page)], FIRST_READ)
)
def test_every_command_of_a_page_runs(page: str, elsewhere: Path, real_data: Path):
    program = str(Path(sys.executable).parent)
    environment = {
        **os.environ,
        "PATH": f"{program}{os.pathsep}{os.environ['PATH']}",
        "GRANDROUNDS_DATA": str(real_data),
    }
    for command in commands(page):
        done = subprocess.run(
            ["bash", "-euc", command],
            cwd=elsewhere,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{page}:\n{command}\n{done.stderr}"


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in HOW_TO if pieces(page)])
def test_the_python_of_a_page_runs_from_its_first_piece_to_its_last(page: str, elsewhere: Path):
    """As in a notebook: one process without a file, in a folder with the modules it imports."""
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(pieces(page))],
        cwd=elsewhere / "examples",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{page}:\n{done.stderr}"


def test_a_how_to_shows_the_commands_it_is_about():
    silent = {page for page in HOW_TO if not commands(page) and not PYTHON.search(text_of(page))}
    assert silent == WITHOUT_COMMANDS


def test_a_page_exists_for_every_link():
    for page in [*ROOT.glob("docs/**/*.md"), ROOT / "README.md"]:
        for link in re.findall(r"\]\(((?!https?:)[^)#]+)\)", page.read_text("utf-8")):
            assert (page.parent / link).exists(), f"{page.name} links to {link}"


SAME = re.compile(r"\b(same bits|to the (?:last )?bit)\b", re.IGNORECASE)
CONDITION = ("glossary.md#the-same-bits", "same kind of processor")
KEPT = "0010-a-site-does-only-what-it-accepted.md"  # a letter that was kept is not computed again


def items(text: str) -> list[str]:
    """The paragraphs and list items of a page."""
    return re.split(r"\n(?=\s*$|\s*- |\s*\d+\. |\|)", text, flags=re.MULTILINE)


def test_whoever_says_the_same_bits_says_on_which_machines():
    pages = [*ROOT.glob("docs/**/*.md"), ROOT / "README.md", ROOT / "CHANGELOG.md"]
    found = [(p.name, i) for p in pages if p.name != KEPT for i in items(p.read_text("utf-8"))]
    claims = [
        (page, item) for page, item in found if SAME.search(item.replace("## The same bits", ""))
    ]
    assert len({page for page, _ in claims}) > 10
    assert [c for c in claims if not any(word in c[1] for word in CONDITION)] == []
    glossary = (ROOT / "docs/reference/glossary.md").read_text("utf-8")
    assert "\n## The same bits\n" in glossary
