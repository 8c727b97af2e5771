"""Who pulls against whom: what a run writes down of the sites' updates, and what stays the same."""

from pathlib import Path

import numpy as np
import pytest
from torch import Tensor

from grandrounds.core.events import Event, UpdatesCompared
from grandrounds.core.journal import read_journal
from grandrounds.core.messages import Request, Train
from grandrounds.runs.costs import plan_run
from grandrounds.runs.loop import run_study as run
from grandrounds.study.study import Study
from tests.helpers.federation import Spy, built, digests, fail_when, stopped, tiny
from tests.helpers.site_processes import run_elsewhere, town


def compared(folder: Path) -> dict[int, UpdatesCompared]:
    events = [event for _, event in read_journal(folder / "journal.jsonl")]
    return {event.round: event for event in events if isinstance(event, UpdatesCompared)}


def watched(*overrides: str, every: int = 1) -> Study:
    return tiny(f"aggregation.cosines_every={every}", *overrides, sites=3)


def by_hand(study: Study, folder: Path) -> dict[str, dict[str, dict[str, float]]]:
    """The cosines of a federation's first round, group by group, from the requests and replies."""
    federation = built(study, folder)
    spy = Spy(federation.sites)
    federation.topology.round(federation.start, spy, federation.method)
    asked = {name: request.weights for name, request in spy.asked if isinstance(request, Train)}
    moves = {
        reply.site: {
            name: t.double() - asked[reply.site][name] for name, t in reply.weights.items()
        }
        for reply in spy.replies
    }
    found: dict[str, dict[str, dict[str, float]]] = {}
    for group, names in plan_run(study).compared.items():
        for number, first in enumerate(moves):
            for second in list(moves)[number + 1 :]:
                both = [n for n in sorted(names) if n in moves[first] and n in moves[second]]
                found.setdefault(group, {}).setdefault(first, {})[second] = angle(
                    *([moves[site][name] for name in both] for site in (first, second))
                )
    return found


def angle(first: list[Tensor], second: list[Tensor]) -> float:
    a, b = (np.concatenate([t.numpy().ravel() for t in move]) for move in (first, second))
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


@pytest.mark.parametrize("arm", ["pflsynth", "fedavg", "fedmedgan"])
def test_a_run_writes_down_the_cosines_of_what_came_back_less_what_was_sent(
    tmp_path: Path, arm: str
):
    study = watched(f"method.kind={arm}", "task.norm=batch", "rounds=1")
    run(study, tmp_path / "run")
    found, expected = compared(tmp_path / "run")[1].cosines, by_hand(study, tmp_path / "hand")
    assert set(found) == set(expected) >= {"norm", "all"}
    for group, rows in expected.items():
        assert found[group].keys() == rows.keys()
        for first, row in rows.items():
            assert found[group][first] == pytest.approx(row, rel=1e-9, abs=1e-12)


def test_running_statistics_and_counters_are_in_no_group():
    plan = plan_run(watched("method.kind=fedavg", "task.norm=batch"))
    parameters = {name for name, _ in plan.model.named_parameters()}
    assert plan.compared["norm"]
    assert {name for names in plan.compared.values() for name in names} <= parameters


def test_it_is_done_every_so_many_rounds_and_after_the_last_and_changes_no_bit(tmp_path: Path):
    run(watched(every=2), tmp_path / "watched")
    run(tiny(sites=3), tmp_path / "plain")
    assert list(compared(tmp_path / "watched")) == [2, 3]
    assert compared(tmp_path / "plain") == {}
    assert digests(tmp_path / "watched") == digests(tmp_path / "plain")


def test_an_absent_site_is_in_no_pair_of_its_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fail_when(monkeypatch, birch_in_round_2)
    run(watched("topology.require=2"), tmp_path)
    pairs = {number: event.cosines["all"] for number, event in compared(tmp_path).items()}
    assert {first: list(row) for first, row in pairs[2].items()} == {"alder": ["cedar"]}
    everyone = {"alder": ["birch", "cedar"], "birch": ["cedar"]}
    for number in (1, 3):
        assert {first: list(row) for first, row in pairs[number].items()} == everyone


def birch_in_round_2(name: str, request: Request) -> bool:
    return name == "birch" and isinstance(request, Train) and request.round == 2


def test_workers_sites_elsewhere_and_a_resumed_run_give_the_same_numbers(tmp_path: Path):
    study = watched("rounds=2")
    run(study, tmp_path / "one")
    run(study, tmp_path / "workers", workers=2)
    stopped(study, tmp_path / "resumed", is_round_1_compared)
    run(study, tmp_path / "resumed", resume=True)
    with town(study.trainers) as houses:
        folder = tmp_path / "elsewhere"
        run_elsewhere(study, folder, houses.open(study, folder))
    expected = compared(tmp_path / "one")
    assert list(expected) == [1, 2]
    for other in ("workers", "resumed", "elsewhere"):
        assert compared(tmp_path / other) == expected


def is_round_1_compared(event: Event) -> bool:
    return isinstance(event, UpdatesCompared) and event.round == 1


def test_sites_that_start_apart_are_compared_from_round_2_on(tmp_path: Path):
    run(watched("training.first_broadcast=false", "rounds=2"), tmp_path)
    assert list(compared(tmp_path)) == [2]
