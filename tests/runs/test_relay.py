"""A relay: its groups, its two ends (star and cycle), who is missed, who hands on to whom."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from grandrounds.algorithms.relay import Relay
from grandrounds.algorithms.topology import RoundLoad, RoundResult
from grandrounds.core.errors import BadStudy, RunFailed, SiteFailed
from grandrounds.core.events import SiteMissed
from grandrounds.core.journal import read_journal
from grandrounds.core.messages import Adopt, Evaluate, Merge, Request, Train
from grandrounds.core.weights import digest
from grandrounds.runs.loop import run_study as run
from grandrounds.study.study import Study
from tests.helpers.federation import (
    Spy,
    assert_trained,
    built,
    digests,
    fail_when,
    model_of,
    rows,
    stopped,
    tiny,
)

NAMES = ("alder", "birch", "cedar", "elder")
ROUNDS = 2


def relay(groups: int, *overrides: str, method: str = "fedavg", sites: int = 4) -> Study:
    options = (f"method.kind={method}", "topology.kind=relay", f"topology.groups={groups}")
    return tiny(*options, *overrides, sites=sites)


@pytest.mark.parametrize(
    ("groups", "sizes"),
    [(1, [7]), (2, [3, 4]), (3, [2, 2, 3]), (5, [1, 1, 2, 1, 2]), (7, [1] * 7)],
)
def test_every_site_trains_once_a_round_in_groups_as_even_as_can_be(groups: int, sizes: list[int]):
    roster = tuple("abcdefg")
    for round in range(1, 30):
        found = Relay(groups, seed=3).groups_of(round, roster)
        assert [len(group) for group in found] == sizes
        assert sorted(name for group in found for name in group) == list(roster)
        assert all(list(group) == sorted(group) for group in found)


def test_the_groups_are_of_the_studys_seed_and_the_round():
    topology = relay(2, "seed=9").build_topology()
    assert isinstance(topology, Relay)
    assert topology == Relay(2, seed=9)
    found = [topology.groups_of(round, NAMES) for round in range(1, 201)]
    assert found == [Relay(2, seed=9).groups_of(round, NAMES) for round in range(1, 201)]
    assert found != [Relay(2, seed=8).groups_of(round, NAMES) for round in range(1, 201)]
    assert set(Counter(found)) == {
        (first, tuple(name for name in NAMES if name not in first))
        for first in [(a, b) for a in NAMES for b in NAMES if a < b]
    }


def outcomes(study: Study, folder: Path) -> tuple[Spy, list[RoundResult]]:
    federation = built(study, folder)
    spy, state, found = Spy(federation.sites), federation.start, list[RoundResult]()
    for _ in range(ROUNDS):
        found.append(federation.topology.round(state, spy, federation.method))
        state = found[-1].state
    for site in federation.sites.sites:
        shared = federation.topology.model_at_sites
        assert shared or assert_trained(site.first_weights(), model_of(site, state)) is None
    return spy, found


def bits(study: Study, folder: Path) -> list[tuple[str, tuple[str, ...]]]:
    """Each round's digests: of the shared model, and of what every site keeps."""
    _, found = outcomes(study, folder)
    return [(o.state.fingerprint, tuple(reply.digest for reply in o.replies)) for o in found]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fedavg", "pflsynth", "fedopt", "fedprox"])
def test_a_relay_of_one_group_is_the_star_to_the_bit(tmp_path: Path, method: str):
    one = bits(relay(1, method=method), tmp_path / "relay")
    assert one == bits(tiny(f"method.kind={method}"), tmp_path / "star")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fedavg", "pflsynth", "fedrep"])
def test_a_relay_of_groups_of_one_is_the_shuffled_cycle_to_the_bit(tmp_path: Path, method: str):
    cycle = ("topology.kind=cyclic", "topology.order=shuffled", "topology.monitor=0")
    one = bits(relay(4, method=method), tmp_path / "relay")
    assert one == bits(tiny(f"method.kind={method}", *cycle), tmp_path / "cycle")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("groups", "method"), [(2, "fedavg"), (4, "pflsynth"), (3, "fedbn"), (2, "fedgan")]
)
def test_from_leader_to_leader_the_bits_are_the_coordinators(
    tmp_path: Path, groups: int, method: str
):
    among = bits(relay(groups, "topology.handover=sites", method=method), tmp_path / "sites")
    assert among == bits(relay(groups, method=method), tmp_path / "coordinator")


