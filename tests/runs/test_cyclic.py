"""A cycle: the order of the turns, their length, what travels, what is watched."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from grandrounds.algorithms.cyclic import Cyclic
from grandrounds.algorithms.topology import RoundResult
from grandrounds.core.events import SiteMonitored
from grandrounds.core.journal import read_journal
from grandrounds.core.messages import Evaluate, Train
from grandrounds.core.weights import OPTIMIZER, num_bytes
from grandrounds.runs.loop import run_study as run
from grandrounds.site.model_state import SiteStore, optimizer_tensors
from grandrounds.study.study import Study
from tests.helpers.federation import (
    Spy,
    built,
    differing,
    part_of,
    played,
    private_weights,
    rows,
    tiny,
)

pytestmark = pytest.mark.slow

NAMES = ("alder", "birch", "cedar")


def cycle(*overrides: str, sites: int = 3) -> Study:
    return tiny("topology.kind=cyclic", *overrides, sites=sites)


def unequal(study: Study) -> Study:
    """Sites of 4, 8 and 12 training slices."""
    sites = (replace(site, slices=2 * n) for n, site in enumerate(study.site, start=1))
    return replace(study, site=tuple(sites))


@pytest.mark.parametrize(
    ("order", "expected"),
    [("fixed", [NAMES, NAMES, NAMES]), ("alternate", [NAMES, NAMES[::-1], NAMES])],
)
def test_the_turns_follow_the_order(order: str, expected: list[tuple[str, ...]]):
    topology = cycle(f"topology.order={order}").build_topology()
    assert isinstance(topology, Cyclic)
    assert [topology.order_of(round, NAMES) for round in (1, 2, 3)] == expected


def test_a_shuffled_order_is_of_the_seed_and_the_round():
    one, same, other = (Cyclic("shuffled", seed=seed) for seed in (1, 1, 2))
    orders = [one.order_of(round, NAMES) for round in range(1, 101)]
    assert orders == [same.order_of(round, NAMES) for round in range(1, 101)]
    assert orders != [other.order_of(round, NAMES) for round in range(1, 101)]
    assert {tuple(sorted(order)) for order in orders} == {NAMES}
    assert len(set(orders)) == 6


def test_the_studys_seed_shuffles():
    assert cycle("seed=9", "topology.order=shuffled").build_topology() == Cyclic("shuffled", seed=9)


def spied(study: Study, folder: Path, rounds: int = 1) -> tuple[Spy, list[RoundResult]]:
    federation = built(study, folder)
    spy, state = Spy(federation.sites), federation.start
    outcomes: list[RoundResult] = []
    for _ in range(rounds):
        outcomes.append(federation.topology.round(state, spy, federation.method))
        state = outcomes[-1].state
    return spy, outcomes


def test_each_site_starts_where_the_one_before_ended(tmp_path: Path):
    spy, outcomes = spied(cycle("topology.order=alternate"), tmp_path, rounds=2)
    turns = [(name, request) for name, request in spy.asked if isinstance(request, Train)]
    assert [name for name, _ in turns] == [*NAMES, *NAMES[::-1]]
    left = [reply for reply in spy.replies if reply.steps]
    for (_, order), before in zip(turns[1:], left[:-1], strict=True):
        assert not differing(before.weights, order.weights)
    assert not differing(left[-1].weights, outcomes[-1].state.weights)
    assert [reply.site for reply in outcomes[-1].replies] == list(NAMES)


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ((), [1, 2, 3]),
        (("topology.length=2",), [2, 4, 6]),
        (("training.epochs=3",), [3, 6, 9]),
        (("topology.turn=steps", "topology.length=5"), [5, 5, 5]),
        (("topology.turn=steps", "topology.length=5", "topology.proportional=true"), [3, 5, 8]),
        (("topology.turn=steps", "topology.length=1", "topology.proportional=true"), [1, 1, 2]),
    ],
)
def test_a_turn_is_as_long_as_the_study_says(
    tmp_path: Path, options: tuple[str, ...], steps: list[int]
):
    """Slices 4, 8, 12 in batches of 4; 5 x 4/8 = 2.5 and 1 x 12/8 = 1.5 round up; never 0."""
    study = unequal(cycle("topology.monitor=0", *options))
    [outcome] = played(built(study, tmp_path), 1)
    assert [reply.steps for reply in outcome.replies] == steps


def counted(tensors: dict[str, torch.Tensor], part: str) -> set[float]:
    """How many steps Adam counts for the parameters of a part."""
    names = [n for n in tensors if n.startswith(f"{OPTIMIZER}{part}") and n.endswith("/step")]
    return {tensors[name].item() for name in names}


def test_an_optimiser_that_travels_counts_every_sites_steps(tmp_path: Path):
    """Two steps at each of three sites, in two cycles; what is private counts its own site's."""
    study = cycle("topology.optimizer=travels", "method.kind=fedper", "topology.monitor=0")
    federation = built(study, tmp_path)
    state = played(federation, 2)[-1].state
    assert counted(state.memory, "generator/") == {12.0}
    private = SiteStore(federation.sites.sites[0].folder).private.load(2)[0]
    own = optimizer_tensors(private)
    assert set(state.memory).isdisjoint(state.weights)
    assert counted({n: t for n, t in own.items() if n not in state.memory}, "") == {4.0}


