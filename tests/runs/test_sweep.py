"""A sweep as a command: stopped, resumed, chosen by validation, with a report and no test."""

import json
from pathlib import Path

import pytest

from grandrounds.core.errors import BadFolder
from grandrounds.core.events import RoundFinished, RunFinished, SiteTested
from grandrounds.runs.comparison import Comparison, ComparisonRun, OnEvent
from grandrounds.runs.folder import TrainedRun
from grandrounds.runs.loop import run_study
from grandrounds.study.file import example, read_study
from grandrounds.study.study import Study
from tests.helpers.command import events, inside
from tests.helpers.federation import digests, rows

pytestmark = pytest.mark.slow
OVER = "training.learning_rate=1e-3,1e30,1e-2"


def candidate(folder: Path, rate: str) -> Path:
    return folder / "arms" / f"pflsynth-training-learning-rate-{rate}" / "seed-1"


def best_scores(folder: Path) -> dict[str, float]:
    """The best validation score of each candidate that did not diverge, from its journal."""
    return {
        rate: max(e.score for e in told if isinstance(e, RoundFinished) and e.score is not None)
        for rate in ("1e-3", "1e-2")
        for told in [events(candidate(folder, rate))]
    }


def assert_untested(folder: Path, rate: str) -> None:
    told = events(candidate(folder, rate))
    assert isinstance(told[-1], RunFinished)
    assert not [event for event in told if isinstance(event, SiteTested)]
    assert rows(candidate(folder, rate) / "scores.csv") == []
    with pytest.raises(BadFolder, match="a candidate of a sweep, which is not tested"):
        TrainedRun(candidate(folder, rate))


def test_a_sweep_that_was_stopped_goes_on_and_tests_no_candidate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    folder, run = tmp_path / "sweep", Comparison._run_here
    words = ("sweep", example("tiny"), "--over", OVER, "--set", "rounds=2", "--out", folder)

    def stopped(comparison: Comparison, todo: dict[ComparisonRun, Study], hear: OnEvent) -> None:
        run(comparison, dict(list(todo.items())[:1]), hear)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Comparison, "_run_here", stopped)
        done = inside(patch, capsys, *words, "--workers", "1", "--quiet")
    assert done.code == 1
    assert "Give the same command again as it was" in done.err
    before = (candidate(folder, "1e-3") / "journal.jsonl").read_bytes()
    assert not (folder / "chosen.toml").exists()

    done = inside(monkeypatch, capsys, *words, "--workers", "1", "--devices", "cpu", "--json")
    assert done.code == 0, done.err
    assert (candidate(folder, "1e-3") / "journal.jsonl").read_bytes() == before
    said, scores = json.loads(done.out), best_scores(folder)
    validated = {each["name"][-4:]: each["validation"] for each in said["candidates"]}
    assert validated == {**scores, "1e30": None}
    best = max(scores, key=lambda rate: scores[rate])
    assert said["chosen"].endswith(best)
    for rate in scores:
        assert_untested(folder, rate)
    assert not (folder / "scores.csv").exists()
    page = (folder / "report.html").read_text()
    assert "Chosen by validation, of 3 candidates: pFLSynth" in page
    assert "No candidate was tested" in page
    _assert_a_study_like_any_other(folder, best, tmp_path / "run")


def _assert_a_study_like_any_other(folder: Path, best: str, out: Path) -> None:
    """A run of what was chosen repeats the candidate's rounds, and tests."""
    chosen = read_study(folder / "chosen.toml")
    assert chosen.training.learning_rate == float(best)
    run_study(chosen, out)
    assert digests(out) == digests(candidate(folder, best))
    assert rows(out / "scores.csv")
