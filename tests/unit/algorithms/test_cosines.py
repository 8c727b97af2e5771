"""Cosines between updates: by hand, at the ends of their range, and where there are none."""

import numpy as np
import pytest
import torch
from torch import Tensor, tensor

from grandrounds.algorithms.cosines import update_cosines
from grandrounds.core.messages import Reply

START = {"a.weight": tensor([1.0, -2.0, 0.5]), "b.weight": tensor([[3.0], [4.0]])}
GROUPS = {
    "a": frozenset({"a.weight"}),
    "b": frozenset({"b.weight"}),
    "all": frozenset(START),
}


def reply(site: str, **moves: list[float]) -> Reply:
    """What a site sends that moved these layers so."""
    weights: dict[str, Tensor] = {}
    for layer, move in moves.items():
        start = START[f"{layer}.weight"]
        weights[f"{layer}.weight"] = start + tensor(move).reshape(start.shape)
    return Reply(site=site, round=1, weights=weights)


def test_equal_updates_have_1_opposite_ones_minus_1_and_those_at_right_angles_0():
    replies = [
        reply("alder", a=[0.25, 0.5, 0.0], b=[0.125, 0.0]),
        reply("birch", a=[0.25, 0.5, 0.0], b=[-0.125, 0.0]),
        reply("cedar", a=[-1.0, 0.5, 0.0], b=[0.0, 2.0]),
    ]
    found = update_cosines(START, replies, GROUPS)
    assert found["a"] == {"alder": {"birch": 1.0, "cedar": 0.0}, "birch": {"cedar": 0.0}}
    assert found["b"] == {"alder": {"birch": -1.0, "cedar": 0.0}, "birch": {"cedar": 0.0}}


def test_a_cosine_is_that_of_all_tensors_of_a_group_as_one_vector():
    generator = torch.Generator().manual_seed(3)
    start = {n: torch.randn(t.shape, generator=generator) for n, t in START.items()}
    sent = [
        {n: t + 1e-3 * torch.randn(t.shape, generator=generator) for n, t in start.items()}
        for _ in range(2)
    ]
    replies = [Reply(site=s, round=1, weights=w) for s, w in zip("xy", sent, strict=True)]
    first, second = (
        np.concatenate([(w[n].double() - start[n].double()).numpy().ravel() for n in start])
        for w in sent
    )
    by_hand = first @ second / np.linalg.norm(first) / np.linalg.norm(second)
    assert update_cosines(start, replies, GROUPS)["all"]["x"]["y"] == pytest.approx(by_hand, 1e-14)


def test_a_pair_is_compared_over_the_tensors_that_both_use():
    replies = [
        reply("alder", a=[1.0, 0.0, 0.0], b=[8.0, 8.0]),
        reply("birch", a=[1.0, 0.0, 0.0]),
        reply("cedar", b=[8.0, 8.0]),
    ]
    found = update_cosines(START, replies, GROUPS)
    assert found["all"] == {"alder": {"birch": 1.0, "cedar": 1.0}}  # birch and cedar share none
    assert found["a"] == {"alder": {"birch": 1.0}}


def test_a_site_that_moved_nothing_has_no_angle():
    found = update_cosines(
        START, [reply("alder", a=[0.0] * 3), reply("birch", a=[1.0] * 3)], GROUPS
    )
    assert found == {"a": {}, "b": {}, "all": {}}


def test_a_small_update_of_large_weights_keeps_its_direction_in_float64():
    far = {"a.weight": tensor([2.0**20] * 2, dtype=torch.float64)}
    moves = ([2.0**-30, 0.0], [2.0**-30, 2.0**-30])
    replies = [
        Reply(site=s, round=1, weights={"a.weight": far["a.weight"] + tensor(m).double()})
        for s, m in zip("xy", moves, strict=True)
    ]
    found = update_cosines(far, replies, {"a": frozenset({"a.weight"})})
    assert found["a"]["x"]["y"] == pytest.approx(0.5**0.5, 1e-15)


def test_the_number_of_threads_leaves_no_trace_in_the_bits():
    start = {"w": torch.zeros(100_001)}
    generator = torch.Generator().manual_seed(1)
    replies = [
        Reply(site=s, round=1, weights={"w": torch.randn(100_001, generator=generator)})
        for s in "xyz"
    ]
    threads = torch.get_num_threads()
    found = []
    for number in (1, 2):
        torch.set_num_threads(number)
        found.append(update_cosines(start, replies, {"w": frozenset({"w"})}))
    torch.set_num_threads(threads)
    assert found[0] == found[1]
    assert abs(found[0]["w"]["x"]["y"]) < 0.02
