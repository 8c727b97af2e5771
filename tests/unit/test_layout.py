"""The packages of the house (docs/reference/layout.md), and how large a module may be."""

from pathlib import Path

import pytest

import grandrounds

HOUSE = Path(grandrounds.__file__).parent
PACKAGES = (
    *("algorithms", "cli", "core", "data", "engines", "flare", "inference"),
    *("models", "report", "runs", "site", "study", "tasks"),
)
CEILING = 600  # lines
MODULES = sorted(HOUSE.rglob("*.py"))


def test_the_house_has_thirteen_packages_and_nothing_else_at_its_top():
    found = {entry.name for entry in HOUSE.iterdir() if entry.name != "__pycache__"}
    assert found == {*PACKAGES, "__init__.py", "py.typed"}


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_says_what_it_is_for(package: str):
    assert (HOUSE / package / "__init__.py").read_text("utf-8").startswith('"""')


def test_no_module_is_larger_than_a_reader_can_hold():
    sizes = {path: len(path.read_text("utf-8").splitlines()) for path in MODULES}
    assert not [str(path) for path, lines in sizes.items() if lines > CEILING]
