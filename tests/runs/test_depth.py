"""The steps in a row of real runs over each topology, as their journals tell them."""

from dataclasses import replace
from pathlib import Path

import pytest

from grandrounds.core.events import RoundFinished, SiteTrained
from grandrounds.core.journal import read_journal
from grandrounds.core.messages import Train
from grandrounds.core.names import POOLED
from grandrounds.report.analysis.depth import depth_of
from grandrounds.report.analysis.facts import read_facts
from grandrounds.report.analysis.run import Run
from grandrounds.runs.costs import estimate, plan_run, planned_steps
from grandrounds.runs.loop import run_study as run
from grandrounds.study.study import Study
from tests.helpers.federation import fail_when, tiny
from tests.helpers.task_studies import tiny_of

SITES = ("alder", "birch", "cedar")
SHORT = ("rounds=2", "stop.test=last")
FEDAVG = 'method={kind="fedavg"}'
SPLIT = (FEDAVG, "topology.kind=split", "topology.cut=encoder.2")
ALDER, BIRCH, CEDAR = 3, 1, 2  # steps of a round, one for each training patient


def uneven(*options: str) -> Study:
    """A tiny study of three hospitals with unlike numbers of patients, over two rounds."""
    study = tiny(*SHORT, *options, sites=3)
    counts = zip(study.site, (ALDER, BIRCH, CEDAR), strict=True)
    sites = [replace(s, patients=replace(s.patients, train=n)) for s, n in counts]
    return replace(study, site=tuple(sites))


def trained(folder: Path, *options: str) -> Run:
    """Run the study, and see that it took the steps that were planned."""
    study = uneven(*options)
    run(study, folder)
    found = read_facts(folder).arms[0].runs[0]
    told = estimate(plan_run(study)).topology
    assert found.topology == told
    planned = {site: 2 * steps for site, steps in planned_steps(study).items()}
    assert planned == found.depth.local_steps
    assert found.depth.in_a_row == 2 * told.steps_in_a_row == found.depth.allowed
    return found


def groups(folder: Path) -> list[tuple[tuple[str, ...], ...]]:
    told = [event for _, event in read_journal(folder / "journal.jsonl")]
    return [event.groups for event in told if isinstance(event, RoundFinished)]


def seconds(found: Run) -> list[float]:
    """Add up each site's seconds over the rounds."""
    return [work.seconds for work in found.work]


@pytest.mark.parametrize(
    "options",
    [
        (FEDAVG,),
        (FEDAVG, "topology.kind=swarm"),
        ('method={kind="local"}',),
        (*SPLIT, "topology.variant=splitfed1"),
    ],
    ids=["star", "swarm", "local", "splitfed1"],
)
def test_side_by_side_a_model_takes_the_most_steps_of_a_site(
    tmp_path: Path, options: tuple[str, ...]
):
    found = trained(tmp_path, *options)
    assert found.depth.in_a_row == 2 * ALDER
    assert groups(tmp_path) == 2 * [(SITES,)]


@pytest.mark.parametrize(
    "options",
    [
        (FEDAVG, "topology.kind=cyclic"),
        (FEDAVG, "topology.kind=cyclic", "topology.order=shuffled"),
        SPLIT,
        (*SPLIT, "topology.variant=splitfed2"),
    ],
    ids=["cyclic", "shuffled", "split", "splitfed2"],
)
def test_in_turn_a_model_takes_all_sites_steps_and_all_their_time(
    tmp_path: Path, options: tuple[str, ...]
):
    found = trained(tmp_path, *options)
    assert found.depth.in_a_row == 2 * (ALDER + BIRCH + CEDAR)
    assert found.depth.wall_clock == pytest.approx(sum(seconds(found)))
    assert all(sorted(each) == [(site,) for site in SITES] for each in groups(tmp_path))


def test_the_groups_of_a_cycle_stand_in_the_order_of_its_turns(tmp_path: Path):
    trained(tmp_path, FEDAVG, "topology.kind=cyclic", "topology.order=alternate")
    there = tuple((site,) for site in SITES)
    assert groups(tmp_path) == [there, there[::-1]]


def test_side_by_side_a_round_lasts_as_long_as_its_slowest_site(tmp_path: Path):
    found = trained(tmp_path, FEDAVG)
    told = [event for _, event in read_journal(tmp_path / "journal.jsonl")]
    each = [event for event in told if isinstance(event, SiteTrained)]
    slowest = [max(e.seconds for e in each if e.round == number) for number in (1, 2)]
    assert found.depth.wall_clock == pytest.approx(sum(slowest))
    assert sum(slowest) < sum(seconds(found))


def test_pooled_data_are_one_site_with_all_steps(tmp_path: Path):
    found = trained(tmp_path, 'method={kind="central"}')
    assert found.depth.local_steps == {POOLED: 2 * (ALDER + BIRCH + CEDAR)}
    assert found.depth.in_a_row == 2 * (ALDER + BIRCH + CEDAR)
    assert groups(tmp_path) == 2 * [((POOLED,),)]


def test_a_turn_is_as_long_as_its_topology_says(tmp_path: Path):
    turns = ("topology.kind=cyclic", "topology.turn=steps", "topology.length=4")
    assert trained(tmp_path / "steps", FEDAVG, *turns).depth.in_a_row == 2 * 3 * 4
    epochs = ("topology.kind=cyclic", "topology.length=2")
    assert trained(tmp_path / "epochs", FEDAVG, *epochs).depth.in_a_row == 2 * 2 * 6


def test_fine_tuning_in_the_end_makes_the_tested_models_deeper(tmp_path: Path):
    study = uneven(FEDAVG, "training.fine_tune=2")
    run(study, tmp_path)
    depth = read_facts(tmp_path).arms[0].runs[0].depth
    assert depth.local_steps == {"alder": 4 * ALDER, "birch": 4 * BIRCH, "cedar": 4 * CEDAR}
    assert depth.in_a_row == 4 * ALDER


def test_a_site_that_was_absent_has_no_part_in_the_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    fail_when(
        monkeypatch,
        lambda site, request: isinstance(request, Train) and (site, request.round) == ("alder", 2),
    )
    run(uneven(FEDAVG, "topology.require=2"), tmp_path)
    depth = read_facts(tmp_path).arms[0].runs[0].depth
    assert groups(tmp_path) == [(SITES,), (("birch", "cedar"),)]
    assert (depth.in_a_row, depth.local_steps["alder"]) == (ALDER + CEDAR, ALDER)


def test_the_model_of_the_best_round_has_the_steps_until_then(tmp_path: Path):
    run(tiny(FEDAVG, "rounds=3", sites=2), tmp_path)
    told = [event for _, event in read_journal(tmp_path / "journal.jsonl")]
    best = [event for event in told if isinstance(event, RoundFinished)][-1].best_round
    found = depth_of(told, ("alder", "birch"), planned=3)
    assert (found.tested, found.in_a_row) == (best, best * 2)


def test_fedrep_trains_its_head_and_then_the_rest(tmp_path: Path):
    run(uneven('method={kind="fedrep"}'), tmp_path)
    assert read_facts(tmp_path).arms[0].runs[0].depth.in_a_row == 2 * 2 * ALDER


@pytest.mark.parametrize("kind", ["segmentation", "classification"])
def test_the_steps_of_other_tasks_are_planned_as_they_are_taken(tmp_path: Path, kind: str):
    study = tiny_of(kind, "rounds=1", sites=2)
    run(study, tmp_path)
    assert read_facts(tmp_path).arms[0].runs[0].depth.local_steps == planned_steps(study)
