"""A comparison as a user meets it: killed at any moment, it goes on to the same table."""

import time
from pathlib import Path

import pytest

from grandrounds.core.events import RoundFinished
from tests.helpers.command import events, inside, kill, program, started

pytestmark = pytest.mark.slow
STUDY = Path(__file__).parents[2] / "studies" / "tiny.toml"
ARMS = ("--arms", "pflsynth,fedavg", "--set", "rounds=2", "--seeds", "2", "--matrix")
QUIETLY = ("--workers", "2", "--quiet")
TABLES = ("scores.csv", "matrix.csv", "arms.toml")


def compare(out: Path, *more: str) -> list[str | Path]:
    return ["compare", STUDY, *ARMS, *QUIETLY, "--out", out, *more]


def rounds_done(out: Path) -> int:
    told = (event for folder in out.glob("arms/*/*") for event in events(folder))
    return sum(isinstance(event, RoundFinished) for event in told)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "compared"
    assert program(*compare(out)).code == 0
    return out


@pytest.mark.full
@pytest.mark.parametrize("rounds", [1, 4, 6])
def test_killed_and_given_again_a_comparison_comes_to_the_same_tables(
    tmp_path: Path, whole: Path, rounds: int
):
    out = tmp_path / "compared"
    with started(*compare(out)) as process:
        while rounds_done(out) < rounds:
            assert process.poll() is None, "it ended before it was killed"
            time.sleep(0.01)
        kill(process)
    assert not (out / "scores.csv").exists(), "it was killed before its end"
    again = program(*compare(out))
    assert (again.code, again.err) == (0, "")
    for table in TABLES:
        assert (out / table).read_text() == (whole / table).read_text()
    digests = [sorted(folder.glob("arms/*/*/digests.csv")) for folder in (out, whole)]
    assert [path.read_text() for path in digests[0]] == [path.read_text() for path in digests[1]]


def test_another_budget_is_refused_and_allowed_by_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    given: list[str | Path] = [
        "compare",
        STUDY,
        "--arms",
        "fedavg,local:training.epochs=2",
        "--set",
        "rounds=1",
    ]
    given += ["--out", tmp_path / "out"]
    refused = inside(monkeypatch, capsys, *given)
    assert refused.code == 2
    assert "differs from the first arm in training.epochs" in refused.err
    assert not (tmp_path / "out").exists()
    allowed = inside(monkeypatch, capsys, *given, "--unequal")
    assert allowed.code == 0
    assert "differs in training.epochs, as asked for" in allowed.err


def test_a_budget_and_derived_arms_are_a_word_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    given: list[str | Path] = ["compare", STUDY, "--set", "rounds=1", "--out", tmp_path / "out"]
    arms = "fedavg@cyclic,local,local:steps=x2,alone"
    done = inside(monkeypatch, capsys, *given, "--arms", arms, "--budget", "steps-in-a-row")
    assert done.code == 0
    assert "Local only (plain network): 4 local epochs a round; 8 local steps" in done.err
    assert "Alone, as long as it likes" in done.out
    assert "alone" in (tmp_path / "out" / "scores.csv").read_text()
    longest = tmp_path / "out/arms/local-steps-x2/seed-1/study.toml"
    assert "epochs = 8" in longest.read_text()
    other = inside(monkeypatch, capsys, *given, "--arms", arms)
    assert other.code == 2
    assert "its run began with another study; changed: training.epochs" in other.err
