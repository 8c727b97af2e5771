"""A swarm: who leads, who holds what, and what happens when a leader fails."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from grandrounds.algorithms.star import Star
from grandrounds.algorithms.swarm import Swarm
from grandrounds.algorithms.topology import EVERYONE, Links, Quorum
from grandrounds.core.errors import BadUpdate, RunFailed
from grandrounds.core.events import Event, RoundFinished, SiteExchanged, SiteMissed
from grandrounds.core.journal import read_journal
from grandrounds.core.messages import Adopt, Merge, Reply, Request, Train
from grandrounds.core.weights import digest, num_bytes, read
from grandrounds.runs.loop import run_study as run
from grandrounds.site.model_state import SiteStore
from grandrounds.site.peers import Mailbox
from grandrounds.site.site import Site
from grandrounds.study.study import Study
from tests.helpers.federation import Spy, built, digests, fail_when, played, rows, tiny

pytestmark = pytest.mark.slow

NAMES = ("alder", "birch", "cedar")


def swarm(*overrides: str) -> Study:
    return tiny("topology.kind=swarm", *overrides, sites=3)


@dataclass(frozen=True)
class Roster:
    """Sites of so many training examples, that can only say so."""

    examples: Mapping[str, int]

    links = Links.MESH

    @property
    def names(self) -> tuple[str, ...]:
        """Give the roster."""
        return tuple(self.examples)

    def ask(
        self,
        requests: Mapping[str, Request],
        *,
        deliver_to: Sequence[str] = (),
        quorum: Quorum = EVERYONE,
    ) -> list[Reply]:
        """Say how many examples each has."""
        return [Reply(site=name, round=0, examples=self.examples[name]) for name in requests]


ROSTER = Roster({"alder": 8, "birch": 1, "cedar": 1})


def test_the_lead_goes_round_the_roster():
    lines = [Swarm().line(round, ROSTER) for round in (1, 2, 3, 4)]
    assert lines == [
        ["alder", "birch", "cedar"],
        ["birch", "cedar", "alder"],
        ["cedar", "alder", "birch"],
        ["alder", "birch", "cedar"],
    ]


@pytest.mark.parametrize(
    ("topology", "expected"),
    [
        (Swarm("random", seed=3), {"alder": 1 / 3, "birch": 1 / 3, "cedar": 1 / 3}),
        (Swarm("weighted", seed=3), {"alder": 0.8, "birch": 0.1, "cedar": 0.1}),
    ],
    ids=["random", "weighted"],
)
def test_a_drawn_leader_is_of_the_seed_and_the_round(topology: Swarm, expected: dict[str, float]):
    lines = [topology.line(round, ROSTER) for round in range(1, 2001)]
    assert lines == [replace(topology).line(round, ROSTER) for round in range(1, 2001)]
    assert lines != [replace(topology, seed=4).line(round, ROSTER) for round in range(1, 2001)]
    assert {tuple(sorted(line)) for line in lines} == {NAMES}
    leads = Counter(line[0] for line in lines)
    found = {name: leads[name] / len(lines) for name in NAMES}
    assert found == pytest.approx(expected, abs=0.04)


def test_the_studys_seed_draws_the_leaders():
    assert swarm("seed=9", "topology.leader=random").build_topology() == Swarm("random", seed=9)


def test_no_tensor_reaches_the_coordinator(tmp_path: Path):
    """Not in a request, not in a reply, not in what it keeps."""
    federation = built(swarm(), tmp_path)
    spy, state = Spy(federation.sites), federation.start
    for _ in range(2):
        state = federation.topology.round(state, spy, federation.method).state
    assert {type(request) for _, request in spy.asked} == {Train, Merge, Adopt}
    assert not any(getattr(request, "weights", None) for _, request in spy.asked)
    assert not any(reply.weights for reply in spy.replies)
    assert federation.start.weights == state.weights == state.memory == {}


def test_a_coordinators_folder_holds_no_model(tmp_path: Path):
    """The sites' folders do: the same shared model in each, and private ones beside it."""
    state = run(swarm("rounds=2"), tmp_path / "run")
    files = set((tmp_path / "run").rglob("*.safetensors"))
    own = {path for path in files if "sites" not in path.parts}
    assert {path.name for path in own} == {
        "round-000001.safetensors",
        "round-000002.safetensors",
    }
    assert all(read(path)[0] == {} for path in own)
    for name in NAMES:
        shared, notes = read(tmp_path / "run" / "sites" / name / "shared-last.safetensors")
        assert digest(shared) == state.held
        assert notes["round"] == "2"


