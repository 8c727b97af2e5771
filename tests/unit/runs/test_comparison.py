"""Several arms on identical data, and a comparison that is interrupted and goes on."""

import csv
import re
import tomllib
from pathlib import Path

import pytest

from grandrounds.algorithms import DEMO_ARMS
from grandrounds.core.errors import BadFolder, BadStudy
from grandrounds.core.events import Event, RunFinished, SiteTrained
from grandrounds.runs.arms import ArmChoice, arms_of, check_equal, comparison_terms
from grandrounds.runs.comparison import Comparison, ComparisonRun
from grandrounds.study.file import example, parse_study, read_table, to_toml
from tests.helpers.federation import synthesis_of

TINY = read_table(example("tiny"))


def test_an_arm_is_a_method_and_what_else_differs():
    arm = ArmChoice("pflsynth:split=wide:task.l1=10")
    assert (arm.kind, arm.name) == ("pflsynth", "pflsynth-split-wide-task-l1-10")
    study = arm.study(TINY, ["rounds=2"])
    assert (study.rounds, synthesis_of(study).l1) == (2, 10.0)
    assert study.method.options["split"] == "wide"
    assert study.arm == arm.name


def test_an_arm_leaves_the_others_alone():
    personalised = ArmChoice("local:task.generator=personalised").study(TINY, [])
    plain = ArmChoice("local").study(TINY, [])
    assert synthesis_of(personalised).generator == "personalised"
    assert synthesis_of(plain).generator == "plain"


@pytest.mark.parametrize(
    ("label", "title"),
    [
        ("fedavg", "FedAvg"),
        ("pflsynth:split=wide", "pFLSynth (wide)"),
        ("fedavg:aggregation.cosines_every=2", "FedAvg"),
        ("local", "Local only (plain network)"),
        ("local:task.generator=personalised", "Local only (personalised network)"),
    ],
)
def test_an_arm_has_a_title_for_people(label: str, title: str):
    arm = ArmChoice(label)
    assert arm.title(arm.study(TINY, [])) == title


def test_an_unknown_method_is_refused():
    with pytest.raises(
        BadStudy, match=r"arm 'fedagv': method\.kind = 'fedagv' is unknown; did you mean 'fedavg'"
    ):
        ArmChoice("fedagv").study(TINY, [])


def test_the_demo_s_arms_are_of_its_study():
    table = read_table(example("demo"))
    found = [ArmChoice(label).study(table, []) for label in DEMO_ARMS]
    assert [study.method.kind for study in found] == ["pflsynth", "fedavg", "local", "local"]
    assert all(synthesis_of(study).adversarial == 1.0 for study in found)


def test_arms_of_another_budget_are_refused_unless_that_is_allowed():
    labels = ["fedavg", "fedprox:mu=1", "fedavg:training.epochs=2:stop.test=last"]
    studies = {arm: arm.study(TINY, []) for arm in arms_of(labels)}
    with pytest.raises(BadStudy) as refused:
        check_equal(studies)
    assert str(refused.value).startswith(
        "arm 'fedavg:training.epochs=2:stop.test=last' differs from the first arm in "
        "training.epochs, stop.test, so the arms are not compared on equal terms."
    )
    check_equal({arm: study for arm, study in studies.items() if "training" not in arm.label})


def test_what_is_equal_and_what_is_not_is_said():
    labels = ["fedavg", "fedrep", "ditto", "central", "fedavg@cyclic"]
    said = comparison_terms({arm: arm.study(TINY, []) for arm in arms_of(labels)})
    assert said[0].startswith(
        "equal for all arms: data, splits and seeds; 3 rounds of 1 local epoch in batches of 4; "
        "adam, learning rate 0.001, schedule constant-linear; tested: the model of the round that "
        "validates best"
    )
    assert said[1:] == [
        "FedRep: 1 more epoch in each round, of what stays alone",
        "Ditto: each site trains two models, so twice the steps",
        "Centralised: one model takes the steps of all sites together",
        "FedAvg over cyclic: one model takes all sites' steps of a round, one after the other",
    ]


def test_an_arm_is_given_once():
    with pytest.raises(BadStudy, match="arm 'fedavg' is given 2 times; give it once"):
        arms_of(["fedavg", " fedavg "])
    with pytest.raises(BadStudy, match="a comparison needs one arm or more"):
        arms_of([" ", ""])


@pytest.mark.parametrize(
    ("labels", "why"),
    [
        (["fedprox:mu=0.1", "fedprox:mu=0-1"], "have one folder, 'fedprox-mu-0-1'; give one"),
        (["local:task.x=a", "local:task.x=A"], "differ in case alone; choose another"),
        (["con"], "arm 'con', in folders 'con': Windows keeps this name"),
        (["@star"], "arm '@star'"),
        (["::"], "arm '::', in folders '': a name has letters"),
    ],
)
def test_arms_that_have_no_folder_of_their_own_are_refused(labels: list[str], why: str):
    with pytest.raises(BadStudy, match=re.escape(why)):
        [arm.study(TINY, []) for arm in arms_of(labels)]


