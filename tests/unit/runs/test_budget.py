"""Budgets: what is equal for all arms of a comparison, and what the others then are."""

from collections.abc import Mapping

import pytest

from grandrounds.algorithms.cyclic import Cyclic
from grandrounds.algorithms.split import Split
from grandrounds.algorithms.star import Star
from grandrounds.algorithms.swarm import Swarm
from grandrounds.algorithms.topology import Topology
from grandrounds.core.errors import BadStudy
from grandrounds.runs.arms import ArmChoice, arms_of, check_equal, read_arms
from grandrounds.runs.budget import ArmSteps, Budget, BudgetKind, arm_steps
from grandrounds.study.file import example, read_table
from grandrounds.study.study import Study

TINY = read_table(example("tiny"))
EVEN = {"alder": 8, "birch": 8, "cedar": 8, "elder": 8}  # two batches of 4 each
UNEVEN = {"alder": 20, "birch": 8, "cedar": 20, "elder": 17}  # batches: 5, 2, 5, 5


def studies(*labels: str) -> dict[ArmChoice, Study]:
    return {arm: arm.study(TINY, ["rounds=2"]) for arm in arms_of(labels)}


def epochs(fitted: Mapping[ArmChoice, Study]) -> dict[str, int]:
    return {arm.label: study.training.epochs for arm, study in fitted.items()}


@pytest.mark.parametrize(
    ("topology", "in_a_row"),
    [
        (Star(), 1),
        (Swarm(), 1),
        (Cyclic(), 4),
        (Split(), 4),
        (Split(variant="splitfed1"), 1),
        (Split(variant="splitfed2"), 4),  # all sites train the server's one part in turn
    ],
)
def test_a_topology_says_how_many_sites_follow_one_another(topology: Topology, in_a_row: int):
    assert topology.in_a_row(4) == in_a_row


@pytest.mark.parametrize(
    ("label", "steps"),
    [
        ("fedavg", ArmSteps(local=10, in_a_row=10, wall_clock=10)),
        ("fedavg@cyclic", ArmSteps(local=10, in_a_row=34, wall_clock=34)),
        ("central", ArmSteps(local=34, in_a_row=34, wall_clock=34)),  # 65 examples: 17 batches
        ("local", ArmSteps(local=10, in_a_row=10, wall_clock=10)),
        ("local:steps=x4", ArmSteps(local=40, in_a_row=40, wall_clock=40)),
        ("ditto", ArmSteps(local=10, in_a_row=10, wall_clock=20)),
        ("fedrep:head_epochs=3", ArmSteps(local=40, in_a_row=40, wall_clock=40)),
    ],
)
def test_steps_of_two_rounds_are_counted_before_training(label: str, steps: ArmSteps):
    [study] = studies(label).values()
    assert arm_steps(study, UNEVEN) == steps


@pytest.mark.parametrize(
    ("kind", "examples", "given"),
    [
        ("local-steps", EVEN, (1, 1, 1, 1, 2, 1)),
        ("steps-in-a-row", EVEN, (1, 4, 1, 4, 8, 4)),
        ("wall-clock", EVEN, (1, 4, 1, 4, 8, 2)),  # ditto trains two models at once
        ("steps-in-a-row", UNEVEN, (1, 3, 1, 3, 6, 3)),  # 34 in a row against 30
    ],
)
def test_arms_get_the_epochs_that_bring_them_nearest_to_the_costliest(
    kind: BudgetKind, examples: Mapping[str, int], given: tuple[int, ...]
):
    labels = ("fedavg@cyclic", "fedavg", "central", "local", "local:steps=x2", "ditto")
    fitted = Budget(kind, examples).fit(studies(*labels))
    assert epochs(fitted) == dict(zip(labels, given, strict=True))
    assert {study.rounds for study in fitted.values()} == {2}


def test_an_arm_that_trains_longer_does_not_raise_the_budget_of_the_others():
    fitted = Budget("steps-in-a-row", EVEN).fit(studies("fedavg", "local", "local:steps=x4"))
    assert epochs(fitted) == {"fedavg": 1, "local": 1, "local:steps=x4": 4}


def test_the_terms_say_what_was_equal_and_what_the_others_then_are():
    budget = Budget("steps-in-a-row", UNEVEN)
    terms = budget.terms(budget.fit(studies("fedavg@cyclic", "fedavg", "central")))
    assert "local epochs that the budget gives each arm" in terms[0]
    assert terms[-4:] == [
        "equal budget: steps in a row of the tested model, as near to the deepest arm's as whole "
        "local epochs come",
        "FedAvg over cyclic: 1 local epoch a round; 10 local steps at the hospital with the most, "
        "34 steps in a row, wall-clock of 34 steps",
        "FedAvg: 3 local epochs a round; 30 local steps at the hospital with the most, 30 steps in "
        "a row, wall-clock of 30 steps",
        "Centralised: 1 local epoch a round; 34 local steps on all data, 34 steps in a row, "
        "wall-clock of 34 steps",
    ]
    assert not any("differs in" in term for term in terms)


def test_a_turn_of_a_length_of_its_own_fits_no_budget_but_local_steps():
    made = studies("fedavg@cyclic:topology.length=3", "fedavg")
    with pytest.raises(
        BadStudy, match=r"its turns are topology.length = 3, so --budget wall-clock"
    ):
        Budget("wall-clock", EVEN).fit(made)
    equal = Budget("local-steps", EVEN)
    assert any("its steps are not counted here" in term for term in equal.terms(equal.fit(made)))


def test_an_arm_alone_is_trained_longer_by_a_word_and_stays_on_equal_terms_otherwise():
    made = studies("fedavg", "local", "local:steps=x4")
    check_equal(made)
    longer = next(arm for arm in made if arm.times == 4)
    assert longer.name == "local-steps-x4"
    assert longer.title(made[longer]) == "Local only (plain network, 4 times the steps)"
    assert made[longer].training.epochs == 4
    terms = Budget().terms(made)
    assert terms[1:] == [
        "Local only (plain network, 4 times the steps): it trains longer than the others, as a "
        "hospital alone may"
    ]
    with pytest.raises(BadStudy, match=r"differs from the first arm in training\.epochs"):
        check_equal(studies("fedavg", "local:training.epochs=2:steps=x4"))


def test_only_an_arm_alone_is_trained_longer_by_a_word():
    with pytest.raises(BadStudy, match="steps=x2 is for arms that train alone; to give all arms"):
        studies("fedavg:steps=x2")


def test_derived_arms_are_told_from_those_that_are_trained():
    trained, derived = read_arms(["local", "fedavg", "alone", "ensemble:local"])
    assert [arm.label for arm in trained] == ["local", "fedavg"]
    assert [arm.name for arm in derived] == ["alone", "ensemble-local"]
    with pytest.raises(BadStudy, match="arm 'alone' is derived from arms that are trained alone"):
        read_arms(["alone"])
