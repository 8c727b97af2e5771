"""What the report says of topologies, absences, forgetting and fine-tuning."""

import csv
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from grandrounds.core.events import (
    Event,
    Failed,
    GroupPolicy,
    PolicySet,
    SiteExchanged,
    SiteMissed,
    SiteTuned,
    TopologySet,
)
from grandrounds.core.journal import Journal
from grandrounds.core.messages import Train
from grandrounds.report.analysis.arm import Arm
from grandrounds.report.analysis.facts import read_facts
from grandrounds.report.page import charts
from grandrounds.report.page.html import views, write_report
from grandrounds.report.prose import sentences
from grandrounds.runs.loop import run_study as run
from tests.helpers.cycles import SCORES, cycle
from tests.helpers.federation import fail_when, tiny
from tests.helpers.run_folders import (
    ARMS,
    FEDAVG,
    PFLSYNTH,
    run_folder,
    write_comparison,
    write_run,
)

pytestmark = pytest.mark.slow

STAR = TopologySet("star", 13_700_128, "the slowest site's time", {"server": "every update"})
CYCLIC = TopologySet("cyclic", 20_550_192, "the sum of all sites' times", {"sites": "the model"})
DEAD = SiteMissed("cedar", 2, "train", "MemoryError", "too big", "Halve the batch.")


def folder_with(tmp_path: Path, events: Sequence[Event], *, until: int | None = None) -> Path:
    folder = write_run(tmp_path / "run", FEDAVG, until=until)
    journal = Journal(folder / "journal.jsonl")
    for event in events:
        journal.append(event)
    return folder


def arm_with(tmp_path: Path, *events: Event, until: int | None = 3) -> Arm:
    return read_facts(folder_with(tmp_path, events, until=until)).arms[0]


def page_with(tmp_path: Path, *events: Event) -> str:
    return write_report(folder_with(tmp_path, events)).read_text().replace("\u00a0", " ")


def test_the_last_finished_cycle_is_the_matrix(tmp_path: Path):
    arm = arm_with(tmp_path, *cycle(2), *cycle(3, lift=1.0), *cycle(4))
    assert [found.round for found in arm.runs[0].cycles] == [2, 3]
    assert arm.runs[0].cycles[-1].turns == ("alder", "birch", "cedar", "dogwood")
    assert arm.runs[0].cycles[-1].scores["cedar"]["birch"] == 24.0


def test_a_site_loses_what_others_turns_take_from_it(tmp_path: Path):
    [found] = arm_with(tmp_path, *cycle(3)).runs[0].cycles
    assert found.lost == {"alder": 2.5, "birch": 0.0, "cedar": -0.5}
    assert found.mean_lost == pytest.approx(2.0 / 3)


def test_a_site_without_validation_patients_loses_nothing_that_is_known(tmp_path: Path):
    [found] = arm_with(tmp_path, *cycle(3, blind="alder")).runs[0].cycles
    assert list(found.lost) == ["birch", "cedar"]
    assert "alder" not in found.scores["dogwood"]


def test_a_shade_is_a_place_between_a_sites_worst_and_best(tmp_path: Path):
    [found] = arm_with(tmp_path, *cycle(3)).runs[0].cycles
    assert [found.shade(turn, "alder") for turn in SCORES] == [1.0, 0.6, 0.2, 0.0]


def test_forgetting_is_told_hospital_by_hospital(tmp_path: Path):
    arm = arm_with(tmp_path, *cycle(3))
    assert sentences.forgetting_sentence(arm).replace("\u00a0", " ") == (
        "Between its own turn and the end of cycle 3, Alder lost 2.5 dB, Birch lost nothing and "
        "Cedar gained 0.5 dB (PSNR); Dogwood's turn was the last."
    )


def test_the_matrix_says_in_words_what_its_colours_say(tmp_path: Path):
    page = page_with(tmp_path, *cycle(9), *cycle(10, blind="birch"))
    [matrix] = re.findall(r'<table class="matrix">.*?</table>', page, re.DOTALL)
    assert matrix.count('scope="row"') == 4
    assert matrix.count('scope="col"') == 5
    assert matrix.count("its own turn") == 3
    assert matrix.count("no patients to validate on") == 4
    assert "24.50" in matrix
    assert 'href="#forgetting"' in page


def test_forgetting_over_cycles_is_a_line(tmp_path: Path):
    folder = folder_with(tmp_path, [*cycle(9), *cycle(10)])
    chart = charts.forgetting_chart(read_facts(folder))
    assert chart is not None
    assert chart.description.endswith("fedavg from 0.667 to 0.667.")
    assert len(chart.lines[0].points.split()) == 2


def test_one_cycle_is_no_line_and_no_cycle_is_no_section(tmp_path: Path):
    assert charts.forgetting_chart(read_facts(folder_with(tmp_path / "a", cycle(10)))) is None
    assert "forgetting" not in page_with(tmp_path / "b", STAR)


def test_the_page_says_who_sees_what_and_what_a_round_costs(tmp_path: Path):
    page = page_with(tmp_path, CYCLIC)
    assert "Who sees what" in page
    assert '<td class="left">cyclic</td><td class="left">20.6 MB</td>' in page
    assert "the sum of all sites&#39; times" in page


def test_arms_over_one_topology_share_a_table_of_who_sees_what(tmp_path: Path):
    folder = write_comparison(tmp_path / "c", ARMS[:3])
    kinds = {"pflsynth": STAR, "fedavg": STAR, "local": replace(STAR, bytes_per_round=0)}
    for name, topology in kinds.items():
        Journal(run_folder(folder, name) / "journal.jsonl").append(topology)
    [view] = views(read_facts(folder))
    assert view.arms == ("pFLSynth", "FedAvg")
    assert '<td class="left">none</td>' in write_report(folder).read_text()