def test_an_optimiser_that_stays_counts_its_own_sites_steps(tmp_path: Path):
    federation = built(cycle("topology.monitor=0"), tmp_path)
    state = played(federation, 2)[-1].state
    assert state.memory == {}
    for site in federation.sites.sites:
        assert counted(SiteStore(site.folder).private.load(2)[0], "") == {4.0}


def test_an_optimiser_that_travels_makes_another_model(tmp_path: Path):
    found = [
        played(built(cycle(f"topology.optimizer={word}"), tmp_path / word), 1)[-1].state
        for word in ("stays", "travels")
    ]
    assert found[0].fingerprint != found[1].fingerprint


def test_private_parts_stay(tmp_path: Path):
    federation = built(cycle(), tmp_path)
    spy, state = Spy(federation.sites), federation.start
    for _ in range(2):
        state = federation.topology.round(state, spy, federation.method).state
    travelled = {n for _, request in spy.asked for n in getattr(request, "weights", {})}
    travelled |= {name for reply in spy.replies for name in reply.weights}
    assert travelled == set(federation.start.weights)
    private = [private_weights(site, 2) for site in federation.sites.sites]
    assert not travelled & {name for weights in private for name in weights}
    assert "generator.encoder" in {part_of(n) for n in differing(private[0], private[1])}


def watched(folder: Path) -> list[SiteMonitored]:
    journal = read_journal(folder / "journal.jsonl")
    return [event for _, event in journal if isinstance(event, SiteMonitored)]


def test_a_watched_cycle_gives_a_full_matrix(tmp_path: Path):
    study = cycle("rounds=2", "topology.order=alternate")
    run(study, tmp_path)
    found = [(event.round, event.after, event.site) for event in watched(tmp_path)]
    assert found == [
        (round, after, site)
        for round, turns in ((1, NAMES), (2, NAMES[::-1]))
        for after in turns
        for site in NAMES
    ]
    table = rows(tmp_path / "forgetting.csv")
    assert list(table[0]) == ["round", "after", "site", "score", "cases"]
    assert [(int(row["round"]), row["after"], row["site"]) for row in table] == found
    assert [float(row["score"]) for row in table] == [e.score for e in watched(tmp_path)]


def test_what_is_watched_is_the_travelling_model(tmp_path: Path):
    """After the last turn it is the model of the round, and its scores are the validation's."""
    run(cycle("rounds=1"), tmp_path)
    last = {e.site: e.score for e in watched(tmp_path) if e.after == "cedar"}
    first = {e.site: e.score for e in watched(tmp_path) if e.after == "alder"}
    table = {row["site"]: float(row["validation"]) for row in rows(tmp_path / "rounds.csv")}
    assert last == table
    assert all(first[name] != last[name] for name in NAMES)


@pytest.mark.parametrize(("every", "rounds"), [(0, set[int]()), (2, {2})])
def test_a_cycle_is_watched_as_often_as_the_study_says(
    tmp_path: Path, every: int, rounds: set[int]
):
    spy, _ = spied(cycle(f"topology.monitor={every}", sites=2), tmp_path, rounds=3)
    asked = [request for _, request in spy.asked if isinstance(request, Evaluate)]
    assert {request.round for request in asked} == rounds


def test_a_cycle_that_nobody_watched_has_no_table(tmp_path: Path):
    run(cycle("rounds=1", "topology.monitor=0", sites=2), tmp_path)
    assert not (tmp_path / "forgetting.csv").exists()


def test_bytes_are_those_of_turns_monitoring_and_validation(tmp_path: Path):
    study = cycle("rounds=1")
    model = num_bytes(built(study, tmp_path / "start").start.weights)
    run(study, tmp_path / "run")
    for row in rows(tmp_path / "run" / "rounds.csv"):
        assert int(row["bytes_up"]) == model
        assert int(row["bytes_down"]) == (1 + 3 + 1) * model
