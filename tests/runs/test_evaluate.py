"""Trained models on data that they never saw: every site's, a held-out one's, a new one's."""

import csv
import json
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from grandrounds.cli import app
from grandrounds.core.errors import BadFolder, BadSite
from grandrounds.core.messages import CaseScore
from grandrounds.core.weights import read
from grandrounds.runs.adapt import ADAPTED, ALONE, AS_IT_CAME, adapt
from grandrounds.runs.evaluate import matrix, score_at_site
from grandrounds.runs.folder import TrainedRun, find_runs
from grandrounds.runs.loop import run_study as run
from grandrounds.runs.site_data import find_site
from tests.helpers.federation import stopped, tiny

pytestmark = pytest.mark.slow
Case = tuple[str, ...]
SITES = ("alder", "birch")
CASE = ("site", "patient", "case", "task", "metric")


def trained(folder: Path, *options: str) -> TrainedRun:
    run(tiny("rounds=1", *options, sites=3), folder)
    return TrainedRun(folder)


def new_site(folder: Path, real_data: Path, tasks: str) -> Path:
    path, data = folder / "new.toml", real_data / "mri/site-lju3t"
    path.write_text(f'name = "new"\ndata = "{data}"\ncache = "cache"\ntasks = {tasks}\n')
    return path


def values(path: Path, model: str = "") -> dict[Case, str]:
    with path.open() as file:
        rows = [row for row in csv.DictReader(file) if row.get("model", "") in (model, "pooled")]
    return {tuple(row[name] for name in CASE): row["value"] for row in rows}


@pytest.mark.parametrize(
    "options",
    [
        ("method.kind=pflsynth",),
        ("method.kind=local",),
        ("method.kind=ditto", "topology.kind=swarm"),
        ("method.kind=fedavg", "topology.kind=cyclic"),
        ("method.kind=lg_fedavg", "topology.kind=split", "topology.cut=bottleneck_late.0"),
        ("method.kind=fedavg", "training.fine_tune=1"),
        ("method.kind=central",),
    ],
    ids=str,
)
def test_a_site_s_own_column_of_the_matrix_is_its_test(tmp_path: Path, options: Iterable[str]):
    finished = trained(tmp_path, *options)
    found = matrix(finished, ())
    tested = values(tmp_path / "scores.csv")
    assert tested
    for site in finished.study.trainers:
        own = {case: v for case, v in tested.items() if case[0] == site}
        crossed = values(tmp_path / "matrix.csv", site)
        assert own == {case: v for case, v in crossed.items() if case[0] == site}
    sites = {score.site for scores in found.values() for score in scores}
    assert sites == set(finished.study.roster)


def test_another_site_s_model_is_another_model_where_something_stays_private(tmp_path: Path):
    matrix(trained(tmp_path, "method.kind=pflsynth"), ())
    alder, cedar = (values(tmp_path / "matrix.csv", site) for site in ("alder", "cedar"))
    assert alder.keys() == cedar.keys()
    assert not any(alder[case] == cedar[case] for case in alder if case[-1] == "psnr")


def test_a_held_out_site_is_in_the_matrix_and_has_no_model(tmp_path: Path):
    finished = trained(tmp_path, "method.kind=fedavg", "holdout_sites=['birch']")
    found = matrix(finished, ())
    assert set(found) == {"alder", "cedar"}
    crossed = values(tmp_path / "matrix.csv", "alder")
    unseen = values(tmp_path / "unseen.csv")
    assert unseen == {case: v for case, v in crossed.items() if case[0] == "birch"}


def test_a_new_hospital_s_own_data_test_a_finished_model(tmp_path: Path, real_data: Path):
    finished = trained(
        tmp_path / "run", "method.kind=fedavg", "elements.contrasts=['T1w','T2w','PDw','FLAIR']"
    )
    site = new_site(tmp_path, real_data, '["T1w->T2w"]')
    found = score_at_site(finished, find_site(finished.study, str(site)))
    assert {(score.site, score.task) for score in found} == {("new", "T1w->T2w")}
    assert len({score.patient for score in found}) > 1, "all patients of a new site are tested"
    assert values(tmp_path / "run/evaluated/new.csv")


def patients(scores: Iterable[CaseScore]) -> set[str]:
    return {score.patient for score in scores}


