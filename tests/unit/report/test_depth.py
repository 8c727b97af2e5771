"""Steps in a row, own steps and wall-clock are read from a journal, and said where arms differ."""

import csv
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from grandrounds.cli.output import show
from grandrounds.core.events import (
    Event,
    RoundFinished,
    SiteMissed,
    SiteTested,
    SiteTrained,
    SiteTuned,
    TopologySet,
)
from grandrounds.core.journal import Journal
from grandrounds.core.names import POOLED
from grandrounds.report.analysis.depth import Depth, depth_of
from grandrounds.report.analysis.facts import read_facts
from grandrounds.report.page.html import write_report
from grandrounds.report.paper.publish import publish
from grandrounds.report.prose.sentences import unequal_depth
from tests.helpers.run_folders import ALONE_SAME, FEDAVG, PFLSYNTH, write_comparison, write_run

STEPS = {"alder": 8, "birch": 5, "cedar": 6}
SECONDS = {"alder": 2.0, "birch": 3.0, "cedar": 1.0}
Groups = tuple[tuple[str, ...], ...]
SIDE_BY_SIDE: Groups = (("alder", "birch", "cedar"),)
IN_TURN: Groups = (("cedar",), ("alder",), ("birch",))
TWO_GROUPS: Groups = (("alder", "cedar"), ("birch",))


def one_round(
    number: int, groups: Groups = (), *, sites: Sequence[str] = tuple(STEPS)
) -> list[Event]:
    trained = [SiteTrained(number, s, SECONDS[s], 32, STEPS[s], 0, 0) for s in sites]
    return [*trained, RoundFinished(number, "ab", None, number, 1.0, groups)]


def journal(
    *rounds: list[Event], kind: str = "star", tested: int | None = None, more: Sequence[Event] = ()
) -> list[Event]:
    told = [event for each in rounds for event in each]
    scored = [] if tested is None else [SiteTested(tested, "alder", 0.1, 4)]
    return [TopologySet(kind, 0, ""), *told, *more, *scored]


def deep(events: Sequence[Event], planned: int = 3) -> Depth:
    return depth_of(events, tuple(STEPS), planned=planned)


@pytest.mark.parametrize(
    ("groups", "steps", "seconds"),
    [(SIDE_BY_SIDE, 8, 3.0), (IN_TURN, 8 + 5 + 6, 6.0), (TWO_GROUPS, 8 + 5, 2.0 + 3.0)],
    ids=["side by side", "in turn", "two groups"],
)
def test_each_group_adds_its_most_steps_and_its_slowest_site(
    groups: Groups, steps: int, seconds: float
):
    found = deep(journal(one_round(1, groups), one_round(2, groups), kind="relay", tested=2))
    assert (found.in_a_row, found.wall_clock) == (2 * steps, 2 * seconds)
    assert found.local_steps == {"alder": 16, "birch": 10, "cedar": 12}


def test_steps_count_until_the_tested_round_and_time_until_the_end():
    rounds = [one_round(number, SIDE_BY_SIDE) for number in (1, 2, 3)]
    found = deep(journal(*rounds, tested=1))
    assert (found.in_a_row, found.local_steps["birch"], found.wall_clock) == (8, 5, 9.0)


def test_a_round_that_is_not_finished_counts_for_nothing():
    unfinished = one_round(2)[:-1]
    found = deep(journal(one_round(1, SIDE_BY_SIDE), unfinished, tested=2))
    assert (found.in_a_row, found.wall_clock, found.local_steps["alder"]) == (8, 3.0, 8)


def test_nothing_is_said_of_a_model_that_was_not_tested():
    found = deep(journal(one_round(1, SIDE_BY_SIDE)))
    assert (found.local_steps, found.in_a_row, found.wall_clock) == ({}, None, 3.0)


def test_a_model_tested_before_any_training_took_no_step():
    found = deep(journal(one_round(1, SIDE_BY_SIDE), tested=0))
    assert (found.in_a_row, set(found.local_steps.values())) == (0, {0})


@pytest.mark.parametrize(
    ("kind", "in_a_row", "seconds"),
    [("star", 8, 3.0), ("swarm", 8, 3.0), ("cyclic", 19, 6.0), ("split", None, 6.0)],
)
def test_a_journal_without_groups_is_read_by_its_topology_or_not_at_all(
    kind: str, in_a_row: int | None, seconds: float
):
    found = deep(journal(one_round(1), kind=kind, tested=1))
    assert (found.in_a_row, found.wall_clock) == (in_a_row, seconds)


def test_where_no_topology_is_told_no_number_is_made_up():
    found = deep(journal(one_round(1), tested=1)[1:])
    assert (found.in_a_row, found.allowed, found.wall_clock) == (None, None, None)
    assert found.local_steps == STEPS


def test_a_split_network_s_sites_wait_for_each_other_even_where_their_parts_are_averaged():
    found = deep(journal(one_round(1, SIDE_BY_SIDE), kind="split", tested=1))
    assert (found.in_a_row, found.wall_clock) == (8, 6.0)


def test_a_site_that_was_too_late_adds_nothing():
    late = SiteMissed("alder", 1, "train", "TimeoutError", "late", "")
    told = one_round(1, (("birch", "cedar"),))
    found = deep(journal(told, tested=1, more=[late]))
    assert (found.in_a_row, found.local_steps["alder"]) == (6, 0)
    older = deep(journal(one_round(1), tested=1, more=[late]))
    assert (older.in_a_row, older.local_steps["alder"]) == (6, 0)


