import ast
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

import grandrounds
from grandrounds.core import run_folder
from grandrounds.core.errors import BadFolder
from grandrounds.core.run_folder import (
    ComparisonFolder,
    Entry,
    ResultFolder,
    RunFolder,
    SiteFolder,
    comparison_of,
)

PACKAGE = Path(grandrounds.__file__).parent
KINDS = (SiteFolder, ResultFolder, RunFolder, ComparisonFolder)
ENTRIES = [each for kind in KINDS for each in vars(kind).values() if isinstance(each, Entry)]
FILES = {"private.safetensors", *(entry.name for entry in ENTRIES if "." in entry.name)}


def test_an_entry_is_a_path_in_a_folder_and_a_name_without_one():
    assert RunFolder(Path("runs/tiny")).journal == Path("runs/tiny/journal.jsonl")
    assert RunFolder.journal == "journal.jsonl"


def test_the_runs_of_a_comparison_are_found_and_find_it_again(tmp_path: Path):
    comparison = ComparisonFolder(tmp_path / "compared")
    whole, part = comparison.run("fedavg", 7), comparison.run("fedavg", 7, without="birch")
    for run in (whole, part):
        run.path.mkdir(parents=True)
    assert part.path == tmp_path / "compared/without/birch/arms/fedavg/seed-7"
    assert (comparison.runs(), comparison.all_trained()) == ([whole], [whole, part])
    assert comparison_of(part.path) is None
    whole.derived.touch()
    assert (comparison.trained(), comparison.all_trained()) == ([], [part]), "it has no model"
    comparison.arms.touch()
    assert comparison_of(whole.path) == (comparison, "")
    assert comparison_of(part.path) == (comparison, "birch")


MAKES: dict[str, Callable[[str], object]] = {
    "site": RunFolder(Path("r")).site,
    "adapted": RunFolder(Path("r")).adapted,
    "evaluated": RunFolder(Path("r")).evaluated,
    "beside": RunFolder(Path("r")).site("alder").beside,
    "arm": lambda name: ComparisonFolder(Path("r")).run(name, 7),
    "without": lambda name: ComparisonFolder(Path("r")).run("fedavg", 7, without=name),
}


@pytest.mark.parametrize("name", ["../../startup", "..", ".", "/etc", "a/b", "-x", "con"])
@pytest.mark.parametrize("make", MAKES)
def test_no_folder_is_made_of_a_name_that_is_a_path(make: str, name: str):
    with pytest.raises(BadFolder, match=f"^(site|arm) '{name}': "):
        MAKES[make](name)


@cache
def words(path: Path) -> frozenset[str]:
    nodes = ast.walk(ast.parse(path.read_text("utf-8")))
    values = (node.value for node in nodes if isinstance(node, ast.Constant))
    return frozenset(value for value in values if isinstance(value, str))


@pytest.mark.parametrize("name", sorted(FILES))
def test_no_other_module_spells_the_name_of_a_file(name: str):
    spelling = [path for path in PACKAGE.rglob("*.py") if name in words(path)]
    assert [path for path in spelling if path != Path(run_folder.__file__)] == []