def test_bytes_are_counted_where_they_travel(tmp_path: Path):
    """Two updates reach the leader, two merged models leave it; the leader's own go nowhere."""
    study = swarm("rounds=1")
    model = num_bytes(built(replace(study, topology=tiny().topology), tmp_path).start.weights)
    run(study, tmp_path / "run")
    table = {row["site"]: row for row in rows(tmp_path / "run" / "rounds.csv")}
    sent = {name: int(row["bytes_up"]) for name, row in table.items()}
    received = {name: int(row["bytes_down"]) for name, row in table.items()}
    assert sent == {"alder": 2 * model, "birch": model, "cedar": model}
    assert received == {"alder": 2 * model, "birch": model, "cedar": model}


def events(folder: Path) -> list[Event]:
    return [event for _, event in read_journal(folder / "journal.jsonl")]


def test_a_leader_that_cannot_merge_is_replaced_by_the_next_in_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The round ends as if nothing had happened, and the failure is told."""
    run(swarm("rounds=2"), tmp_path / "calm")
    fail_when(monkeypatch, lambda name, request: name == "alder" and isinstance(request, Merge))
    run(swarm("rounds=2"), tmp_path / "rough")
    assert digests(tmp_path / "rough") == digests(tmp_path / "calm")
    told = events(tmp_path / "rough")
    [missed] = [event for event in told if isinstance(event, SiteMissed)]
    assert (missed.site, missed.round, missed.stage) == ("alder", 1, "merge")
    assert missed.message == "out of luck"
    merges = [e.site for e in told if isinstance(e, SiteExchanged) and e.stage == "merge"]
    assert merges == ["birch", "birch"]
    assert {row["took_part"] for row in rows(tmp_path / "rough" / "rounds.csv")} == {"True"}


def test_a_round_that_nobody_can_lead_stops_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    fail_when(monkeypatch, lambda _, request: isinstance(request, Merge) and request.round == 2)
    with pytest.raises(RunFailed, match="round 2: no site could lead"):
        run(swarm("rounds=2"), tmp_path / "run")
    told = events(tmp_path / "run")
    missed = [event.site for event in told if isinstance(event, SiteMissed)]
    assert missed == ["birch", "cedar", "alder"]
    assert [event.round for event in told if isinstance(event, RoundFinished)] == [1]


def test_a_merged_model_that_was_tampered_with_on_its_way_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    receive = Site.receive

    def tamper(site: Site, update: Reply) -> None:
        if site.name == "cedar" and update.merged:
            weights = {name: tensor + 1 for name, tensor in update.weights.items()}
            update = replace(update, weights=weights)
        receive(site, update)

    monkeypatch.setattr(Site, "receive", tamper)
    federation = built(swarm(), tmp_path)
    sentence = "site 'cedar' keeps another merged model in round 1 than its leader 'alder' sent"
    with pytest.raises(BadUpdate, match=sentence):
        played(federation, 1)


def test_a_leader_merges_only_what_was_delivered_to_it(tmp_path: Path):
    alder = built(swarm(), tmp_path).sites.sites[0]
    with pytest.raises(BadUpdate, match="no update of alder, birch was delivered to this leader"):
        alder.answer(Merge(round=1, since=0, peers=("alder", "birch")))


def test_a_site_adopts_only_the_rounds_own_merged_model(tmp_path: Path):
    federation = built(swarm(), tmp_path)
    alder = federation.sites.sites[0]
    with pytest.raises(BadUpdate, match="no merged model of 'birch' was delivered to this site"):
        alder.answer(Adopt(round=1, leader="birch"))
    alder.receive(Reply(site="birch", round=1, merged=3))
    with pytest.raises(BadUpdate, match="no merged model of 'birch'"):
        alder.answer(Adopt(round=2, leader="birch"))


def test_a_mailbox_is_empty_after_a_round(tmp_path: Path):
    federation = built(swarm(), tmp_path)
    [outcome] = played(federation, 1)
    for site in federation.sites.sites:
        assert site.mailbox == Mailbox()
        assert SiteStore(site.folder).merged(1).fingerprint == outcome.state.held


def test_every_site_keeps_the_merged_model_of_the_best_round(tmp_path: Path):
    """It is the one that is tested, and nobody else holds it."""
    federation = built(swarm(), tmp_path)
    state = federation.start
    for _ in range(3):
        outcome = federation.topology.round(state, federation.sites, federation.method)
        state = replace(outcome.state, best_round=1)
    assert all(SiteStore(site.folder).has_merged(1) for site in federation.sites.sites)


def test_what_a_server_step_remembers_goes_with_the_merged_model(tmp_path: Path):
    """Whoever leads next needs it."""
    options = ("method.kind=fedopt",)
    star = built(tiny(*options, sites=3), tmp_path / "star")
    federation = built(swarm(*options), tmp_path / "swarm")
    assert isinstance(star.topology, Star)
    memory = played(star, 2)[-1].state.memory
    played(federation, 2)
    kept = SiteStore(federation.sites.sites[1].folder).merged(2)
    assert memory
    assert digest(kept.memory) == digest(memory)
