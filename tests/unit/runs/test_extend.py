"""A run goes on to more rounds: to the same bits, or not without a word."""

from pathlib import Path

import pytest

from grandrounds.core.errors import BadFolder
from grandrounds.core.run_folder import RunFolder
from grandrounds.core.state import State, save_state
from grandrounds.runs.extend import Extension, extend, extension
from grandrounds.runs.loop import run_study as run
from grandrounds.study.file import read_study, to_toml
from tests.helpers.federation import tiny

QUICK = ("training.epochs=1", 'method={kind="fedavg"}')


def begun(folder: Path, *overrides: str, done: int) -> Path:
    """A folder whose run has done so many rounds."""
    RunFolder(folder).study.write_text(to_toml(tiny(*overrides)))
    save_state(folder, State({}, done))
    RunFolder(folder).scores.write_text("arm\n")
    return folder


def rounds_of(folder: Path) -> int:
    return read_study(RunFolder(folder).study).rounds


@pytest.mark.parametrize(
    ("schedule", "before", "now", "done", "first"),
    [
        ("constant", 4, 9, 4, None),
        ("constant-linear", 4, 8, 4, 3),
        ("constant-linear", 8, 40, 4, None),
        ("reference", 4, 8, 4, 2),
    ],
)
def test_the_first_round_with_another_rate_is_found(
    schedule: str, before: int, now: int, done: int, first: int | None
):
    short, long = (tiny(f"rounds={n}", f"training.schedule={schedule}") for n in (before, now))
    assert Extension(short, long, done).first_other == first


def test_a_schedule_that_allows_it_goes_on_and_loses_the_scores_of_the_shorter_run(tmp_path: Path):
    constant = "training.schedule=constant"
    folder = begun(tmp_path, "rounds=2", constant, done=2)
    longer = tiny("rounds=5", constant)
    found = extension(folder, longer)
    assert found
    assert "its weights are those of a run of 5 rounds" in found.sentence
    extend(folder, longer, accepts=False)
    assert rounds_of(folder) == 5
    assert not RunFolder(folder).scores.exists()


def test_a_schedule_that_does_not_is_refused_and_says_what_it_means(tmp_path: Path):
    folder = begun(tmp_path, "rounds=4", done=4)
    with pytest.raises(BadFolder, match=r"from round 3 on .* lower rates .* --accept-changes"):
        extend(folder, tiny("rounds=8"), accepts=False)
    assert rounds_of(folder) == 4
    assert RunFolder(folder).scores.exists()
    extend(folder, tiny("rounds=8"), accepts=True)
    assert rounds_of(folder) == 8


@pytest.mark.parametrize(
    "changes", [("rounds=3",), ("rounds=4",), ("rounds=8", "training.epochs=9")]
)
def test_fewer_rounds_and_other_changes_are_no_extension(tmp_path: Path, changes: tuple[str, ...]):
    folder = begun(tmp_path, "rounds=4", done=4)
    assert extension(folder, tiny(*changes)) is None


@pytest.mark.slow
def test_a_longer_run_has_the_bits_of_one_that_was_long_from_the_beginning(tmp_path: Path):
    constant = (*QUICK, "training.schedule=constant")
    long = tiny(*constant, "rounds=2", sites=2)
    whole = run(long, tmp_path / "whole")
    run(tiny(*constant, "rounds=1", sites=2), tmp_path / "parts")
    assert run(long, tmp_path / "parts", resume=True).fingerprint == whole.fingerprint
    digests = [(tmp_path / name / "digests.csv").read_text() for name in ("whole", "parts")]
    assert digests[0] == digests[1]
    assert RunFolder(tmp_path / "parts").scores.exists()
