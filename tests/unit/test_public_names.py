"""What `import grandrounds` offers, and how little it loads before it is used."""

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import grandrounds
import grandrounds.testing
from tests.helpers.command import loaded_by

NAMES = [name for name in grandrounds.__all__ if name != "__version__"]
HEAVY = {"torch", "monai", "numpy", "scipy", "pydantic", "rich", "typer", "nvflare"}
STATIC = ast.parse(Path(grandrounds.__file__).read_text("utf-8"))


def test_the_package_alone_loads_no_other_module_of_the_house():
    loaded = loaded_by("import grandrounds")
    assert not loaded & HEAVY
    assert {name for name in loaded if name.startswith("grandrounds")} == {"grandrounds"}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_is_imported_by_itself(name: str):
    statement = f"from grandrounds import {name}; print({name}.__module__)"
    done = subprocess.run(
        [sys.executable, "-c", statement], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_is_still_its_object_when_all_of_the_house_is_loaded(name: str):
    """A module of the same name would take its place: `grandrounds.run` is the function."""
    assert getattr(grandrounds, name) is vars(sys.modules[home_of(name)])[name]


def home_of(name: str) -> str:
    """The module from which a type checker sees a public name come."""
    [module] = [
        node.module
        for node in ast.walk(STATIC)
        if isinstance(node, ast.ImportFrom) and name in {each.name for each in node.names}
    ]
    assert module
    __import__(module)
    return module


def test_a_type_checker_sees_the_names_that_there_are():
    seen = {
        each.asname
        for node in ast.walk(STATIC)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("grandrounds.")
        for each in node.names
    }
    assert seen == set(NAMES)


def test_a_name_that_is_not_there_is_refused():
    with pytest.raises(AttributeError, match="module 'grandrounds' has no attribute 'trian'"):
        _ = grandrounds.trian  # pyright: ignore[reportAttributeAccessIssue]


OF_TESTING = [f"testing.{name}" for name in grandrounds.testing.__all__]
REFERENCE = Path(__file__).parents[2] / "docs/reference/api.md"


def test_the_reference_has_the_public_names_and_no_other():
    found = re.findall(r"^::: grandrounds\.(\S+)$", REFERENCE.read_text("utf-8"), re.MULTILINE)
    assert sorted(found) == sorted([*NAMES, *OF_TESTING])


@pytest.mark.parametrize("name", [name for name in [*NAMES, *OF_TESTING] if name != "Weights"])
def test_the_docstring_of_a_public_name_begins_with_a_sentence(name: str):
    package, _, last = name.rpartition(".")
    home = grandrounds.testing if package else grandrounds
    first, _, rest = (inspect.getdoc(getattr(home, last)) or "").partition("\n\n")
    assert first.endswith("."), f"{name}: {first}"
    assert rest != "" or len(first.split()) > 5, f"{name} says little: {first}"