def test_fine_tuning_adds_its_steps_at_each_site_and_the_most_in_a_row():
    tuned = [SiteTuned(1, "alder", 1.5, 4, ""), SiteTuned(1, "birch", 0.5, 7, "")]
    found = deep(journal(one_round(1, IN_TURN), tested=1, more=tuned))
    assert found.local_steps == {"alder": 12, "birch": 12, "cedar": 6}
    assert (found.in_a_row, found.wall_clock) == (19 + 7, 6.0 + 1.5)


def test_an_arm_may_take_its_deepest_round_as_often_as_it_has_rounds():
    absent = one_round(2, (("birch",),), sites=("birch",))
    stopped_early = journal(one_round(1, SIDE_BY_SIDE), absent, tested=2)
    assert deep(stopped_early, planned=10).allowed == 10 * 8


def travelling(folder: Path) -> Path:
    """FedAvg beside pooled training, which takes four times the steps in a row."""
    pooled = replace(FEDAVG, name="central", title="Centralised", method="central", steps=288)
    return write_comparison(folder, [FEDAVG, pooled, ALONE_SAME])


@pytest.mark.slow
def test_arms_of_unequal_depth_are_told_in_one_sentence(tmp_path: Path):
    folder = travelling(tmp_path / "c")
    assert unequal_depth(read_facts(folder)) == (
        "The arms were not compared at equal depth. Steps in a row of the model tested: 720 with "
        "FedAvg and Local-only (same network); 2,880 with Centralised. A model that takes more "
        "steps in a row may score better for that alone."
    )
    page = write_report(folder).read_text()
    assert page.count("not compared at equal depth") == 1
    assert "<td>2,880, pooled</td><td>2,880</td>" in page


@pytest.mark.slow
def test_arms_of_equal_depth_need_no_sentence(tmp_path: Path):
    folder = write_comparison(tmp_path / "c", [FEDAVG, ALONE_SAME])
    assert unequal_depth(read_facts(folder)) == ""
    assert "equal depth" not in write_report(folder).read_text()


def test_a_round_that_validates_better_makes_no_arm_deeper(tmp_path: Path):
    folder = write_comparison(tmp_path / "c", [FEDAVG, ALONE_SAME])
    earlier = SiteTested(4, "alder", 0.1, 4)
    Journal(folder / "arms" / "fedavg" / "seed-7" / "journal.jsonl").append(earlier)
    facts = read_facts(folder)
    assert facts.arms[0].steps_in_a_row != facts.arms[1].steps_in_a_row
    assert unequal_depth(facts) == ""


def test_a_pooled_site_is_the_one_that_takes_steps(tmp_path: Path):
    run = read_facts(travelling(tmp_path / "c")).arms[1].runs[0]
    assert run.depth.local_steps == {POOLED: 2880}


@pytest.mark.slow
def test_own_steps_span_hospitals_where_one_was_absent(tmp_path: Path):
    folder = write_run(tmp_path / "run", replace(PFLSYNTH, absent={"birch": (2, 5)}))
    page = write_report(folder).read_text()
    assert "<td>576 to 720</td><td>720</td>" in page


@pytest.mark.slow
def test_before_the_test_the_page_knows_no_steps(tmp_path: Path):
    folder = write_run(tmp_path / "run", PFLSYNTH, until=2)
    assert "<td>not known</td><td>not known</td>" in write_report(folder).read_text()


@pytest.mark.slow
def test_a_terminal_of_80_columns_shows_what_every_arm_took(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", "80")
    folder = travelling(tmp_path / "c")
    show(folder, folder / "report.html", as_json=False, quiet=False)
    lines = capsys.readouterr().out.splitlines()
    [row] = [line for line in lines if "2,880, pooled" in line]
    cells = [cell.strip() for cell in row.strip("│").split("│")]
    assert cells == ["Centralised", "2,880, pooled", "2,880", "16.0 s", "34.3 MB"]
    assert len(row) <= 80
    assert any(line.startswith("The arms were not compared at equal depth.") for line in lines)


@pytest.mark.slow
def test_json_has_the_steps_the_time_and_the_bytes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = travelling(tmp_path / "c")
    show(folder, folder / "report.html", as_json=True, quiet=True)
    told = json.loads(capsys.readouterr().out)
    cost = told["arms"]["fedavg"]["cost"]
    assert cost["local_steps"] == cost["steps_in_a_row"] == {"low": 720, "high": 720}
    assert cost["wall_clock_seconds"] == pytest.approx(22.0)
    assert told["unequal_depth"].startswith("The arms were not compared at equal depth.")


@pytest.mark.slow
def test_tables_of_a_paper_have_steps_time_and_bytes(tmp_path: Path):
    folder = travelling(tmp_path / "c")
    publish(folder, figures=False)
    with (folder / "tables" / "costs.csv").open(newline="") as file:
        row = next(row for row in csv.DictReader(file) if row["arm"] == "central")
    assert (row["local_steps_low"], row["steps_in_a_row_high"]) == ("2880", "2880")
    assert (float(row["wall_clock_seconds"]), row["bytes"]) == (pytest.approx(16.0), "34250320")
    costs = (folder / "tables" / "costs.tex").read_text()
    assert r"Centralised & 2880 & 2880 & 16.0 & 34.3 \\" in costs
    assert ",720,720,720,720" in (folder / "tables" / "arms.csv").read_text()
    assert r"& 720 & 720 \\" in (folder / "tables" / "arms.tex").read_text()
