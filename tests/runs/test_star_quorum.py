"""A star that goes on without a site, and never in silence."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from grandrounds.core.errors import SiteFailed
from grandrounds.core.events import (
    Event,
    Failed,
    RoundFinished,
    SiteMissed,
    SiteTested,
    SiteTrained,
    SiteValidated,
)
from grandrounds.core.journal import read_journal
from grandrounds.core.messages import Evaluate, Finish, Reply, Request, Train
from grandrounds.core.weights import digest, mean, read
from grandrounds.runs.loop import run_study as run
from grandrounds.site.site import Promise, Site
from grandrounds.study.study import Study
from tests.helpers.federation import (
    Spy,
    built,
    digests,
    fail_when,
    private_weights,
    rows,
    stopped,
    tiny,
)
from tests.helpers.grids import with_representatives

pytestmark = pytest.mark.slow


def star(*overrides: str, require: str = "2") -> Study:
    return tiny(f"topology.require={require}", *overrides, sites=3)


def events(folder: Path) -> list[Event]:
    return [event for _, event in read_journal(folder / "journal.jsonl")]


def missed(folder: Path) -> list[tuple[str, int, str]]:
    return [(e.site, e.round, e.stage) for e in events(folder) if isinstance(e, SiteMissed)]


def absent(*rounds: int) -> Callable[[str, Request], bool]:
    """Birch fails to train in these rounds."""
    return lambda name, request: (
        name == "birch" and isinstance(request, Train) and request.round in rounds
    )


def test_where_all_are_required_a_failure_stops_the_run_with_its_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    fail_when(monkeypatch, absent(2))
    with pytest.raises(SiteFailed, match=r"site 'birch' failed in round 2 \(train\): ValueError"):
        run(star(require="all"), tmp_path)
    last = events(tmp_path)[-1]
    assert isinstance(last, Failed)
    assert (last.site, last.round, last.stage, last.error) == ("birch", 2, "train", "ValueError")
    assert last.message == "out of luck"
    assert last.trace[-1].startswith("federation.py:")
    assert missed(tmp_path) == []


def test_a_round_goes_on_without_a_site_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    fail_when(monkeypatch, absent(2))
    run(star(), tmp_path)
    assert missed(tmp_path) == [("birch", 2, "train")]
    part = {(row["round"], row["site"]): row["took_part"] for row in rows(tmp_path / "rounds.csv")}
    assert len(part) == 9
    assert [place for place, took in part.items() if took == "False"] == [("2", "birch")]
    tested = [event.site for event in events(tmp_path) if isinstance(event, SiteTested)]
    assert tested == ["alder", "birch", "cedar"]


def test_a_mean_is_of_the_sites_that_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fail_when(monkeypatch, absent(1))
    federation = built(star(), tmp_path)
    sites = replace(federation.sites, on_failure=lambda _: None)
    outcome = federation.topology.round(federation.start, sites, federation.method)
    assert [reply.site for reply in outcome.replies] == ["alder", "cedar"]
    average = mean([reply.weights for reply in outcome.replies], [8, 8])
    assert digest(outcome.state.weights) == digest(average)
    assert outcome.state.seen == {"birch": 0}


def test_a_site_that_comes_back_goes_on_from_its_own_last_private_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Alone, with what was sent to it in rounds 1 and 4, it does the same to the bit."""
    with monkeypatch.context() as patch:
        fail_when(patch, absent(2, 3))
        federation = built(star("rounds=4"), tmp_path / "together")
        spy = Spy(replace(federation.sites, on_failure=lambda _: None))
        state, replies = federation.start, list[Reply]()
        for _ in range(4):
            outcome = federation.topology.round(state, spy, federation.method)
            state, replies = outcome.state, list(outcome.replies)
    orders = [r for name, r in spy.asked if name == "birch" and isinstance(r, Train)]
    assert [(order.round, order.since) for order in orders] == [(1, 0), (2, 1), (3, 1), (4, 1)]
    assert state.seen == {}
    alone = built(star("rounds=4"), tmp_path / "alone").sites.sites[1]
    first, again = alone.answer(orders[0]), alone.answer(orders[3])
    assert first.digest != again.digest
    assert again.digest == replies[1].digest
    assert digest(private_weights(alone, 4)) == digest(
        private_weights(federation.sites.sites[1], 4)
    )


def test_a_site_that_is_absent_to_the_end_writes_its_last_own_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    fail_when(monkeypatch, absent(3))
    state = run(star("stop.test=last"), tmp_path)
    assert state.seen == {"birch": 2}
    for name, round in {"alder": "3", "birch": "2", "cedar": "3"}.items():
        notes = read(tmp_path / "sites" / name / "private-last.safetensors")[1]
        assert notes.items() >= {"site": name, "round": round}.items()


def test_a_site_that_never_took_part_is_tested_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """With the federation's model, beside its own first weights."""
    fail_when(monkeypatch, absent(1, 2, 3))
    state = run(star(), tmp_path)
    assert state.seen == {"birch": 0}
    assert missed(tmp_path) == [("birch", round, "train") for round in (1, 2, 3)]
    assert "birch" in {row["site"] for row in rows(tmp_path / "scores.csv")}


