"""Several arms on identical data, and a comparison that is interrupted and goes on."""

import tomllib
from pathlib import Path

import pytest

from grandrounds.arms import Arm
from grandrounds.compare import DEMO_ARMS, Cell, Comparison
from grandrounds.errors import BadFolder, BadStudy
from grandrounds.events import Event, RunFinished, SiteTrained
from grandrounds.packaged import studies
from grandrounds.study_file import read_table
from tests.federation import synthesis_of

TINY = read_table(studies() / "tiny.toml")


def test_an_arm_is_a_method_and_what_else_differs():
    arm = Arm("pflsynth:split=wide:task.l1=10")
    assert (arm.kind, arm.name) == ("pflsynth", "pflsynth-split-wide-task-l1-10")
    study = arm.study(TINY, ["rounds=2"])
    assert (study.rounds, synthesis_of(study).l1) == (2, 10.0)
    assert study.method.options["split"] == "wide"
    assert study.arm == arm.name


def test_an_arm_leaves_the_others_alone():
    personalised = Arm("local:task.generator=personalised").study(TINY, [])
    plain = Arm("local").study(TINY, [])
    assert synthesis_of(personalised).generator == "personalised"
    assert synthesis_of(plain).generator == "plain"


@pytest.mark.parametrize(
    ("label", "title"),
    [
        ("fedavg", "FedAvg"),
        ("pflsynth:split=wide", "pFLSynth (wide)"),
        ("local", "Local only (plain network)"),
        ("local:task.generator=personalised", "Local only (personalised network)"),
    ],
)
def test_an_arm_has_a_title_for_people(label: str, title: str):
    arm = Arm(label)
    assert arm.title(arm.study(TINY, [])) == title


def test_an_unknown_method_is_refused():
    with pytest.raises(BadStudy, match="arm 'fedagv': no method 'fedagv'; known: fedavg"):
        Arm("fedagv").study(TINY, [])


def test_the_demo_s_arms_are_of_its_study():
    table = read_table(studies() / "demo.toml")
    found = [Arm(label).study(table, []) for label in DEMO_ARMS]
    assert [study.method.kind for study in found] == ["pflsynth", "fedavg", "local", "local"]
    assert all(synthesis_of(study).adversarial == 1.0 for study in found)


def comparison(folder: Path, *overrides: str) -> Comparison:
    arms = [Arm("fedavg"), Arm("central")]
    made = {arm: arm.study(TINY, ["rounds=2", *overrides]) for arm in arms}
    return Comparison(folder, made, workers=2)


@pytest.mark.slow
def test_an_interrupted_comparison_goes_on_and_keeps_what_is_done(tmp_path: Path):
    stopped: list[Event] = []

    def stop_once_one_is_done(cell: Cell, event: Event) -> None:
        stopped.append(event)
        if isinstance(event, RunFinished):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        comparison(tmp_path).run(stop_once_one_is_done)
    heard: list[tuple[Cell, Event]] = []
    comparison(tmp_path).run(lambda cell, event: heard.append((cell, event)))
    trained = {(arm, e.round, e.site) for arm, e in heard if isinstance(e, SiteTrained)}
    before = [event for event in stopped if isinstance(event, SiteTrained)]
    assert before
    assert len(trained) < 2 * 4 + 2, "something was kept"

    whole = tmp_path / "whole"
    comparison(whole).run(lambda *_: None)
    assert (tmp_path / "scores.csv").read_text() == (whole / "scores.csv").read_text()
    arms = tomllib.loads((whole / "arms.toml").read_text())["arm"]
    assert [arm["title"] for arm in arms] == ["FedAvg", "Centralised"]

    with pytest.raises(BadFolder, match=r"changed: training\.epochs"):
        comparison(whole, "training.epochs=2").run(lambda *_: None)
