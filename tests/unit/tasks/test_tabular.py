"""The tabular task: rows of variables on a site's own scale, a perceptron, real hospitals."""

import runpy
from math import isnan, log, nan
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Generator

from grandrounds.core.device import weights_dtype
from grandrounds.core.errors import BadStudy
from grandrounds.core.messages import CaseScore
from grandrounds.core.weights import select
from grandrounds.data.cohort import Cohort, Session
from grandrounds.data.elements import Elements
from grandrounds.runs.loop import run_study as run
from grandrounds.runs.site_data import open_sites
from grandrounds.site.cut import cut_at
from grandrounds.study.file import example, read_study
from grandrounds.study.site_file import SiteFile, read_site
from grandrounds.tasks.tabular import Scale, Tabular, TabularTask
from tests.helpers.federation import rows

SCRIPTS = Path(__file__).parents[3] / "scripts"
ELEMENTS = Elements(variables=("age", "chol", "num"))
SITES = {"alder": ["variables->num"], "birch": ["variables->num"]}


def patient(name: str, age: float, chol: float, num: float) -> Session:
    values = {"age": age, "chol": chol, "num": num}
    return Session(name, "", (), np.zeros((1, 0, 1, 1), np.float32), values=values)


COHORT = Cohort(
    "alder",
    {
        "train": (patient("smith", 40, nan, 0), patient("jones", 60, 200, 2)),
        "validation": (),
        "test": (patient("brown", 70, 300, 1), patient("white", nan, 150, nan)),
    },
)


def bound(**options: object) -> TabularTask:
    return Tabular(**options).bind(ELEMENTS, SITES)  # pyright: ignore[reportArgumentType]


def test_a_row_is_on_the_scale_of_the_training_patients_and_says_what_is_missing():
    examples = bound().training_examples([COHORT])
    batch = examples.batch([0, 1], None)
    assert batch["source"].tolist() == [[-1, 0, 0, 1], [1, 0, 0, 0]]
    assert batch["target"].tolist() == [[0], [1]]
    tested = bound().evaluation_examples([COHORT], "test").batch([0], None)
    assert tested["source"].tolist() == [[2, 100, 0, 0]]  # (70 - 50) / 10, and chol as it is


def test_a_patient_whose_target_is_missing_is_no_case():
    examples = bound().evaluation_examples([COHORT], "test")
    assert len(examples) == 1
    assert examples.case(0).task == "variables->num"


def test_names_of_patients_stay_at_the_site():
    cases = [bound().training_examples([COHORT]).case(index) for index in (0, 1)]
    assert {case.patient for case in cases} <= {"p001", "p002", "p003", "p004"}
    assert {case.case for case in cases} == {"1"}


def test_each_site_has_its_own_scale():
    other = Cohort(
        "birch",
        {"train": (patient("a", 0, 1, 0), patient("b", 2, 1, 1)), "validation": (), "test": ()},
    )
    source = bound().training_examples([COHORT, other]).batch([0, 1, 2, 3], None)["source"]
    assert source[:, 0].tolist() == [-1, 1, -1, 1]


def test_a_scale_of_what_was_never_measured_or_never_varies_is_harmless():
    scale = Scale.of(np.array([[nan, 5.0], [nan, 5.0]]))
    assert scale(np.array([[nan, 5.0], [3.0, 7.0]])).tolist() == [[0, 0, 1, 0], [3, 2, 0, 0]]


@pytest.mark.parametrize(("threshold", "positive"), [(0.0, [0, 1]), (2.0, [0, 0]), (-1.0, [1, 1])])
def test_a_patient_is_positive_above_the_threshold(threshold: float, positive: list[int]):
    batch = bound(threshold=threshold).training_examples([COHORT]).batch([0, 1], None)
    assert batch["target"].flatten().tolist() == positive


def test_the_loss_is_the_mean_over_patients():
    task = bound(hidden=())
    model = task.build(1)
    batch = task.training_examples([COHORT]).batch([0, 1], Generator())
    [(part, loss)] = task.losses(model, batch)
    each = [
        next(task.losses(model, {name: tensor[i : i + 1] for name, tensor in batch.items()}))[1]
        for i in (0, 1)
    ]
    assert part == "network"
    assert loss.item() == pytest.approx((each[0].item() + each[1].item()) / 2)


def test_a_positive_patient_counts_as_often_as_its_weight_says():
    batch = bound().training_examples([COHORT]).batch([1], None)
    plain, heavy = (
        next(task.losses(task.build(1), batch))[1].item()
        for task in (bound(), bound(positive_weight=3.0))
    )
    assert heavy == pytest.approx(3 * plain)


@pytest.mark.parametrize("hidden", [(), (3,), (4, 3)])
@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
def test_stages_one_by_one_give_what_the_network_gives(
    hidden: tuple[int, ...], precision: torch.dtype
):
    task = bound(hidden=hidden)
    model = task.build(1).to(weights_dtype(precision))
    batch = {n: t.to(precision) for n, t in task.blank((1, 1)).items()}
    batch["source"] += torch.arange(4)
    carried, stages = task.inputs(batch), task.stages(model)
    for stage in stages:
        carried = task.run(model, [stage], carried)
    assert torch.equal(carried["output"], model(batch["source"]))
    assert carried["output"].dtype == precision
    held = [set(select(model.state_dict(), keep)) for keep in stages.values()]
    assert set().union(*held) == set(model.state_dict())
    assert sum(map(len, held)) == len(model.state_dict())


