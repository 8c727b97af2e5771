"""The report of segmentation, classification and tables: nothing of it assumes synthesis."""

import csv
import json
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from grandrounds.cli.output import show
from grandrounds.core.run_folder import SCORE_COLUMNS
from grandrounds.report.analysis.auc import Discrimination
from grandrounds.report.analysis.facts import Facts, read_facts
from grandrounds.report.page.html import write_report
from grandrounds.report.prose import sentences as verdicts
from grandrounds.report.prose.summary import summary_sentences
from grandrounds.runs.loop import run_study as run
from grandrounds.study.file import example, read_study
from tests.helpers.run_folders import ALONE_PLAIN, FEDAVG, Plan, run_folder, write_arms, write_run

TASK = "CXR->pneumonia"
Row = tuple[str, str, str, float, float]  # site, patient, case, probability, label
PERFECT = [
    (site, f"p{n}", "1", 0.1 * n, float(n > 4)) for site in ("alder", "birch") for n in range(9)
]
SWAPPED = [(site, p, c, 0.55 if p == "p3" else x, y) for site, p, c, x, y in PERFECT]
ONE_CLASS = [("cedar", f"p{n}", "1", 0.2, 0.0) for n in range(3)]


def classified(folder: Path, rows: Iterable[Row], *, task: str = TASK, plan: Plan = FEDAVG) -> Path:
    """Write a run of a classification, with these test cases."""
    rows = list(rows)
    sites = tuple(dict.fromkeys(row[0] for row in rows))
    write_run(folder, replace(plan, sites=sites))
    text = (folder / "study.toml").read_text().replace("synthesis", "classification")
    (folder / "study.toml").write_text(f'{text}\n[elements]\nvariables = ["age", "pneumonia"]\n')
    with (folder / "scores.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(SCORE_COLUMNS)
        for site, patient, case, probability, label in rows:
            right = float((probability >= 0.5) == (label > 0))
            values = {"log_loss": abs(label - probability), "accuracy": right}
            for name, value in (values | {"probability": probability, "label": label}).items():
                writer.writerow([plan.name, 7, site, patient, case, task, name, value, 10])
    return folder


def compared(folder: Path) -> Facts:
    classified(run_folder(folder, "fedavg"), PERFECT)
    classified(run_folder(folder, "local-plain"), SWAPPED, plan=ALONE_PLAIN)
    write_arms(folder, (FEDAVG, ALONE_PLAIN))
    return read_facts(folder)


def found(folder: Path, site: str, task: str = TASK) -> Discrimination:
    return read_facts(folder).arms[0].discrimination[site, task]


def test_probabilities_and_labels_are_no_scores(tmp_path: Path):
    facts = read_facts(classified(tmp_path / "run", PERFECT))
    assert [metric.label for metric in facts.metrics] == ["Log loss", "Accuracy"]


@pytest.mark.parametrize(
    ("pairs", "auc"),
    [
        ([(0.1, 0), (0.4, 0), (0.35, 1), (0.8, 1)], 0.75),
        ([(0.5, 0), (0.5, 1)], 0.5),
        ([(0.2, 1), (0.2, 0), (0.9, 1), (0.1, 0)], 0.875),
        ([(0.9, 0), (0.1, 1)], 0.0),
    ],
)
def test_an_auc_is_the_share_of_pairs_in_the_right_order(
    tmp_path: Path, pairs: list[tuple[float, float]], auc: float
):
    rows = [("alder", f"p{n}", "1", p, y) for n, (p, y) in enumerate(pairs)]
    assert found(classified(tmp_path / "run", rows), "alder").auc == auc


def test_cases_of_a_patient_count_once_where_the_target_is_the_patient_s(tmp_path: Path):
    rows = [("alder", "a", str(n), p, 1.0) for n, p in enumerate((0.9, 0.1))]
    rows += [("alder", "b", "0", 0.3, 0.0), ("alder", "c", "0", 0.6, 0.0)]
    by_patient = found(classified(tmp_path / "a", rows), "alder")
    assert (by_patient.auc, by_patient.positives, by_patient.cases) == (0.5, 1, 3)
    lesions = classified(tmp_path / "b", rows, task="FLAIR->lesion")
    by_case = found(lesions, "alder", "FLAIR->lesion")
    assert (by_case.auc, by_case.positives, by_case.cases) == (0.5, 2, 4)


def test_an_interval_holds_the_value_and_is_the_same_each_time(tmp_path: Path):
    first = found(classified(tmp_path / "a", SWAPPED), "alder")
    again = found(classified(tmp_path / "b", SWAPPED), "alder")
    assert first == again
    assert first.low is not None
    assert first.auc is not None
    assert first.high is not None
    assert 0.5 < first.low < first.auc <= first.high == 1.0


def test_the_hospitals_between_which_an_auc_lies_are_named(tmp_path: Path):
    rows = [row for row in PERFECT if row[0] == "alder"]
    rows += [row for row in SWAPPED if row[0] == "birch"]
    facts = read_facts(classified(tmp_path / "run", rows))
    assert verdicts.discrimination(facts, facts.arms[0]).endswith(
        "was 0.97 on average over 2 hospitals, from 0.95 at Birch to 1.00 at Alder "
        "(0.5 is guessing)."
    )


@pytest.mark.slow
def test_where_one_class_is_missing_there_is_no_auc_and_the_page_says_so(tmp_path: Path):
    folder = classified(tmp_path / "run", [*PERFECT, *ONE_CLASS])
    assert found(folder, "cedar") == Discrimination(0, 3, None)
    facts = read_facts(folder)
    assert verdicts.discrimination(facts, facts.arms[0]) == (
        "The AUC of fedavg was 1.00 on average over 2 hospitals (0.5 is guessing). "
        "There is no AUC at Cedar: all test cases are of one class."
    )
    assert "none: one class only" in write_report(folder).read_text()


def test_lower_is_better_reads_as_better(tmp_path: Path):
    facts = compared(tmp_path / "c")
    assert facts.gains is not None
    assert facts.gains.overall.mean == pytest.approx((0.55 - 0.3) / 9)
    [first, lead, *_] = [said.replace("\u00a0", " ") for said in summary_sentences(facts)]
    assert "is typically about 3 % higher" in first
    assert lead.startswith("Beside each hospital's best local-only model, by Log loss, FedAvg has")
    assert "Alder (+0.028, 0.000 to +0.083)" in lead
    assert "clear" not in lead  # all but one patient score the same, so there is no test


@pytest.mark.slow
def test_a_page_of_classification_shows_auc_and_no_pictures(tmp_path: Path):
    compared(tmp_path / "c")
    page = write_report(tmp_path / "c").read_text().replace("\u00a0", " ")
    assert "<td>4 of 9</td><td>4 of 9</td>" in page
    assert "in pictures" not in page
    assert "PSNR" not in page
    assert "<dt>Gain over training alone</dt><dd>+0.028</dd>" in page


@pytest.mark.slow
def test_a_table_of_classification_has_the_lower_log_loss_in_bold_and_the_auc(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    compared(tmp_path / "c")
    show(tmp_path / "c", tmp_path / "c" / "report.html", as_json=False, quiet=False)
    said = capsys.readouterr().out
    assert "Test Log loss, mean over patients" in said
    assert "Test AUC, and its 95 % interval over patients" in said
    show(tmp_path / "c", tmp_path / "c" / "report.html", as_json=True, quiet=False)
    told = json.loads(capsys.readouterr().out)["arms"]["fedavg"]["auc"]["alder"][TASK]
    assert told["auc"] == 1.0


@pytest.mark.slow
def test_a_real_segmentation_is_reported_in_its_own_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    overrides = ["rounds=1", "training.epochs=1", 'method={kind="fedavg"}']
    run(read_study(example("segmentation"), overrides), tmp_path)
    page = write_report(tmp_path).read_text().replace("\u00a0", " ")
    assert re.search(
        r"FedAvg reached 0\.\d\d \(Dice, 95 % interval 0\.\d+ to 0\.\d+\) on average", page
    )
    for said in (
        "HD95 in slices, mm",
        "Reference outline",
        "Outline drawn by FedAvg",
        "validation Dice",
    ):
        assert said in page
    for foreign in ("PSNR", " dB", "ynthesised"):
        assert foreign not in page
    show(tmp_path, tmp_path / "report.html", as_json=False, quiet=False)
    assert "Test Dice, mean over patients" in capsys.readouterr().out
    assert "Median patient" in page or "only patient" in page


@pytest.mark.slow
def test_an_auc_over_seeds_is_their_mean_with_their_range(tmp_path: Path):
    classified(run_folder(tmp_path, "fedavg", 7), PERFECT)
    classified(run_folder(tmp_path, "fedavg", 8), SWAPPED, plan=replace(FEDAVG, seed=8))
    write_arms(tmp_path, [FEDAVG], seeds=(7, 8))
    found = read_facts(tmp_path).arms[0].discrimination["alder", TASK]
    assert (found.low, found.auc, found.high) == (0.95, pytest.approx(0.975), 1.0)
    assert (found.positives, found.cases) == (8, 18)
    assert "mean over seeds, from the lowest seed to the highest" in (
        write_report(tmp_path).read_text()
    )


def test_seeds_of_one_class_have_no_auc(tmp_path: Path):
    classified(run_folder(tmp_path, "fedavg", 7), ONE_CLASS)
    classified(run_folder(tmp_path, "fedavg", 8), ONE_CLASS, plan=replace(FEDAVG, seed=8))
    write_arms(tmp_path, [FEDAVG], seeds=(7, 8))
    arm = read_facts(tmp_path).arms[0]
    assert arm.discrimination["cedar", TASK] == Discrimination(0, 6, None)


def segmented(folder: Path, cases: Iterable[tuple[str, float, float]], plan: Plan) -> Path:
    """Write a run of a segmentation, with these patients, their Dice and share of empty masks."""
    write_run(folder, replace(plan, sites=("alder",)))
    text = (folder / "study.toml").read_text().replace("synthesis", "segmentation")
    (folder / "study.toml").write_text(text)
    with (folder / "scores.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(SCORE_COLUMNS)
        for patient, dice, empty in cases:
            values = {"dice": dice} | ({"empty": empty} if empty else {})
            for name, value in values.items():
                row = (plan.name, plan.seed, "alder", patient, "1", "T1w->lesion", name, value, 10)
                writer.writerow(row)
    return folder


EMPTIED = [("p1", 1.0, 1.0), ("p2", 1.0, 1.0), ("p3", 0.0, 0.5), ("p4", 0.6, 0.0), ("p5", 0.4, 0.0)]


def test_cases_with_an_empty_structure_are_counted_and_scored_beside_the_others(tmp_path: Path):
    """ivadomed/ms-challenge-2021#23: a Dice of 1 for rightly nothing says nothing of outlines."""
    segmented(run_folder(tmp_path, "fedavg"), EMPTIED, FEDAVG)
    all_empty = [("p1", 1.0, 1.0), ("p2", 0.0, 1.0)]
    segmented(run_folder(tmp_path, "local-plain"), all_empty, ALONE_PLAIN)
    write_arms(tmp_path, (FEDAVG, ALONE_PLAIN))
    first, second = (arm.empty for arm in read_facts(tmp_path).arms)
    assert first
    assert (len(first.empty), first.total, first.mean) == (3, 5, pytest.approx(2 / 3))
    assert first.mean_of_others == pytest.approx(0.5)
    assert second
    assert second.mean_of_others is None
    page = write_report(tmp_path).read_text("utf-8")
    assert "<td>3 of 5</td><td>0.67</td><td>0.50</td>" in page
    assert "<td>2 of 2</td><td>0.50</td><td>no case</td>" in page


def test_seeds_are_put_together_where_cases_are_empty(tmp_path: Path):
    for seed in (7, 8):
        plan = replace(FEDAVG, seed=seed)
        segmented(run_folder(tmp_path, "fedavg", seed), EMPTIED, plan)
    write_arms(tmp_path, (FEDAVG,), seeds=(7, 8))
    [arm] = read_facts(tmp_path).arms
    assert arm.empty
    assert (len(arm.empty.empty), arm.empty.total) == (6, 10)


def test_a_page_without_empty_structures_speaks_of_none(tmp_path: Path):
    segmented(tmp_path / "run", [("p1", 0.5, 0.0)], FEDAVG)
    assert "empty structure" not in write_report(tmp_path / "run").read_text("utf-8")