def test_the_best_round_of_a_site_is_one_that_it_took_part_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Its private state of then survives, however many rounds follow."""
    fail_when(monkeypatch, absent(2))
    federation = built(star("rounds=6"), tmp_path)
    sites = replace(federation.sites, on_failure=lambda _: None)
    state = federation.start
    for _ in range(6):
        state = federation.topology.round(state, sites, federation.method).state
        if state.round == 2:
            state = replace(state, best_round=2, best_seen=state.seen)
    assert (state.best_of("birch"), state.best_of("alder")) == (1, 2)
    held = {site.name: tuple(_held(site)) for site in federation.sites.sites}
    assert held == {"alder": (2, 4, 5, 6), "birch": (1, 4, 5, 6), "cedar": (2, 4, 5, 6)}


def _held(site: Site) -> list[int]:
    return sorted(int(path.stem[-6:]) for path in (site.folder / "state").iterdir())


def test_fewer_than_required_stop_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fail_when(
        monkeypatch,
        lambda name, request: name != "alder" and isinstance(request, Train) and request.round == 2,
    )
    with pytest.raises(SiteFailed, match=r"site 'birch' failed in round 2 \(train\)"):
        run(star(), tmp_path)
    assert missed(tmp_path) == [("birch", 2, "train"), ("cedar", 2, "train")]
    last = events(tmp_path)[-1]
    assert isinstance(last, Failed)
    assert last.site == "birch"


def test_a_site_that_cannot_be_scored_has_no_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    fail_when(monkeypatch, lambda name, r: name == "birch" and isinstance(r, Evaluate | Finish))
    run(star("rounds=1"), tmp_path)
    assert missed(tmp_path) == [
        ("birch", 1, "evaluate"),
        ("birch", 1, "finish"),
        ("birch", 1, "evaluate"),
    ]
    assert {row["site"] for row in rows(tmp_path / "scores.csv")} == {"alder", "cedar"}
    assert {row["took_part"] for row in rows(tmp_path / "rounds.csv")} == {"True"}


def slow_when(patch: pytest.MonkeyPatch, slow: Callable[[str, Request], bool]) -> None:
    """Let sites answer as if they had taken a minute; all others take no time."""
    begin = Site.begin

    def late(site: Site, request: Request) -> Promise:
        seconds = 60.0 if slow(site.name, request) else 0.0
        promise = begin(site, request)
        return lambda: replace(promise(), seconds=seconds)

    patch.setattr(Site, "begin", late)


def late_in_training(*names: str) -> Callable[[str, Request], bool]:
    return lambda name, request: name in names and isinstance(request, Train)


def test_a_slow_site_is_waited_for_where_patience_has_no_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    slow_when(monkeypatch, late_in_training("birch"))
    run(star("rounds=1"), tmp_path)
    assert missed(tmp_path) == []


def test_patience_drops_a_slow_site_when_enough_have_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    slow_when(monkeypatch, late_in_training("birch"))
    state = run(star("rounds=2", "topology.patience=30"), tmp_path)
    assert [(site, round) for site, round, _ in missed(tmp_path)] == [("birch", 1), ("birch", 2)]
    [first, _] = [event for event in events(tmp_path) if isinstance(event, SiteMissed)]
    assert first.error == "TimeoutError"
    assert first.message == "answered after 60.0 s; patience is 30 s"
    assert state.seen == {"birch": 0}
    part = {(row["round"], row["site"]): row["took_part"] for row in rows(tmp_path / "rounds.csv")}
    assert [site for (_, site), took in part.items() if took == "False"] == ["birch", "birch"]


def test_patience_drops_nobody_who_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    slow_when(monkeypatch, late_in_training("birch"))
    run(star("rounds=1", "topology.patience=30", require="3"), tmp_path)
    assert missed(tmp_path) == []


def test_patience_drops_the_slowest_only_until_enough_are_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    slow_when(monkeypatch, late_in_training("alder", "birch", "cedar"))
    run(star("rounds=1", "topology.patience=30"), tmp_path)
    assert [site for site, *_ in missed(tmp_path)] == ["alder"]


def test_a_site_that_is_slow_to_be_scored_did_take_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    slow_when(monkeypatch, lambda name, r: name == "birch" and isinstance(r, Evaluate))
    run(star("rounds=1", "topology.patience=30"), tmp_path)
    assert {site for site, *_ in missed(tmp_path)} == {"birch"}
    assert {row["took_part"] for row in rows(tmp_path / "rounds.csv")} == {"True"}


def trained_in(round: int, site: str) -> Callable[[Event], bool]:
    return lambda event: (
        isinstance(event, SiteTrained)
        and (event.round, event.site)
        == (
            round,
            site,
        )
    )


MOMENTS: dict[str, Callable[[Event], bool]] = {
    "in the round of the absence": trained_in(2, "cedar"),
    "in its validation": lambda event: isinstance(event, SiteValidated) and event.round == 2,
    "at its end": lambda event: isinstance(event, RoundFinished) and event.round == 2,
    "in the round after it": trained_in(3, "alder"),
    "after the return": trained_in(3, "birch"),
    "at the end of that": lambda event: isinstance(event, RoundFinished) and event.round == 3,
}
REPRESENTATIVES = ("in the round of the absence", "after the return")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that birch misses a round of, and that is never stopped."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        fail_when(patch, absent(2))
        run(star("rounds=4"), folder)
    return folder


@pytest.mark.parametrize("moment", with_representatives(MOMENTS, REPRESENTATIVES))
def test_a_run_resumed_after_an_absence_has_the_same_bits_as_one_that_never_stopped(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, moment: str
):
    fail_when(monkeypatch, absent(2))
    study, parts = star("rounds=4"), tmp_path / "parts"
    stopped(study, parts, MOMENTS[moment])
    run(study, parts, resume=True)
    assert digests(parts) == digests(whole)
    assert rows(parts / "scores.csv") == rows(whole / "scores.csv")
    part = [row["took_part"] for row in rows(parts / "rounds.csv")]
    assert part == [row["took_part"] for row in rows(whole / "rounds.csv")]
