"""What a site refuses although it is signed: what the accepted study does not say."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from grandrounds.algorithms.cyclic import Cyclic
from grandrounds.algorithms.policy import TensorPolicy
from grandrounds.algorithms.sharing import Sharing
from grandrounds.algorithms.split import Split
from grandrounds.algorithms.star import Star
from grandrounds.algorithms.swarm import Swarm
from grandrounds.algorithms.topology import Topology
from grandrounds.core.messages import (
    Adopt,
    Backward,
    Describe,
    Evaluate,
    Finish,
    Forward,
    Merge,
    Reply,
    Request,
    Survey,
    Tail,
    Train,
    Tune,
)
from grandrounds.core.weights import Weights
from grandrounds.site.guard import Refused, StudyGuard

ROSTER = ("alder", "birch")
SHAPES = {"body.weight": (torch.Size((2, 3)), torch.float32)}
MODEL: Weights = {"body.weight": torch.ones(2, 3)}
CONTROL: Weights = {"control/body.weight": torch.ones(2, 3)}
MOMENT: Weights = {"optimizer//body.weight/exp_avg": torch.ones(2, 3)}
SCAFFOLD = Sharing(sends=("control",), receives=("control",))
FEDMRI = Sharing(receives=("upload",), shows_updates=True)


def guard(
    topology: Topology | None = None,
    sharing: Sharing | None = None,
    held: tuple[int, ...] = (1, 2),
    *,
    rounds: int = 5,
    fine_tune: int = 0,
    broadcasts: bool = True,
    joins: int = 1,
) -> StudyGuard:
    """The guard of alder, which has trained two of five rounds."""
    topology = topology or Star()
    policy = TensorPolicy(
        SHAPES,
        frozenset({"head.weight"}),
        sharing or Sharing(),
        topology.moments_travel,
        ROSTER,
    )
    peers: dict[str, TensorPolicy] = dict.fromkeys(("", *ROSTER), policy)
    return StudyGuard(
        rounds, fine_tune, broadcasts, ROSTER, topology, policy, peers, lambda: held, joins
    )


def train(**fields: object) -> Train:
    return replace(Train(round=3, since=2, weights=MODEL), **fields)  # pyright: ignore[reportArgumentType]


def wrong(**tensors: Tensor) -> Weights:
    return MODEL | {name.replace("__", "/").replace("_", "."): t for name, t in tensors.items()}


SCORE = Evaluate(round=2, since=2, split="validation", weights=MODEL)
TEST = replace(SCORE, split="test", cases=True)
OPEN = Forward(round=3, since=2, weights=MODEL)

ASKED: dict[str, tuple[StudyGuard, Request, tuple[str, ...]]] = {
    "the next round": (guard(), train(), ()),
    "the last round again": (guard(), train(round=2, since=1), ()),
    "the one before it again, as a run that lost a round resumes": (
        guard(),
        train(round=1, since=0),
        (),
    ),
    "the first round": (guard(held=()), train(round=1, since=0), ()),
    "the first round, every site from its own": (
        guard(held=(), broadcasts=False),
        train(round=1, since=0, weights={}),
        (),
    ),
    "a later round, where a site may miss some": (
        guard(Star(require=1)),
        train(round=5, since=2),
        (),
    ),
    "its first round, where it joins later": (guard(held=(), joins=4), train(round=4, since=0), ()),
    "its first round again": (guard(held=(4,), joins=4), train(round=4, since=0), ()),
    "its second round": (guard(held=(4,), joins=4), train(round=5, since=4), ()),
    "with control variates": (guard(sharing=SCAFFOLD), train(weights=MODEL | CONTROL), ()),
    "with what others sent": (
        guard(sharing=FEDMRI),
        train(weights=MODEL | {"upload/birch/body.weight": torch.ones(2, 3)}),
        (),
    ),
    "with moments that travel": (
        guard(Cyclic(optimizer="travels")),
        train(weights=MODEL | MOMENT),
        (),
    ),
    "a turn in steps": (guard(Cyclic(turn="steps", length=4)), train(steps=4), ()),
    "a turn in proportion": (
        guard(Cyclic(turn="steps", length=4, proportional=True)),
        train(steps=7),
        (),
    ),
    "a turn in epochs": (guard(Cyclic(length=2)), train(epochs=2), ()),
    "in a swarm": (guard(Swarm()), train(weights={}), ("birch",)),
    "merging": (guard(Swarm()), Merge(round=2, since=1, peers=ROSTER), ROSTER),
    "adopting": (guard(Swarm()), Adopt(round=2, leader="birch", keep=1), ()),
    "validation": (guard(), SCORE, ()),
    "the test": (guard(), TEST, ()),
    "the monitor of a cycle": (guard(Cyclic()), replace(SCORE, round=3, after="birch"), ()),
    "fine-tuning": (guard(fine_tune=2), Tune(round=2, since=2, epochs=2, weights=MODEL), ()),
    "the test of what was tuned": (guard(fine_tune=2), replace(TEST, tuned=True), ()),
    "a description": (guard(), Describe(), ()),
    "the end": (guard(), Finish(round=2, best=1), ()),
    "a turn at a cut": (guard(Split(cut="body")), OPEN, ()),
    "a turn that scores": (guard(Split(cut="body")), replace(OPEN, round=2, split="test"), ()),
}

REFUSED: dict[str, tuple[StudyGuard, Request, tuple[str, ...]]] = {
    # whose turn it is
    "a negative round": (guard(), train(round=-1, since=-2), ()),
    "round 0": (guard(), train(round=0, since=-1), ()),
    "two rounds back": (guard(held=(1, 2, 3)), train(round=1, since=0), ()),
    "a round ahead": (guard(), train(round=4, since=3), ()),
    "a round beyond the study": (guard(held=(4, 5)), train(round=6, since=5), ()),
    "from another round than the last": (guard(), train(since=1), ()),
    "from a round that is not held": (guard(Star(require=1)), train(round=5, since=3), ()),
    "from a round to come": (guard(Star(require=1)), train(round=3, since=4), ()),
    "from a negative round": (guard(Star(require=1)), train(since=-1), ()),
    "from the first weights again": (guard(), train(since=0), ()),
    "a round before it joins": (guard(held=(), joins=4), train(round=3, since=0), ()),
    "round 1 before it joins": (guard(held=(), joins=4), train(round=1, since=0), ()),
    "a round after the one it joins in": (guard(held=(), joins=3), train(round=4, since=0), ()),
    "a first round that follows another": (guard(held=(2,), joins=3), train(round=3, since=2), ()),
    "a round before it joins, under a quorum": (
        guard(Star(require=1), held=(), joins=4),
        train(round=3, since=0),
        (),
    ),
    "keeping a round to come": (guard(), train(keep=3), ()),
    "keeping a negative round": (guard(), train(keep=-1), ()),
    # how long
    "more epochs": (guard(), train(epochs=50), ()),
    "a single batch": (guard(), train(steps=1), ()),
    "a single batch of a cycle": (guard(Cyclic()), train(steps=1), ()),
    "negative steps": (guard(Cyclic(turn="steps", length=4)), train(steps=-4), ()),
    "more steps than all examples ask for": (
        guard(Cyclic(turn="steps", length=4, proportional=True)),
        train(steps=9),
        (),
    ),
    "no step of a proportional turn": (
        guard(Cyclic(turn="steps", length=4, proportional=True)),
        train(steps=0),
        (),
    ),
    "epochs and steps": (guard(Cyclic(turn="steps", length=4)), train(steps=4, epochs=1), ()),
    # where it goes
    "an update for another site": (guard(), train(), ("birch",)),
    "an update for a stranger": (guard(Swarm()), train(weights={}), ("mallory",)),
    "an update for all": (guard(Swarm()), train(weights={}), ROSTER),
    "an update for nobody": (guard(Swarm()), train(weights={}), ()),
    "a score for another site": (guard(Swarm()), replace(SCORE, weights={}), ("birch",)),
    "a merged model for one": (
        guard(Swarm()),
        Merge(round=2, since=1, peers=ROSTER),
        ("birch",),
    ),
    "a merge of some": (guard(Swarm()), Merge(round=2, since=1, peers=("birch",)), ROSTER),
    # what is never asked
    "a merge in a star": (guard(), Merge(round=2, since=1, peers=ROSTER), ()),
    "an adoption in a star": (guard(), Adopt(round=2, leader="birch"), ()),
    "a turn at a cut in a star": (guard(), OPEN, ()),
    "a whole round at a cut": (guard(Split(cut="body")), train(), ()),
    "tuning that the study has not": (guard(), Tune(round=2, since=2, epochs=1), ()),
    "longer tuning": (guard(fine_tune=1), Tune(round=2, since=2, epochs=9, weights=MODEL), ()),
    "a merge of a round to come": (guard(Swarm()), Merge(round=3, since=2, peers=ROSTER), ROSTER),
    "a merge onto another round": (guard(Swarm()), Merge(round=2, since=0, peers=ROSTER), ROSTER),
    "an adoption of an older round": (guard(Swarm()), Adopt(round=1, leader="birch"), ()),
    "an adoption from a stranger": (guard(Swarm()), Adopt(round=2, leader="mallory"), ()),
    "an adoption that keeps a round to come": (
        guard(Swarm()),
        Adopt(round=2, leader="birch", keep=7),
        (),
    ),
    "a later step without a turn": (guard(Split(cut="body")), replace(OPEN, step=1), ()),
    "a tail without a turn": (guard(Split(cut="body")), Tail(round=3, step=0), ()),
    "a step back without a turn": (guard(Split(cut="body")), Backward(round=3, step=0), ()),
    "the end of a round that is not held": (guard(), Finish(round=4, best=1), ()),
    "a best round that is not held": (guard(), Finish(round=2, best=4), ()),
    # what is scored
    "training cases": (guard(), replace(SCORE, split="train"), ()),
    "training cases one by one": (guard(), replace(TEST, split="train"), ()),
    "all cases": (guard(), replace(SCORE, split=""), ()),
    "validation cases one by one": (guard(), replace(SCORE, cases=True), ()),
    "training cases through a cut": (
        guard(Split(cut="body")),
        replace(SCORE, split="train", weights={}),
        (),
    ),
    "a turn with validation cases one by one": (
        guard(Split(cut="body")),
        replace(OPEN, round=2, split="validation", cases=True),
        (),
    ),
    "what was tuned, where nothing is": (guard(), replace(TEST, tuned=True), ()),
    "a score of a round that is not held": (guard(), replace(SCORE, round=4, since=4), ()),
    "a score after the turn of a stranger": (guard(Cyclic()), replace(SCORE, after="mallory"), ()),
    "a score with sets": (guard(sharing=SCAFFOLD), replace(SCORE, weights=MODEL | CONTROL), ()),
    # what comes
    "no model": (guard(), train(weights={}), ()),
    "a model in a swarm": (guard(Swarm()), train(), ("birch",)),
    "a model where every site has its own": (
        guard(held=(), broadcasts=False),
        train(round=1, since=0),
        (),
    ),
    "a private tensor": (guard(), train(weights=wrong(head_weight=torch.ones(2))), ()),
    "a tensor of no network": (guard(), train(weights=wrong(tail_weight=torch.ones(2))), ()),
    "another shape": (guard(), train(weights=wrong(body_weight=torch.ones(3, 2))), ()),
    "another type": (guard(), train(weights=wrong(body_weight=torch.ones(2, 3).double())), ()),
    "integers": (guard(), train(weights=wrong(body_weight=torch.ones(2, 3).long())), ()),
    "NaN": (guard(), train(weights=wrong(body_weight=torch.full((2, 3), torch.nan))), ()),
    "an infinity": (guard(), train(weights=wrong(body_weight=torch.full((2, 3), torch.inf))), ()),
    "moments that stay": (guard(), train(weights=MODEL | MOMENT), ()),
    "moments of a private tensor": (
        guard(Cyclic(optimizer="travels")),
        train(weights=MODEL | {"optimizer//head.weight/exp_avg": torch.ones(2)}),
        (),
    ),
    "a set that no method has": (guard(), train(weights=MODEL | CONTROL), ()),
    "a set with a private tensor": (
        guard(sharing=SCAFFOLD),
        train(weights=MODEL | {"control/head.weight": torch.ones(2)}),
        (),
    ),
    "a set of another shape": (
        guard(sharing=SCAFFOLD),
        train(weights=MODEL | {"control/body.weight": torch.ones(1)}),
        (),
    ),
    "a set without end": (
        guard(sharing=SCAFFOLD),
        train(weights=MODEL | {"control/more": torch.ones(100_000)}),
        (),
    ),
    "what a stranger sent": (
        guard(sharing=FEDMRI),
        train(weights=MODEL | {"upload/mallory/body.weight": torch.ones(2, 3)}),
        (),
    ),
    "the private state of a site": (
        guard(),
        train(weights=MODEL | {"personal/body.weight": torch.ones(2, 3)}),
        (),
    ),
    "statistics": (guard(), Survey(), ()),
    "what a task remembers": (
        guard(),
        train(weights=MODEL | {"memory/pool": torch.ones(2, 3)}),
        (),
    ),
}


def test_a_request_that_is_refused_changes_nothing_of_what_may_be_asked_next():
    site = guard()
    with pytest.raises(Refused, match="fine-tunes no model"):
        site.check(replace(TEST, tuned=True))
    site.check(train())
    cut = guard(Split(cut="body"))
    cut.check(OPEN)
    with pytest.raises(Refused):
        cut.check(Tail(round=3, step=0, weights={"else": torch.ones(2)}))
    cut.check(Tail(round=3, step=0))


@pytest.mark.parametrize("name", ASKED)
def test_what_a_study_asks_is_answered(name: str):
    guarded, request, deliver_to = ASKED[name]
    guarded.check(request, deliver_to)


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_study_does_not_ask_is_refused(name: str):
    guarded, request, deliver_to = REFUSED[name]
    with pytest.raises(Refused) as refused:
        guarded.check(request, deliver_to)
    assert str(refused.value)


def test_there_are_enough_of_them():
    assert len(REFUSED) >= 60


# A turn at a cut is one line of steps.


def turning(*, split: str = "train") -> StudyGuard:
    guarded = guard(Split(cut="body"))
    round = 3 if split == "train" else 2
    guarded.check(replace(OPEN, round=round, split=split))
    return guarded


CROSSING: Weights = {"cut/output": torch.ones(2)}
TURN: tuple[Request, ...] = (
    Tail(round=3, step=0, weights=CROSSING),
    Backward(round=3, step=0, weights=CROSSING),
    Forward(round=3, since=2, step=1),
    Tail(round=3, step=1, weights=CROSSING),
    Backward(round=3, step=1, last=True, weights=CROSSING),
)


def test_a_turn_is_answered_step_by_step():
    guarded = turning()
    for request in TURN:
        guarded.check(request)


@pytest.mark.parametrize(
    "request_",
    [
        Tail(round=3, step=1, weights=CROSSING),
        Tail(round=2, step=0, weights=CROSSING),
        Tail(round=3, step=0, weights=MODEL),
        Tail(round=3, step=0, weights={"cut/output": torch.full((2,), torch.nan)}),
        Backward(round=3, step=4, weights=CROSSING),
        Backward(round=3, step=0, weights={"label/target": torch.ones(2)}),
        Forward(round=3, since=2, step=2),
        Forward(round=3, since=2, step=1, split="test"),
        Forward(round=3, since=2, step=1, weights=MODEL),
    ],
)
def test_a_step_out_of_line_is_refused(request_: Request):
    with pytest.raises(Refused):
        turning().check(request_)


def test_nothing_is_trained_in_a_turn_that_scores():
    with pytest.raises(Refused, match="nothing is trained in a turn that scores"):
        turning(split="test").check(Backward(round=2, step=0, weights=CROSSING))


def test_a_tail_is_run_once():
    guarded = turning()
    guarded.check(TURN[0])
    with pytest.raises(Refused, match="asked for twice"):
        guarded.check(TURN[0])


# What leaves, and what peers deliver.


@pytest.mark.parametrize(
    ("request_", "weights"),
    [
        (train(), MODEL | {"head.weight": torch.ones(2)}),
        (train(), MODEL | MOMENT),
        (train(), MODEL | CONTROL),
        (train(), {}),
        (SCORE, MODEL),
        (Describe(), MODEL),
        (Finish(round=2, best=1), {"head.weight": torch.ones(2)}),
        (OPEN, {"head.weight": torch.ones(2)}),
    ],
)
def test_what_the_study_does_not_send_stays(request_: Request, weights: Weights):
    with pytest.raises(Refused):
        guard().check_reply(request_, Reply(site="alder", round=3, weights=weights))


def test_what_the_study_sends_leaves():
    guard().check_reply(train(), Reply(site="alder", round=3, weights=MODEL))


def update(**fields: object) -> Reply:
    sent = Reply(site="birch", round=3, examples=2, weights=MODEL)
    return replace(sent, **fields)  # pyright: ignore[reportArgumentType]


MERGED: Weights = {"weights/body.weight": torch.ones(2, 3)}


def test_a_peer_delivers_its_update_and_a_leader_what_it_merged():
    guard(Swarm()).check_peer("birch", update())
    guard(Swarm()).check_peer("birch", update(merged=2, weights=MERGED))


def test_a_peer_that_repeats_the_round_before_delivers_that_to_who_has_not_yet_repeated_it():
    """Whether it counts is for the round that merges to say."""
    guard(Swarm()).check_peer("birch", update(round=1))


@pytest.mark.parametrize(
    ("sender", "sent", "topology"),
    [
        ("birch", update(), Star()),
        ("mallory", update(site="mallory"), Swarm()),
        ("birch", update(site="alder"), Swarm()),
        ("birch", update(round=0), Swarm()),
        ("birch", update(round=-3), Swarm()),
        ("birch", update(round=9), Swarm()),
        ("birch", update(weights={"head.weight": torch.ones(2)}), Swarm()),
        ("birch", update(weights={}), Swarm()),
        ("birch", update(weights=wrong(body_weight=torch.full((2, 3), torch.nan))), Swarm()),
        ("birch", update(merged=2), Swarm()),
        ("birch", update(merged=2, weights={"weights/head.weight": torch.ones(2)}), Swarm()),
        ("birch", update(merged=2, weights={}), Swarm()),
        (
            "birch",
            update(merged=2, weights=MERGED | {"memory/control/head.weight": torch.ones(2)}),
            Swarm(),
        ),
    ],
)
def test_what_no_peer_delivers_is_refused(sender: str, sent: Reply, topology: Topology):
    with pytest.raises(Refused):
        guard(topology).check_peer(sender, sent)