def test_the_command_says_which_patients_it_scored_and_these_they_are(
    tmp_path: Path, real_data: Path
):
    folder, options = tmp_path / "run", ("method.kind=fedavg", "holdout_sites=['birch']")
    finished = trained(folder, *options, "elements.contrasts=['T1w','T2w','PDw','FLAIR']")
    new = new_site(tmp_path, real_data, '["T1w->T2w"]')
    asked = [word for name in ("alder", "birch", new) for word in ("--site", str(name))]
    printed = CliRunner().invoke(app, ["evaluate", str(folder), *asked])
    assert printed.exit_code == 0
    assert {
        "alder: its test patients",
        "birch: all its patients, as it did not train; unseen.csv has its test patients only",
        "new: all its patients, as it did not train",
    } <= set(printed.stdout.splitlines())
    structured = CliRunner().invoke(app, ["evaluate", str(folder), "--json", *asked])
    [run_scores] = json.loads(structured.stdout)
    assert run_scores["patients"]["alder"] == "its test patients"
    scored = {n: patients(score_at_site(finished, find_site(finished.study, n))) for n in SITES}
    test = {n: {case[1] for case in values(folder / f"{n}.csv")} for n in ("scores", "unseen")}
    assert scored["alder"] <= test["scores"]
    assert scored["birch"] > test["unseen"], "all its patients"


@pytest.mark.parametrize(
    ("tasks", "sentence"),
    [
        ('["T1w->PDw"]', "site file of 'new': no site trained the task 'T1w->PDw'; trained were"),
        ('["T2w->PDw"]', "site 'new': no session has PDw, which T2w->PDw needs"),
    ],
)
def test_a_task_that_cannot_be_tested_is_refused(
    tmp_path: Path, real_data: Path, tasks: str, sentence: str
):
    finished = trained(tmp_path / "run", "method.kind=fedavg")
    site = new_site(tmp_path, real_data, tasks)
    with pytest.raises(BadSite, match=sentence.replace("(", r"\(")):
        score_at_site(finished, find_site(finished.study, str(site)))


def test_a_newcomer_trains_its_private_part_and_nothing_else(tmp_path: Path):
    finished = trained(tmp_path, "method.kind=pflsynth", "holdout_sites=['birch']")
    came, adapted, alone = adapt(finished, find_site(finished.study, "birch"), epochs=2)
    assert [came.name, adapted.name, alone.name] == [AS_IT_CAME, ADAPTED, ALONE]
    assert (came.steps, adapted.steps) == (0, 2 * 2)
    assert alone.steps == 1 * 2  # one round of one epoch, as the others trained
    shared = finished.shared()
    assert all(torch.equal(adapted.weights[name], shared[name]) for name in shared)
    moved = {n for n, t in adapted.weights.items() if not torch.equal(t, came.weights[n])}
    assert any(name.startswith("generator.personal.") for name in moved)
    own = read(tmp_path / "adapted/birch/private.safetensors")[0]
    assert set(own) == {name for name in adapted.weights if name not in shared}
    unseen = values(tmp_path / "unseen.csv")
    assert unseen == values(tmp_path / "adapted/birch/as-it-came.csv")


@pytest.mark.parametrize(
    ("options", "site", "sentence"),
    [
        (("method.kind=fedavg", "holdout_sites=['birch']"), "birch", "shares the whole network"),
        (("method.kind=pflsynth",), "alder", "site 'alder' took part in the training"),
        (("method.kind=local",), "elm", "elm: cannot be read as a site file"),
    ],
)
def test_who_has_nothing_to_adapt_is_told(
    tmp_path: Path, options: Iterable[str], site: str, sentence: str
):
    finished = trained(tmp_path, *options)
    with pytest.raises(BadSite, match=sentence):
        adapt(finished, find_site(finished.study, site), epochs=1)


def test_only_a_run_that_came_to_its_end_has_a_model(tmp_path: Path):
    with pytest.raises(BadFolder, match=r"no study\.toml, so no run"):
        TrainedRun(tmp_path)
    stopped(
        tiny("rounds=2", sites=1), tmp_path / "run", lambda event: getattr(event, "round", 0) == 2
    )
    with pytest.raises(BadFolder, match="its run is not finished"):
        find_runs(tmp_path / "run")
