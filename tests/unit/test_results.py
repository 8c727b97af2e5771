"""The numbers of runs on the pages are those of the run whose tables are stored beside them."""

import importlib.util
import re
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

from grandrounds.algorithms import METHODS

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def results() -> ModuleType:
    spec = importlib.util.spec_from_file_location("results", ROOT / "scripts" / "results.py")
    assert spec
    assert spec.loader
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@pytest.mark.parametrize("page", ["README.md", "docs/reference/results.md"])
def test_the_numbers_of_a_page_are_those_of_the_stored_tables(results: ModuleType, page: str):
    text = (ROOT / page).read_text("utf-8")
    assert len(results.BLOCK.findall(text)) >= 1
    assert results.filled(text) == text


def test_another_number_would_be_noticed(results: ModuleType):
    text = (ROOT / "README.md").read_text("utf-8")
    changed = re.sub(r"(\| pFLSynth[^|]*\| )\d", r"\g<1>9", text)
    assert changed != text
    assert results.filled(changed) == text


def test_what_made_the_tables_is_known(results: ModuleType):
    for source in results.SOURCES.values():
        if (source.stored / "made.toml").exists():
            made = (source.stored / "made.toml").read_text("utf-8")
            names = set(tomllib.loads(made))
            assert {"command", "torch", "study"} < names <= set(results.program(source))
            assert any(name.startswith("golden, ") for name in names)
    assert (ROOT / "docs/images/demo.png").stat().st_size > 10_000


def test_tables_without_a_run_are_named(results: ModuleType):
    page = "## A\n<!-- results: x -->\n|---|\n<!-- end of results -->\n## B\n|---|\n### C\nno\n"
    assert results.without_stored_tables(page) == ["B"]


def test_the_number_of_methods_is_that_of_the_program():
    [others] = re.findall(r"FedAvg or one of (\d+) others", (ROOT / "README.md").read_text("utf-8"))
    assert int(others) == len(METHODS) - 2
