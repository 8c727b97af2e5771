"""Guards touch an update in order, and are undone in the reverse order."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Size

from grandrounds.core.messages import Reply
from grandrounds.core.state import State
from grandrounds.core.weights import Weights
from grandrounds.privacy.guard import Demand, Departure, Guards, Layout, bytes_of, layout_of

UPDATE: Weights = {"w": torch.tensor([1.0, 2.0])}


@dataclass(frozen=True)
class Marked:
    """Appends a number to a tensor, and keeps how often it did so."""

    number: float
    word = "marked"

    def told(self, sites: int) -> str:
        return f"marked at {sites}"

    def needs(self) -> Mapping[Demand, str]:
        return {}

    def protect(self, departure: Departure) -> Departure:
        name = f"{self.number:g}/times"
        times = departure.kept.get(name, torch.zeros(1)) + 1
        longer = torch.cat([departure.update["w"], torch.tensor([self.number])])
        return replace(departure, update={"w": longer}, kept=departure.kept | {name: times})

    def admit(self, replies: Sequence[Reply], state: State) -> Sequence[Reply]:
        assert all(reply.weights["w"][-1] == self.number for reply in replies)
        return [replace(reply, weights={"w": reply.weights["w"][:-1]}) for reply in replies]

    def layout(self, tensors: Layout) -> Layout:
        return {name: (Size((size.numel() + 1,)), kind) for name, (size, kind) in tensors.items()}

    def problem(self, weights: Weights, tensors: Layout) -> str:
        return f"{self.number:g} saw {tuple(tensors['w'][0])} before it"


GUARDS = Guards((Marked(7), Marked(8)), {"alder": 1, "birch": 3})
LEAVES = Departure("alder", 1, ("alder",), 4, UPDATE, UPDATE)


def test_guards_are_undone_in_reverse_and_each_keeps_its_own():
    sent = GUARDS.protect(GUARDS.protect(LEAVES))
    assert sent.update["w"].tolist() == [1, 2, 7, 8, 7, 8]
    assert {name: tensor.item() for name, tensor in sent.kept.items()} == {
        "7/times": 2,
        "8/times": 2,
    }
    once = GUARDS.protect(LEAVES)
    [reply] = GUARDS.admit([Reply(site="alder", round=1, weights=once.update)], State(UPDATE))
    assert reply.weights["w"].tolist() == [1, 2]


def test_the_last_guard_looks_at_what_came_and_knows_what_it_was_given():
    layout = layout_of(UPDATE)
    assert GUARDS.layout(layout) == {"w": (Size((4,)), torch.float32)}
    assert bytes_of(GUARDS.layout(layout)) == 16
    assert GUARDS.problem({}, layout) == "8 saw (3,) before it"


def test_no_guards_change_nothing():
    assert not Guards()
    assert Guards().protect(LEAVES) is LEAVES
    assert Guards().problem({}, {}) == ""


def test_a_site_is_in_the_roster_from_its_first_round_on():
    assert [GUARDS.roster(round) for round in (0, 2, 3)] == [
        ("alder",), ("alder",), ("alder", "birch"),
    ]  # fmt: skip