def test_it_can_be_cut_between_hidden_and_output():
    task = bound()
    cut = cut_at(task.stages(task.build(1)), cut="output", back="", labels="site")
    assert (cut.head, cut.body) == (("hidden_0",), ("output",))


def test_groups_are_parts_of_the_network():
    task = bound(hidden=(4, 3))
    model = task.build(1)
    groups = {
        name: set(select(model.state_dict(), keep)) for name, keep in task.groups(model).items()
    }
    assert groups["all"] == set(model.state_dict())
    assert groups["hidden"] | groups["output"] == groups["all"]
    assert groups["head"] == groups["output"] == {f"network.output.{n}" for n in ("weight", "bias")}
    assert groups["upper"] - groups["head"] == {
        f"network.hidden_1.0.{n}" for n in ("weight", "bias")
    }
    assert groups["norm"] == set()


def test_equal_seeds_build_equal_bits_and_others_do_not():
    task = bound()
    one, same, other = (task.build(seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["network.output.weight"], other["network.output.weight"])


def test_scores_are_those_of_two_classes():
    task = bound()
    scores = task.score(torch.tensor([[0.25], [0.5]]), {"target": torch.tensor([[0.0], [1.0]])})
    assert scores["log_loss"].tolist() == pytest.approx([-log(0.75), -log(0.5)])
    assert scores["accuracy"].tolist() == [1, 1]
    assert (scores["probability"].tolist(), scores["label"].tolist()) == ([0.25, 0.5], [0, 1])


def case_score(name: str, probability: float, label: float) -> CaseScore:
    values = bound().score(torch.tensor([[probability]]), {"target": torch.tensor([[label]])})
    numbers = {key: value.item() for key, value in values.items()}
    return CaseScore(site="alder", patient=name, case="1", task="variables->num", values=numbers)


def test_a_summary_has_an_auc_and_without_both_classes_none_but_still_the_watched_score():
    both = [case_score("a", 0.2, 0), case_score("b", 0.6, 0), case_score("c", 0.4, 1)]
    found = bound().summary(both)
    assert (found["auc"], found["balanced_accuracy"]) == (0.5, 0.25)
    alone = bound().summary(both[:2])
    assert "auc" not in alone
    assert alone[bound().metric] == pytest.approx((log(0.8) + log(0.4)) / 2)


@pytest.mark.parametrize(
    ("options", "variables", "label", "says"),
    [
        ({"hidden": (0,)}, ("age", "num"), "variables->num", "task.hidden is [0]"),
        ({"dropout": 2.0}, ("age", "num"), "variables->num", "task.dropout is 2.0"),
        ({"positive_weight": 0.0}, ("age", "num"), "variables->num", "must be above 0"),
        ({}, ("num",), "variables->num", "elements.variables has num; a table needs a target"),
        ({}, (), "variables->num", "elements.variables has none"),
        ({}, ("age", "num"), "variables->death", "target of elements.variables (age, num)"),
        ({}, ("age", "num"), "age->num", 'write it as "variables->TARGET"'),
    ],
)
def test_what_no_network_can_be_made_of_is_refused(
    options: dict[str, object], variables: tuple[str, ...], label: str, says: str
):
    task = Tabular(**options)  # pyright: ignore[reportArgumentType]
    with pytest.raises(BadStudy) as refused:
        task.check(Elements(variables=variables), {"alder": [label]})
    assert says in str(refused.value)


def test_two_targets_are_refused():
    with pytest.raises(BadStudy, match="the targets age, num; a table has one"):
        Tabular().check(ELEMENTS, {"alder": ["variables->num"], "birch": ["variables->age"]})


@pytest.fixture(scope="session")
def hospitals(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[SiteFile]:
    out = tmp_path_factory.mktemp("heart")
    main = runpy.run_path(str(SCRIPTS / "heart.py"))["main"]
    main(real_data / "tabular" / "heart", out)
    return [read_site(path) for path in sorted(out.glob("*.toml"))]


def test_the_four_real_hospitals_are_read_whole(hospitals: list[SiteFile]):
    opened = open_sites(read_study(example("heart")), hospitals)
    assert {name: sum(site.ready.patients.values()) for name, site in opened.items()} == {
        "cleveland": 303,
        "hungarian": 294,
        "switzerland": 123,
        "va": 200,
    }
    [cohort] = opened["switzerland"].cohorts
    assert all(isnan(session.values["chol"]) for session in cohort)
    assert sum(session.values["num"] > 0 for session in cohort) == 115


@pytest.mark.slow
def test_real_hospitals_learn_together(hospitals: list[SiteFile], tmp_path: Path):
    """Better than to tell every patient how often the others of the hospital have the disease."""
    study = read_study(example("heart"), ["rounds=8", "stop.validate_every=4"])
    run(study, tmp_path / "run", files=hospitals)
    found = rows(tmp_path / "run" / "scores.csv")
    losses = [float(row["value"]) for row in found if row["metric"] == "log_loss"]
    labels = [(r["site"], float(r["value"])) for r in found if r["metric"] == "label"]
    sick = {site: np.mean([value for s, value in labels if s == site]) for site in study.roster}
    blind = [-log(sick[site] if value else 1 - sick[site]) for site, value in labels]
    assert len(losses) == len(blind) == 185
    assert np.mean(losses) < np.mean(blind)
