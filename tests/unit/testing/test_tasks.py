"""A planted fault of each relation of a task is found, and told as a researcher can use it."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from examples.own_task import Nodules
from grandrounds.algorithms import aggregation
from grandrounds.core.errors import BadSite, BadStudy
from grandrounds.core.weights import Weights, mean
from grandrounds.study.file import parse_study
from grandrounds.tasks import TASKS, Tabular
from grandrounds.testing import Broken, check_task
from tests.helpers.faulty_tasks import Faulty, Mixing
from tests.helpers.own_tasks import Line, Points, write_volumes

FINITE = "weights are finite and moved"
RESUMED = "stopped in any round and resumed = never stopped"
PROCESSES = "two processes = one"
ONE = "a star of one site = training alone"
SEED = "first weights depend on the seed alone; building leaves the global generator be"
SCORES = "one score for each case, which depends on no other case"
SPLITS = "no patient is in two splits; every tensor is in a group"
ALL = (FINITE, RESUMED, PROCESSES, ONE, SEED, SCORES, SPLITS)


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """A study file has a word for the faulty task."""
    monkeypatch.setitem(TASKS, "classification", Faulty)


FAULTS: dict[str, tuple[str, str]] = {
    "Detached": (FINITE, "after 2 rounds site 'alder' has not moved network.features_0, and 2"),
    "Warming": (RESUMED, "stopped in round 1 and resumed, it ends with other weights: network."),
    "Hashed": (PROCESSES, "in two processes it ends with other weights: network."),
    "Unseeded": (SEED, "first weights depend on more than the seed: network.classifier.weight"),
    "Reseeding": (SEED, "building the network draws from the global generator of torch"),
    "Constant": (SEED, "first weights are the same for every seed"),
    "Relative": (SCORES, "beside other cases, case 1/000 of p005, FLAIR->lesion, at site 'alder'"),
    "Averaged": (SCORES, "score 'log_loss' has the shape (1,) for 4 cases; it must be (4,), one"),
    "Training": (SCORES, "has another score (log_loss "),
    "Nameless": (SCORES, "two cases have one name: case 1 of p005, FLAIR->lesion, at site 'alder'"),
    "Ungrouped": (SPLITS, "network.stem.conv.bias is in no parameter group, so no method can say"),
    "Headless": (SPLITS, "its groups lack 'head', which every task has (all, norm, head, upper)"),
    "Cheating": (SPLITS, "patient p002 of site 'alder' is in train and test"),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(fault: str):
    relation, sentence = FAULTS[fault]
    with pytest.raises(Broken) as caught:
        check_task(Faulty(fault=fault, norm="batch" if fault == "Training" else "instance"))
    assert sentence in caught.value.found[relation]
    assert sentence in str(caught.value)
    assert str(caught.value).startswith("Faulty: ")


def test_every_relation_but_the_star_of_one_has_a_task_that_breaks_it():
    assert {relation for relation, _ in FAULTS.values()} == {*ALL} - {ONE}


@pytest.mark.slow
def test_a_mean_of_one_that_is_not_that_one_is_found(monkeypatch: pytest.MonkeyPatch):
    """A fault of the house: no task averages."""

    def rounding(updates: Sequence[Weights], shares: Sequence[float]) -> Weights:
        return {n: t.bfloat16().to(t.dtype) for n, t in mean(updates, shares).items()}

    monkeypatch.setattr(aggregation, "mean", rounding)
    with pytest.raises(Broken) as caught:
        check_task(Faulty())
    assert set(caught.value.found) == {ONE}
    assert caught.value.found[ONE].startswith("a star of one site is not training alone: network.")


@pytest.mark.slow
def test_a_task_without_a_fault_keeps_to_every_relation():
    relations = check_task(Faulty)
    assert [str(relation) for relation in relations] == [f"holds: {name}" for name in ALL]


def table(path: Path, patients: int) -> Path:
    """A site's table of patients, whose finding follows from two variables."""
    rows = [(n, n % 7, n % 3, int(n % 7 > 3)) for n in range(patients)]
    lines = [f"sub-{n:03d}\t{age}\t{grade}\t{sick}" for n, age, grade, sick in rows]
    path.write_text("\n".join(["participant_id\tage\tgrade\tsick", *lines]) + "\n", "utf-8")
    return path


@pytest.mark.slow
def test_a_task_is_tried_on_data_of_ones_own(tmp_path: Path):
    site_file = tmp_path / "yew.toml"
    table(tmp_path / "yew.tsv", 12)
    site_file.write_text('name = "yew"\ndata = "yew.tsv"\n', "utf-8")
    sites = [{"name": name, "tasks": ["variables->sick"]} for name in ("oak", "yew")]
    study = parse_study(
        {
            "name": "own",
            "rounds": 2,
            "elements": {"variables": ["age", "grade", "sick"]},
            "task": {"kind": "tabular"},
            "training": {"batch_size": 2, "device": "cpu"},
            "method": {"kind": "fedavg"},
            "site": sites,
        }
    )
    data = {"oak": table(tmp_path / "oak.tsv", 15), "yew": site_file}
    relations = check_task(Tabular(hidden=(4,)), data, study=study)
    assert [str(relation) for relation in relations] == [f"holds: {name}" for name in ALL]
    with pytest.raises(BadSite, match="site 'yew' needs its site file"):
        check_task("tabular", {"oak": data["oak"]}, study=study)


@pytest.mark.slow
def test_a_supervised_task_is_tried_on_folders_or_datasets(tmp_path: Path):
    folders = {file.name: file.data for file in write_volumes(tmp_path)}
    points = {name: Points([f"{n}" for n in range(9)], seed) for seed, name in enumerate(folders)}
    for task, data in ((Nodules(features=4), folders), (Line, points)):
        relations = check_task(task, data)
        assert [str(relation) for relation in relations] == [f"holds: {name}" for name in ALL]


@pytest.mark.slow
def test_a_supervised_task_whose_prediction_mixes_cases_is_found():
    points = {name: Points([f"{n}" for n in range(9)], seed) for seed, name in enumerate("ab")}
    with pytest.raises(Broken) as caught:
        check_task(Mixing(), points)
    assert set(caught.value.found) == {SCORES}
    assert caught.value.found[SCORES].startswith("beside other cases, case 1 of p00")


def test_a_task_that_cannot_be_simulated_asks_for_data():
    with pytest.raises(BadStudy, match=r'Tabular cannot be simulated: .* data = \{"oak": FOLDER'):
        check_task("tabular")
    with pytest.raises(BadStudy, match="'tabula' is unknown; did you mean 'tabular'"):
        check_task("tabula")
