"""The house keeps to its own kit: every method and every task, with each exception's reason."""

import pytest

from grandrounds.algorithms import METHODS
from grandrounds.study.file import example, read_study
from grandrounds.tasks import Classification, Segmentation, TaskOptions
from grandrounds.testing import check_method, check_task
from grandrounds.testing.methods import METHOD_RELATIONS
from grandrounds.testing.tasks import TASK_RELATIONS
from tests.helpers.grids import with_representatives

pytestmark = pytest.mark.slow

POOLED = ("central", "pgan", "pix2pix")  # one model on all data: nothing travels
NOT_LOCAL = {"apfl": "what it is scored with is a mixture, whose gradients are scaled"}
ALONE = "with nothing shared it is local training"
BETWEEN_SITES = {
    "two processes = one",
    "the order of sites changes no update",
    "a swarm = the star",
    "what leaves and comes is what the policy says",
    ALONE,
}
WITHOUT: dict[str, set[str]] = {  # what does not apply to a method
    **dict.fromkeys(POOLED, BETWEEN_SITES),
    "local": {"a swarm = the star"},
    **{word: {ALONE} for word in NOT_LOCAL},
}
REPRESENTATIVES = ("fedavg", "scaffold", "ditto", "apfl", "pflsynth", "fedmri", "local", "central")
TASKS_HERE: dict[str, TaskOptions | str] = {
    "synthesis": "synthesis",
    "segmentation": "segmentation",
    "classification": "classification",
    "segmentation with batch norm": Segmentation(channels=(4, 8), norm="batch"),
    "segmentation of volumes": Segmentation(channels=(4, 8), dims=3, patch=(4, 16, 16)),
    "classification with dropout": Classification(width=4, blocks=2, norm="batch", dropout=0.5),
}


@pytest.mark.parametrize("word", with_representatives(METHODS, REPRESENTATIVES))
def test_a_method_of_the_house_keeps_to_every_relation(word: str):
    relations = check_method(word, alone=word not in NOT_LOCAL)
    assert [each.name for each in relations] == [each.name for each in METHOD_RELATIONS]
    assert {each.name for each in relations if each.reason} == WITHOUT.get(word, set())


@pytest.mark.parametrize("task", with_representatives(TASKS_HERE, ("synthesis", "classification")))
def test_a_task_of_the_house_keeps_to_every_relation(task: str):
    relations = check_task(TASKS_HERE[task])
    assert [each.name for each in relations] == [each.name for each in TASK_RELATIONS]
    assert not [each for each in relations if each.reason]


def test_batch_norms_that_stay_keep_to_every_relation():
    """On a network that has some, as the tiny study's has not."""
    study = read_study(example("tiny"), ["method.kind=fedbn", "task.norm=batch", "rounds=2"])
    assert not [each for each in check_method("fedbn", study) if each.reason]
