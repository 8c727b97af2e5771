"""Inputs after public problem reports; each is made by its own script, beside the repository.

The scripts lie in shared/cases next to the checkout (GRANDROUNDS_CASES says where else). What is
right for each is said here, by tests; where the folder is absent, they are skipped by name.
"""

import os
import runpy
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from grandrounds.core.errors import BadInput
from grandrounds.data.cohort import Cohort, Session
from grandrounds.runs.site_data import check_joins, open_named
from grandrounds.study.file import read_study
from tests.conftest import REPOSITORY
from tests.helpers.command import Done, inside

CASES = Path(os.environ.get("GRANDROUNDS_CASES", REPOSITORY.parent / "shared" / "cases"))


@dataclass(frozen=True)
class Verdict:
    """What `check` comes to for a site: one sentence of refusal, or notes and prepared data."""

    refused: str = ""
    notes: tuple[str, ...] = ()
    cohorts: tuple[Cohort, ...] = ()

    @property
    def sessions(self) -> dict[str, Session]:
        return {session.label: session for cohort in self.cohorts for session in cohort}


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a case, by the number that its name begins with; each is made once."""
    folders: dict[str, Path] = {}

    def make(number: str) -> Path:
        if number not in folders:
            folders[number] = _make(number, tmp_path_factory.mktemp(f"case{number}"))
        return folders[number]

    return make


def _make(number: str, out: Path) -> Path:
    scripts = sorted(CASES.glob(f"{number}-*/make.py"))
    if not scripts:
        pytest.skip(f"field case {number}: {CASES} has no script for it (set GRANDROUNDS_CASES)")
    argv, path, compiled = sys.argv, list(sys.path), sys.dont_write_bytecode
    sys.argv, sys.dont_write_bytecode = ["make.py", str(out)], True
    try:
        runpy.run_path(str(scripts[0]))
    finally:
        sys.argv, sys.path[:], sys.dont_write_bytecode = argv, path, compiled
    return out


@pytest.fixture
def judged(
    made: Callable[[str], Path], capfd: pytest.CaptureFixture[str]
) -> Callable[..., Verdict]:
    """What `check` says of a case's sites; no library may write a line beside it."""

    def judge(number: str, folder: str = "", sites: tuple[str, ...] = ("alder",)) -> Verdict:
        here = made(number) / folder
        capfd.readouterr()
        try:
            study = read_study(here / "study.toml")
            opened = open_named(study, [here / f"{name}.toml" for name in sites])
            for cohort, summary in opened:
                check_joins(study, cohort, summary)
        except BadInput as error:
            verdict = Verdict(refused=str(error))
        else:
            notes = tuple(str(note) for _, summary in opened for note in summary.notes)
            verdict = Verdict("", notes, tuple(cohort for cohort, _ in opened))
        assert tuple(capfd.readouterr()) == ("", "")
        return verdict

    return judge


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """Run a command in a case's folder."""

    def run(folder: Path, *words: str | Path) -> Done:
        monkeypatch.chdir(folder)
        return inside(monkeypatch, capsys, *words)

    return run


@pytest.fixture(scope="session")
def intact(made: Callable[[str], Path]) -> dict[str, Session]:
    """The prepared sessions of the same heads with headers that say what they are."""
    here = made("10")
    opened = open_named(read_study(here / "study.toml"), [here / "alder.toml"])
    return {session.label: session for cohort, _ in opened for session in cohort}


def same(found: dict[str, Session], expected: dict[str, Session]) -> bool:
    """Tell whether two sites have equal voxels."""
    return found.keys() == expected.keys() and all(
        np.array_equal(found[label].images, expected[label].images) for label in expected
    )
