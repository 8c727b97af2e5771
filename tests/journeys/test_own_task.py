"""The commands take a task of one's own, and refuse it with a sentence where they cannot."""

import shutil
from pathlib import Path

import pytest

from examples import own_task
from grandrounds.runs.loop import run_study as run
from grandrounds.study.file import to_toml
from tests.helpers.command import inside, program
from tests.helpers.federation import rows
from tests.helpers.own_tasks import Line, lines, nodules, points, write_volumes
from tests.journeys.test_docs import ROOT, commands

SITES = ("--site", "oak.toml", "--site", "yew.toml")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a module of one's own, a study of it, and two sites."""
    shutil.copy(own_task.__file__, tmp_path / "our_tasks.py")
    write_volumes(tmp_path)
    for site in ("oak", "yew"):
        (tmp_path / f"{site}.toml").write_text(f'name = "{site}"\ndata = "{site}"\n')
    text = to_toml(nodules()).replace("examples.own_task:", "our_tasks:")
    (tmp_path / "nodules.toml").write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_how_to_shows_the_task_that_is_tested():
    blocks = commands("docs/how-to/own-task.md")
    assert Path(own_task.__file__).read_text("utf-8") in blocks[0]
    assert (ROOT / "docs/how-to/own-task.md").read_text("utf-8").count("our_tasks:Nodules") >= 3


@pytest.mark.slow
def test_a_study_of_it_runs_in_processes_of_their_own(here: Path):
    done = program("run", "nodules.toml", *SITES, "--out", "run", "--workers", "2", "--quiet")
    assert done.code == 0, done.err
    assert {row["site"] for row in rows(here / "run" / "scores.csv")} == {"oak", "yew"}
    assert "MRN" not in (here / "run" / "report.html").read_text("utf-8")
    (here / "our_tasks.py").unlink()
    lost = program("check", "nodules.toml")
    assert lost.code == 2
    assert "there is no module our_tasks here; install the package that has it" in lost.err


@pytest.mark.slow
def test_check_counts_patients_and_items(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    study = (here / "nodules.toml").read_text("utf-8")
    (here / "nodules.toml").write_text(study.replace("our_tasks:", "examples.own_task:"))
    done = inside(monkeypatch, capsys, "check", "nodules.toml", *SITES)
    assert done.code == 0, done.err
    table = done.out[done.out.index("Site 'oak'") :]
    cells = [line.replace("│", " ").split() for line in table.splitlines()]
    assert ["train", "5", "5"] in cells
    assert ["test", "2", "2"] in cells
    assert "sessions" not in table
    assert "MRN" not in done.out + done.err


def test_a_report_and_cards_name_scores_by_their_own_names_and_nothing_is_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    run(lines(), tmp_path, files=(points("oak", seed=1), points("yew", seed=2)))
    assert inside(monkeypatch, capsys, "report", tmp_path, "--quiet").code == 0
    page = (tmp_path / "report.html").read_text("utf-8")
    heads = [f'<th scope="col">{name}' for name in (Line.metric, "error")]
    assert page.index(heads[0]) < page.index(heads[1])  # the watched one is the main one
    assert inside(monkeypatch, capsys, "card", tmp_path).code == 0
    card = (tmp_path / "card" / "model-card.md").read_text("utf-8")
    assert "own_tasks:Line" in card
    assert "closeness" in card
    site = (tmp_path, "--site", "oak")
    for words, sentence in {
        ("export", *site, "--out", "x.pt2"): "Line itself knows how its batches are made",
        ("synthesize", *site, "--from", "a", "--to", "b", "x.nii", "y.nii"): (
            "Line; only a model of synthesis makes a contrast"
        ),
    }.items():
        refused = inside(monkeypatch, capsys, *words)
        assert refused.code == 2
        assert sentence in refused.err