def test_who_did_not_answer_is_listed_with_the_reason(tmp_path: Path):
    plan = replace(FEDAVG, absent={"cedar": (2, 3)})
    folder = write_run(tmp_path / "run", plan)
    for event in (DEAD, replace(DEAD, round=3)):
        Journal(folder / "journal.jsonl").append(event)
    [found] = read_facts(folder).arms[0].runs[0].absences
    assert sentences.absence(found) == (
        "Cedar in rounds 2 and 3 (train): MemoryError: too big. Halve the batch."
    )
    page = write_report(folder).read_text()
    assert "Cedar missed rounds 2 and 3." in page
    assert "MemoryError: too big" in page


def test_a_site_that_was_too_late_took_no_part(tmp_path: Path):
    late = SiteMissed("alder", 2, "train", "TimeoutError", "answered after 9.0 s", "")
    arm = arm_with(tmp_path, late)
    work = {work.site: work for work in arm.runs[0].work}
    assert (work["alder"].rounds, work["alder"].steps) == ((1, 3), 2 * 72)
    assert work["alder"].bytes_up == work["birch"].bytes_up


def test_a_leader_that_failed_to_merge_trained_all_the_same(tmp_path: Path):
    arm = arm_with(tmp_path, replace(DEAD, stage="merge"))
    assert sentences.took_part(arm) == "Every hospital took part in every round (3)."
    assert len(arm.runs[0].absences) == 1


def test_what_sites_send_beside_training_is_counted(tmp_path: Path):
    before = {work.site: work for work in arm_with(tmp_path / "a").runs[0].work}
    exchanged = SiteExchanged(3, "birch", "merge", 0.1, 500, 70)
    unfinished = replace(exchanged, round=9)
    arm = arm_with(tmp_path / "b", exchanged, unfinished, *cycle(3))
    after = {work.site: work for work in arm.runs[0].work}
    assert after["birch"].bytes_up == before["birch"].bytes_up + 500
    assert after["birch"].bytes_down == before["birch"].bytes_down + 70 + 4 * 100


def played(folder: Path, *overrides: str) -> Arm:
    """Run a tiny study, and see that the report counts what its table of rounds counts."""
    run(tiny(*overrides, 'method={kind="fedavg"}', sites=3), folder)
    arm = read_facts(folder).arms[0]
    with (folder / "rounds.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for work in arm.runs[0].work:
        own = [row for row in rows if row["site"] == work.site]
        assert work.bytes_up == sum(int(row["bytes_up"] or 0) for row in own) > 0
        assert work.bytes_down == sum(int(row["bytes_down"] or 0) for row in own) > 0
        assert work.rounds == tuple(int(r["round"]) for r in own if r["took_part"] == "True")
    return arm


def test_a_real_swarm_is_counted_as_in_its_table(tmp_path: Path):
    arm = played(tmp_path, "topology.kind=swarm")
    assert arm.runs[0].topology is not None
    assert arm.runs[0].topology.kind == "swarm"


def test_a_real_cycle_is_counted_as_in_its_table_and_watched_whole(tmp_path: Path):
    arm = played(tmp_path, "topology.kind=cyclic")
    assert [found.round for found in arm.runs[0].cycles] == [1, 2, 3]
    assert all(len(row) == 3 for found in arm.runs[0].cycles for row in found.scores.values())


def test_a_real_quorum_is_counted_as_in_its_table_and_names_who_was_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    fail_when(
        monkeypatch,
        lambda site, request: isinstance(request, Train) and (site, request.round) == ("birch", 2),
    )
    arm = played(tmp_path, "topology.require=2")
    assert sentences.took_part(arm) == "Birch missed round 2."
    assert [sentences.absence(found) for found in arm.runs[0].absences] == [
        "Birch in round 2 (train): ValueError: out of luck."
    ]


def test_a_fine_tuned_copy_is_told(tmp_path: Path):
    tuned = [SiteTuned(10, site, 1.0, 12, "ab" * 32) for site in ("alder", "birch")]
    page = page_with(tmp_path, *tuned)
    said = "own fine-tuned copy was tested: it trained the model of round 10 on for itself alone"
    assert page.count(said) == 2
    assert "(Alder 12 steps and Birch 12 steps)" in page


def test_every_policy_of_a_group_is_told(tmp_path: Path):
    groups = tuple(
        GroupPolicy(name, kind, 1, 1000)
        for name, kind in [
            ("decoder", "shared"),
            ("encoder", "partly shared"),
            ("running statistics", "reset"),
            ("head", "private"),
        ]
    )
    arm = arm_with(tmp_path, PolicySet(groups, "reset", 1))
    assert sentences.policy_sentence(arm) == (
        "Travels each round: decoder (1,000); travels in part: encoder (1,000); starts anew in "
        "every round, at each hospital: running statistics (1,000); stays at the hospital: "
        "head (1,000) (in brackets: numbers of parameters)."
    )


def test_pooled_data_are_no_federation(tmp_path: Path):
    folder = write_run(tmp_path / "run", replace(PFLSYNTH, method="central", steps=1))
    arm = read_facts(folder).arms[0]
    assert "lie in one place" in sentences.policy_sentence(arm)
    assert not arm.federated


def test_where_a_run_failed_is_in_the_record(tmp_path: Path):
    failed = Failed("alder", 4, "train", "ValueError", "no", "", ("site.py: line 3", "x = y"))
    folder = folder_with(tmp_path, [failed], until=3)
    assert "site.py: line 3\nx = y" in write_report(folder).read_text()
