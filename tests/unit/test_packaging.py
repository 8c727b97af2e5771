"""What a user installs: few packages, without known holes, and a version that is said alike."""

import re
import shutil
import subprocess
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.helpers.command import program

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
OLDEST = {"torch": (2, 10), "monai": (1, 6)}  # older ones have known holes


def numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:2])


@pytest.mark.parametrize("package", OLDEST)
def test_versions_with_known_holes_are_excluded(package: str):
    [asked] = [each for each in PROJECT["dependencies"] if re.match(rf"{package}\b", each)]
    [lowest] = re.findall(r">=([0-9.]+)", asked)
    assert numbers(lowest) >= OLDEST[package]


def test_what_is_installed_is_what_is_asked_for():
    pins = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line
    )
    for package, oldest in OLDEST.items():
        assert numbers(pins[package]) >= oldest


def test_the_version_is_the_same_wherever_it_is_said():
    assert PROJECT["version"] == version("grandrounds")
    assert f"version: {PROJECT['version']}\n" in (ROOT / "CITATION.cff").read_text("utf-8")


@pytest.mark.slow
def test_the_program_says_its_version():
    assert program("--version").out == f"grandrounds {version('grandrounds')}\n"


def commands_of(target: str, folder: Path) -> str:
    """What `make TARGET` would do in a fresh checkout."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copyfile(ROOT / name, folder / name)
    done = subprocess.run(
        ["make", "--no-print-directory", "-n", target],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_the_demo_installs_nothing_for_developers_and_the_tests_do(tmp_path: Path):
    demo = commands_of("demo", tmp_path)
    assert "-e ." in demo
    assert "[" not in demo
    assert demo.rstrip().endswith("grandrounds demo")
    assert '-e ".[dev]"' in commands_of("test", tmp_path)
