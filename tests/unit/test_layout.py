"""The packages of the house (docs/reference/layout.md), and how large a module may be."""

import ast
from pathlib import Path

import pytest

import grandrounds

HOUSE = Path(grandrounds.__file__).parent
PACKAGES = (
    *("algorithms", "api", "cli", "core", "data", "engines", "flare", "inference"),
    *("models", "privacy", "report", "runs", "site", "study", "tasks", "testing"),
)
CEILING = 600  # lines
MODULES = sorted(HOUSE.rglob("*.py"))


def test_the_house_has_its_packages_and_nothing_else_at_its_top():
    found = {entry.name for entry in HOUSE.iterdir() if entry.name != "__pycache__"}
    assert found == {*PACKAGES, "__init__.py", "py.typed"}


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_says_what_it_is_for(package: str):
    assert (HOUSE / package / "__init__.py").read_text("utf-8").startswith('"""')


def test_no_module_is_larger_than_a_reader_can_hold():
    sizes = {path: len(path.read_text("utf-8").splitlines()) for path in MODULES}
    assert not [str(path) for path, lines in sizes.items() if lines > CEILING]


def test_a_public_name_has_one_meaning():
    """A command of the command line is the exception: its function has the command's name."""
    homes: dict[str, list[str]] = {}
    for path in MODULES:
        if path.parent.name != "cli":
            for name in defined_in(path):
                homes.setdefault(name, []).append(str(path.relative_to(HOUSE)))
    assert not {name: paths for name, paths in homes.items() if len(paths) > 1}


def defined_in(path: Path) -> set[str]:
    """Return the public names that a module defines: classes, functions, constants, aliases."""
    names: set[str] = set()
    for node in ast.parse(path.read_text("utf-8")).body:
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                names.add(name)
            case ast.AnnAssign(target=ast.Name(id=name)):
                names.add(name)
            case ast.Assign(targets=targets):
                stored = [each for target in targets for each in ast.walk(target)]
                names |= {each.id for each in stored if isinstance(each, ast.Name)}
            case _:
                pass
    return {name for name in names if not name.startswith("_")}
