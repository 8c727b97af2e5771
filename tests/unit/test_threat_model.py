"""Every row of the threat model names tests that exist, and says what it is about."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = ("docs/reference/threat-model.md", "docs/reference/infosec.md")
TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def names_in(path: Path) -> set[str]:
    """The names of a file's test functions; the file is read, not run."""
    body = ast.parse(path.read_text("utf-8")).body
    return {node.name for node in body if isinstance(node, ast.FunctionDef)}


def rows(page: str) -> list[str]:
    """The rows of the page's table of attacks, without its head."""
    lines = (ROOT / page).read_text("utf-8").splitlines()
    start = next(i for i, line in enumerate(lines) if "the test that would fail" in line)
    body = lines[start + 2 :]
    return body[: next(i for i, line in enumerate(body) if not line.startswith("|"))]


@pytest.mark.parametrize("page", PAGES)
def test_a_test_that_is_named_exists(page: str):
    for file, name in TEST.findall((ROOT / page).read_text("utf-8")):
        assert name in names_in(ROOT / file), f"{page} names {file}::{name}"


def test_every_row_of_the_threat_model_names_a_test():
    found = rows(PAGES[0])
    assert len(found) > 20
    assert [row for row in found if not TEST.search(row.split("|")[4])] == []