@pytest.mark.slow
def test_from_leader_to_leader_one_group_is_the_swarm_to_the_bit(tmp_path: Path):
    among = bits(relay(1, "topology.handover=sites", method="fedopt"), tmp_path / "relay")
    swarm = tiny("method.kind=fedopt", "topology.kind=swarm")
    assert among == bits(swarm, tmp_path / "swarm")


@pytest.mark.slow
def test_groups_start_from_the_mean_of_the_group_before(tmp_path: Path):
    spy, [first, _] = outcomes(relay(2), tmp_path)
    trained = [(n, r) for n, r in spy.asked if isinstance(r, Train) and r.round == 1]
    groups = Relay(2, seed=tiny().seed).groups_of(1, NAMES)
    assert first.groups == groups
    assert [name for name, _ in trained] == [name for group in groups for name in group]
    starts = [digest(request.weights) for _, request in trained]
    assert starts[0] == starts[1] != starts[2] == starts[3]
    assert [reply.site for reply in first.replies] == list(NAMES)


@pytest.mark.slow
def test_the_coordinator_carries_no_tensor_where_leaders_hand_on(tmp_path: Path):
    spy, found = outcomes(relay(2, "topology.handover=sites"), tmp_path)
    assert not any(getattr(request, "weights", {}) for _, request in spy.asked)
    assert not any(reply.weights for reply in spy.replies)
    assert all(outcome.state.weights == {} for outcome in found)
    load = RoundLoad(sites=4, model=100, validations=1)
    assert Relay(2, "sites").account(load).bytes_per_round == 700
    model = max(reply.sent for reply in spy.replies if reply.steps)
    sent = sum(reply.sent for reply in spy.replies if reply.round == 1)
    received = sum(reply.received for reply in spy.replies if reply.round == 1)
    assert sent == received == 7 * model


def test_one_group_costs_what_star_and_swarm_cost_and_four_name_those_who_could_collude():
    load = RoundLoad(sites=4, model=100, validations=1)
    assert Relay(1).account(load).bytes_per_round == load.of_star
    assert Relay(1, "sites").account(load).bytes_per_round == 3 * load.both_ways
    assert Relay(1).account(load).wall_clock == "the slowest site's time"
    four = Relay(4).account(load)
    assert four.wall_clock == "the slowest site's time in each of 4 groups"
    assert "together work out its own update" in four.sees["sites"]
    assert "together" not in Relay(2).account(load).sees["sites"]
    assert Relay(4, "sites").account(load).sees["coordinator"].startswith("receipts only")
    told = Relay(1).account(replace(load, reveals=True)).sees["sites"]
    assert told == "the model, and other sites' own updates"