def test_the_folder_of_a_long_arm_is_cut_short_and_still_its_own():
    long = [
        f"fedavg:{'training.epochs=1:' * 5}rounds={n}".replace(":rounds", ":x.r") for n in (1, 2)
    ]
    names = [arm.name for arm in arms_of(long)]
    assert [len(name) for name in names] == [64, 64]
    assert names[0] != names[1]


def test_seeds_and_left_out_sites_are_runs_of_their_own(tmp_path: Path):
    made = {arm: arm.study(TINY, []) for arm in arms_of(["fedavg", "local"])}
    cells = Comparison(tmp_path, made, num_seeds=2, leave_one_out=True).cells
    names = [cell.name for cell in cells]
    assert len(names) == len(set(names)) == 2 * (5 + 1)
    assert names[0] == "arms/fedavg/seed-1"
    assert names[1] == "without/alder/arms/fedavg/seed-1"
    assert [study.seed for study in cells.values()] == [1] * 6 + [2] * 6
    assert {study.holdout_sites for study in cells.values()} == {
        (),
        *((site,) for site in ("alder", "birch", "cedar", "elder")),
    }


def test_a_relay_of_as_many_groups_as_sites_has_one_less_without_a_site(tmp_path: Path):
    arms = arms_of(["pflsynth@relay:topology.groups=4", "pflsynth@relay:topology.groups=2"])
    made = {arm: arm.study(TINY, []) for arm in arms}
    cells = Comparison(tmp_path, made, leave_one_out=True).cells
    groups = [study.topology.options["groups"] for study in cells.values()]
    assert groups == [4, 3, 3, 3, 3, 2, 2, 2, 2, 2]
    for study in cells.values():  # as whoever reads the run's folder again must be able to
        assert parse_study(tomllib.loads(to_toml(study))) == study


@pytest.mark.slow
def test_every_site_is_left_out_once_and_every_model_crosses(tmp_path: Path):
    made = {arm: arm.study(TINY, ["rounds=1"]) for arm in arms_of(["fedavg", "local"])}
    whole = Comparison(tmp_path, made, workers=1, leave_one_out=True, crosses=True)
    whole.run(lambda *_: None)
    with (tmp_path / "unseen.csv").open() as file:
        unseen = {(row["arm"], row["site"]) for row in csv.DictReader(file)}
    assert unseen == {("fedavg", site) for site in ("alder", "birch", "cedar", "elder")}
    with (tmp_path / "matrix.csv").open() as file:
        crossed = {(row["arm"], row["model"], row["site"]) for row in csv.DictReader(file)}
    assert len(crossed) == 2 * 4 * 4
    assert all(map(whole.is_done, whole.cells))
    before = (tmp_path / "matrix.csv").stat().st_mtime_ns
    Comparison(tmp_path, made, workers=2).run(lambda *_: pytest.fail("all was done"))
    assert (tmp_path / "matrix.csv").stat().st_mtime_ns > before, "tables are joined anew"


def comparison(folder: Path, *overrides: str, workers: int = 2) -> Comparison:
    arms = [ArmChoice("fedavg"), ArmChoice("central")]
    made = {arm: arm.study(TINY, ["rounds=2", *overrides]) for arm in arms}
    return Comparison(folder, made, workers=workers)


@pytest.mark.slow
def test_an_interrupted_comparison_goes_on_and_keeps_what_is_done(tmp_path: Path):
    stopped: list[Event] = []

    def stop_once_one_is_done(cell: ComparisonRun, event: Event) -> None:
        stopped.append(event)
        if isinstance(event, RunFinished):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        comparison(tmp_path).run(stop_once_one_is_done)
    heard: list[tuple[ComparisonRun, Event]] = []
    comparison(tmp_path).run(lambda cell, event: heard.append((cell, event)))
    trained = {(arm, e.round, e.site) for arm, e in heard if isinstance(e, SiteTrained)}
    before = [event for event in stopped if isinstance(event, SiteTrained)]
    assert before
    assert len(trained) < 2 * 4 + 2, "something was kept"

    whole = tmp_path / "whole"
    comparison(whole, workers=1).run(lambda *_: None)
    assert (tmp_path / "scores.csv").read_text() == (whole / "scores.csv").read_text()
    arms = tomllib.loads((whole / "arms.toml").read_text())["arm"]
    assert [arm["title"] for arm in arms] == ["FedAvg", "Centralised"]

    with pytest.raises(BadFolder, match=r"changed: training\.epochs"):
        comparison(whole, "training.epochs=2").run(lambda *_: None)
