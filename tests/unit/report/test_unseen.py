"""Hospitals that did not take part: whose scores, on which tasks, and what the page says."""

import csv
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from grandrounds.cli.output import show
from grandrounds.core.events import GroupPolicy, PolicySet
from grandrounds.core.journal import Journal
from grandrounds.report.analysis.cross_site import LeftOut, left_out, overall
from grandrounds.report.analysis.facts import read_facts
from grandrounds.report.page.html import write_report
from grandrounds.report.prose.generalisation import personal, sentence
from tests.helpers.run_folders import (
    FEDAVG,
    PFLSYNTH,
    Plan,
    leave_out,
    real,
    run_folder,
    write_comparison,
    write_run,
    write_unseen,
)

TASK = "T1w->T2w"


def compared(tmp_path: Path, *arms: Plan, seeds: tuple[int, ...] = (7,)) -> Path:
    """Write a comparison, each arm of which loses 1 dB at Alder and 2 dB at Birch."""
    folder = write_comparison(tmp_path / "c", arms, seeds=seeds)
    for seed in seeds:
        for plan in (replace(arm, seed=seed) for arm in arms):
            leave_out(folder, plan, "alder", alder=plan.levels["alder"] - 1)
            leave_out(folder, plan, "birch", birch=plan.levels["birch"] - 2)
    return folder


def found_in(folder: Path) -> Mapping[str, list[LeftOut]]:
    facts = read_facts(folder)
    return left_out(facts, facts.arms)


def test_what_taking_part_brings_is_paired_by_patient(tmp_path: Path):
    found = found_in(compared(tmp_path, PFLSYNTH, FEDAVG))
    assert list(found) == ["alder", "birch"]
    one = found["birch"][0]
    assert (one.arm.name, one.without) == ("pflsynth", pytest.approx(21.4))
    assert one.took_part == pytest.approx(23.4)
    assert one.gains == pytest.approx([2.0] * 8)
    assert [each.arm.name for each in found["alder"]] == ["pflsynth", "fedavg"]


def test_only_the_tasks_that_the_model_was_asked_for_are_compared(tmp_path: Path):
    folder = compared(tmp_path, PFLSYNTH)
    scores = run_folder(folder, "pflsynth") / "scores.csv"
    rows = list(csv.reader(scores.read_text().splitlines()))
    for row in rows[1:]:
        row[7] = "99" if row[5] != TASK and row[6] == "psnr" else row[7]
    scores.write_text("\n".join(",".join(row) for row in rows) + "\n")
    assert found_in(folder)["alder"][0].took_part == pytest.approx(25.5)


def test_hospitals_count_alike_in_the_mean(tmp_path: Path):
    [means] = overall(found_in(compared(tmp_path, PFLSYNTH)))
    assert (means.without, means.took_part) == (pytest.approx(22.95), pytest.approx(24.45))
    assert (means.gain.mean, means.gain.better, means.gain.n) == (pytest.approx(1.5), 16, 16)


def test_the_sentence_says_what_taking_part_brings(tmp_path: Path):
    found = found_in(compared(tmp_path, PFLSYNTH))
    metric = read_facts(tmp_path / "c").main_metric
    assert metric
    said = sentence(found, metric).replace("\u00a0", " ")
    assert said.startswith("pFLSynth reached 22.9 dB (PSNR) on average at hospitals that it was ")
    assert said.endswith("taking part brings +1.50 dB, 95 % interval +1.50 to +1.50.")


@pytest.mark.parametrize(("simulated", "patients"), [(True, 16), (False, 8)])
def test_a_seeds_patients_are_its_own_only_where_they_are_simulated(
    tmp_path: Path, simulated: bool, patients: int
):
    plan = PFLSYNTH if simulated else real(PFLSYNTH)
    found = found_in(compared(tmp_path, plan, seeds=(7, 8)))
    assert len(found["alder"][0].gains) == patients


def test_a_seed_that_was_not_trained_without_the_hospital_does_not_count(tmp_path: Path):
    folder = compared(tmp_path, replace(PFLSYNTH, drift=5.0), seeds=(7, 8))
    (run_folder(folder / "without" / "alder", "pflsynth", 8) / "unseen.csv").unlink()
    one = found_in(folder)["alder"][0]
    assert (one.took_part, len(one.gains)) == (pytest.approx(25.5), 8)


def held_out(folder: Path) -> Path:
    """Hold Elder out of a run's study."""
    study = folder / "study.toml"
    site = '\n[[site]]\nname = "dogwood"\ndata = "simulated"\ntasks = []\n'
    study.write_text('holdout_sites = ["dogwood"]\n' + study.read_text() + site)
    return folder


def test_a_hospital_that_never_took_part_has_nothing_beside_it(tmp_path: Path):
    three = replace(PFLSYNTH, sites=("alder", "birch", "cedar"))
    folder = held_out(write_run(tmp_path / "run", three))
    write_unseen(folder, three, {"dogwood": 20.0})
    [one] = found_in(folder)["dogwood"]
    assert (one.without, one.took_part, one.gain) == (pytest.approx(20.0), None, None)
    page = write_report(folder).read_text().replace("\u00a0", " ")
    assert "pflsynth reached 20.0 dB at Dogwood (PSNR), which never took part." in page
    assert "<td>never</td>" in page


def test_a_held_out_hospital_is_taken_from_the_run_that_trained_with_all_others(tmp_path: Path):
    three = replace(PFLSYNTH, sites=("alder", "birch", "cedar"))
    folder = write_comparison(tmp_path / "c", [three])
    write_unseen(held_out(run_folder(folder, "pflsynth")), three, {"dogwood": 20.0})
    leave_out(folder, three, "alder", alder=24.5, dogwood=10.0)
    found = found_in(folder)
    assert [one.without for one in found["dogwood"]] == pytest.approx([20.0])
    assert [one.without for one in found["alder"]] == pytest.approx([24.5])


@pytest.mark.slow
def test_methods_that_keep_a_part_at_the_hospitals_are_named(tmp_path: Path):
    folder = compared(tmp_path, PFLSYNTH, FEDAVG)
    critic = PolicySet(
        (GroupPolicy("decoder", "shared", 24, 9), GroupPolicy("critic", "private", 2, 9)), "none", 9
    )
    Journal(run_folder(folder, "fedavg") / "journal.jsonl").append(critic)
    said = personal(found_in(folder))
    assert said.startswith("pFLSynth keeps a part of the model at each hospital.")
    assert "untrained" in said
    assert said in write_report(folder).read_text()


@pytest.mark.slow
def test_the_page_lists_every_arm_at_every_hospital(tmp_path: Path):
    page = write_report(compared(tmp_path, PFLSYNTH, FEDAVG)).read_text()
    section = page[page.index('<section id="unseen"') : page.index('<section id="learning"')]
    assert section.count('scope="row"') == 2 * 2 + 2
    assert section.count('scope="rowgroup"') == 3
    assert "All hospitals" in section


def test_json_tells_what_taking_part_brings(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = compared(tmp_path, PFLSYNTH)
    show(folder, folder / "report.html", as_json=True, quiet=True)
    told = json.loads(capsys.readouterr().out)["arms"]["pflsynth"]["unseen"]["birch"]
    assert told["mean"] == pytest.approx(21.4)
    assert told["taking_part_brings"]["mean"] == pytest.approx(2.0)


def test_without_such_scores_there_is_no_section(tmp_path: Path):
    assert 'id="unseen"' not in write_report(write_run(tmp_path / "run", PFLSYNTH)).read_text()