@pytest.mark.slow
def test_who_is_absent_is_skipped_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Birch misses round 2, alone in its group; cedar goes on from where its neighbour ended."""
    fail_when(monkeypatch, lambda s, r: s == "birch" and isinstance(r, Train) and r.round == 2)
    run(relay(4, "topology.require=3"), tmp_path)
    table = rows(tmp_path / "rounds.csv")
    took_part = {(row["round"], row["site"]): row["took_part"] for row in table}
    assert [key for key, value in took_part.items() if value != "True"] == [("2", "birch")]
    journal = read_journal(tmp_path / "journal.jsonl")
    missed = [event for _, event in journal if isinstance(event, SiteMissed)]
    assert [(event.round, event.site) for event in missed] == [(2, "birch")]


@pytest.mark.slow
def test_a_round_stops_as_soon_as_too_few_sites_are_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    order = [name for [name] in Relay(4, seed=tiny().seed).groups_of(1, NAMES)]
    fail_when(monkeypatch, lambda site, request: site in order[:2] and isinstance(request, Train))
    federation = built(relay(4, "topology.require=3"), tmp_path)
    spy = Spy(replace(federation.sites, on_failure=lambda card: None))
    with pytest.raises(SiteFailed) as failed:
        federation.topology.round(federation.start, spy, federation.method)
    assert failed.value.card.site == order[1]
    assert [name for name, _ in spy.asked] == order[:2]


@pytest.mark.slow
def test_another_of_the_group_leads_where_a_leader_cannot_merge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    study = relay(2, "topology.handover=sites", "rounds=1")
    quiet = tmp_path / "quiet"
    run(study, quiet)
    first = Relay(2, seed=study.seed).groups_of(1, NAMES)[0][0]
    fail_when(monkeypatch, lambda site, request: site == first and isinstance(request, Merge))
    run(study, tmp_path / "run")
    assert digests(tmp_path / "run") == digests(quiet)


@pytest.mark.slow
def test_a_group_of_one_whose_leader_cannot_merge_stops_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    fail_when(monkeypatch, lambda site, request: site == "cedar" and isinstance(request, Merge))
    with pytest.raises(RunFailed, match="no site could lead"):
        run(relay(4, "topology.handover=sites", "rounds=1"), tmp_path)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("topology.groups=5",), "topology.groups is 5; it must be from 1 (the star) to 4"),
        (("topology.groups=0",), "topology.groups is 0"),
        (("topology.require=5",), "topology.require is 5"),
        (("topology.patience=-1",), "topology.patience is -1"),
        (("topology.handover=sites", "topology.require=2"), "topology.require would do nothing"),
        (("method.kind=fedopt",), 'makes no sense over topology "relay"'),
        (("method.kind=local",), "sends nothing"),
    ],
)
def test_what_makes_no_sense_is_refused(options: tuple[str, ...], sentence: str):
    with pytest.raises(BadStudy) as refused:
        relay(2, *options)
    assert sentence in str(refused.value)


GROUPS = Relay(2, "sites", seed=1).groups_of(3, NAMES)
FIRST, SECOND = GROUPS
TRAIN, MERGE = Train(round=3, since=2), Merge(round=3, since=2, peers=FIRST)
LATER = {
    "train": replace(TRAIN, after=FIRST[1]),
    "merge": replace(MERGE, peers=SECOND, after=FIRST[0]),
}


@pytest.mark.parametrize(
    ("request_", "deliver_to"),
    [
        (TRAIN, FIRST[:1]),
        (TRAIN, FIRST[1:]),
        (LATER["train"], SECOND[:1]),
        (MERGE, SECOND),
        (LATER["merge"], NAMES),
        (Adopt(round=3, leader=SECOND[0]), ()),
        (Evaluate(round=3, since=3, split="validation"), ()),
    ],
)
def test_a_site_does_what_its_group_is_asked(request_: Request, deliver_to: tuple[str, ...]):
    assert Relay(2, "sites", seed=1).refuses(request_, deliver_to, NAMES) == ""


@pytest.mark.parametrize(
    ("request_", "deliver_to"),
    [
        (TRAIN, ()),
        (TRAIN, FIRST),
        (TRAIN, SECOND[:1]),
        (TRAIN, ("mallory",)),
        (replace(TRAIN, after="mallory"), SECOND[:1]),
        (replace(TRAIN, after=SECOND[0]), FIRST[:1]),
        (replace(TRAIN, after=SECOND[0]), SECOND[:1]),
        (replace(TRAIN, steps=1), FIRST[:1]),
        (MERGE, NAMES),
        (MERGE, FIRST),
        (MERGE, ()),
        (replace(MERGE, peers=FIRST[:1]), SECOND),
        (replace(MERGE, peers=FIRST[::-1]), SECOND),
        (replace(MERGE, peers=NAMES), NAMES),
        (replace(LATER["merge"], after=""), NAMES),
        (LATER["merge"], SECOND),
        (Adopt(round=3, leader=FIRST[0]), ()),
        (Adopt(round=3, leader=SECOND[0]), NAMES),
        (Evaluate(round=3, since=3, split="validation"), NAMES),
    ],
)
def test_a_site_refuses_what_its_group_is_never_asked(
    request_: Request, deliver_to: tuple[str, ...]
):
    assert Relay(2, "sites", seed=1).refuses(request_, deliver_to, NAMES)


@pytest.mark.slow
def test_stopped_between_two_groups_it_resumes_to_the_same_bits(tmp_path: Path):
    for handover in ("coordinator", "sites"):
        study = relay(2, f"topology.handover={handover}", "rounds=3")
        whole, broken = tmp_path / f"{handover}-whole", tmp_path / handover
        run(study, whole)
        seen: list[str] = []

        def third(event: object, seen: list[str] = seen) -> bool:
            if type(event).__name__ == "SiteTrained" and getattr(event, "round", 0) == 2:
                seen.append(getattr(event, "site", ""))
            return len(seen) == 3

        stopped(study, broken, third)
        run(study, broken, resume=True)
        assert digests(broken) == digests(whole)
