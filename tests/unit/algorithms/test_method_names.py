"""A method is one file: nothing else in the house knows its name."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import grandrounds
from grandrounds.algorithms import METHODS

HOUSE = Path(grandrounds.__file__).parent
HOME = ("algorithms/methods/", "algorithms/__init__.py")
ARM = re.compile(rf"({'|'.join(METHODS)})([@:].*)?")  # what code would compare with, or run
# NVFlare calls a folder of a kit "local".
KITS = ("flare/kit.py", "flare/provision.py", "study/revocation.py")


def strings(source: str) -> Iterator[str]:
    """The strings of a module's code, without docstrings."""
    tree = ast.parse(source)
    prose = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            yield node.value


def named(source: str) -> list[str]:
    return [each for each in strings(source) if ARM.fullmatch(each)]


def test_no_methods_name_stands_outside_of_its_file():
    found = {
        str(path.relative_to(HOUSE)): named(path.read_text())
        for path in HOUSE.rglob("*.py")
        if not str(path.relative_to(HOUSE)).startswith(HOME)
    }
    assert {place: names for place, names in found.items() if names and place not in KITS} == {}


def test_a_name_in_code_is_found_and_one_in_prose_is_not():
    assert named('if kind == "fedprox":\n    pass') == ["fedprox"]
    assert named('"""FedProx, called fedprox in a study."""') == []


def test_every_word_has_its_file():
    files = {path.stem for path in (HOUSE / "algorithms" / "methods").glob("*.py")}
    comparisons = {"local", "central", "pgan", "pix2pix"}
    assert set(METHODS) - comparisons == files - {"__init__", "comparisons"}
