"""Seeds and patients: what counts as one, and on what two arms are compared."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from grandrounds.report.analysis.arm import Arm
from grandrounds.report.analysis.facts import against, arm_differences, read_facts, shared_seeds
from grandrounds.report.analysis.metrics import METRICS
from tests.helpers.run_folders import (
    ALONE_PLAIN,
    ARMS,
    FEDAVG,
    PFLSYNTH,
    Plan,
    real,
    run_folder,
    write_comparison,
)

PSNR = METRICS["psnr"]
TASK = "T1w->T2w"
RISING = replace(PFLSYNTH, drift=1.0)  # each seed is 1 dB better than the one before


def arm(folder: Path, plan: Plan = RISING, seeds: tuple[int, ...] = (7, 8, 9)) -> Arm:
    return read_facts(write_comparison(folder, [plan], seeds=seeds)).arms[0]


def test_with_another_seed_a_simulated_site_has_other_patients(tmp_path: Path):
    found = arm(tmp_path / "c").units("alder", "psnr", task=TASK)
    assert len(found) == 24
    assert found[9, "alder-3"] - found[7, "alder-3"] == pytest.approx(2.0)


def test_with_another_seed_a_real_site_has_the_same_patients(tmp_path: Path):
    found = arm(tmp_path / "c", real(RISING))
    assert len(found.units("alder", "psnr", task=TASK)) == 8
    one = found.units("alder", "psnr", task=TASK, seeds=(7,))
    several = found.units("alder", "psnr", task=TASK)
    assert several[None, "alder-3"] - one[None, "alder-3"] == pytest.approx(1.0)


def test_the_mean_moves_with_the_seeds_and_so_does_its_deviation(tmp_path: Path):
    found = arm(tmp_path / "c")
    overall = found.overall("psnr")
    assert overall is not None
    assert overall.mean == pytest.approx(24.225 + 1)
    assert list(found.overall_by_seed("psnr")) == [7, 8, 9]
    assert found.seed_sd("psnr") == pytest.approx(1.0)


def test_one_seed_has_no_deviation(tmp_path: Path):
    assert arm(tmp_path / "c", seeds=(7,)).seed_sd("psnr") is None


def test_arms_are_compared_on_the_seeds_that_both_have(tmp_path: Path):
    folder = write_comparison(tmp_path / "c", [RISING, replace(FEDAVG, drift=1.0)], seeds=(7, 8, 9))
    (run_folder(folder, "fedavg", 9) / "scores.csv").unlink()
    shutil.rmtree(run_folder(folder, "pflsynth", 7))
    ours, theirs = read_facts(folder).arms
    assert shared_seeds(ours, theirs) == (8,)
    found = arm_differences(ours, theirs, site="alder", metric=PSNR)
    assert len(found) == 8
    assert sum(found) / 8 == pytest.approx(1.0)  # not 2, which all seeds together would give


def test_an_arm_without_a_common_seed_is_not_compared(tmp_path: Path):
    folder = write_comparison(tmp_path / "c", [PFLSYNTH, FEDAVG], seeds=(7, 8))
    shutil.rmtree(run_folder(folder, "pflsynth", 7))
    (run_folder(folder, "fedavg", 8) / "scores.csv").unlink()
    assert read_facts(folder).compared == {}


def test_real_patients_are_paired_after_averaging_over_common_seeds(tmp_path: Path):
    plans = [real(RISING), real(replace(FEDAVG, drift=0.5))]
    ours, theirs = read_facts(write_comparison(tmp_path / "c", plans, seeds=(7, 8))).arms
    found = arm_differences(ours, theirs, site="birch", metric=PSNR)
    assert len(found) == 8
    assert sum(found) / 8 == pytest.approx(23.4 - 21.3 + 0.25)


def test_tests_are_corrected_over_the_arms_that_are_compared(tmp_path: Path):
    facts = read_facts(write_comparison(tmp_path / "c"))
    found = against(facts.arms[0], facts.arms[1:], sites=("cedar",), metric=PSNR)
    assert {name: d.paired.p for name, d in found.items()} == pytest.approx(
        dict.fromkeys(found, 2 / 2**8)
    )
    assert {d.corrected for d in found.values()} == {3 * 2 / 2**8}


def test_sites_count_alike_whatever_their_patients(tmp_path: Path):
    folder = write_comparison(tmp_path / "c", [PFLSYNTH, FEDAVG])
    for name in ("pflsynth", "fedavg"):
        path = run_folder(folder, name) / "scores.csv"
        lines = path.read_text().splitlines()
        kept = [line for line in lines if "alder" not in line or ",alder-0," in line]
        path.write_text("\n".join(kept) + "\n")
    facts = read_facts(folder)
    found = facts.compared["fedavg"].paired
    # Alder keeps one patient of eight: 1.0 + 0.35 - 0.1; the other sites' differences stay.
    assert found.mean == pytest.approx((1.25 + 2.1 + 4.7 + 0.5) / 4)
    assert found.interval is None
    assert found.n == 25


@pytest.mark.slow
def test_sites_that_are_better_off_alone_are_counted(tmp_path: Path):
    facts = read_facts(write_comparison(tmp_path / "c"))
    assert [facts.num_worse_than_alone(one) for one in facts.arms] == [1, 4, 4, 0]


def test_without_local_arms_nothing_is_counted(tmp_path: Path):
    facts = read_facts(write_comparison(tmp_path / "c", ARMS[:2]))
    assert facts.num_worse_than_alone(facts.arms[0]) is None
    assert facts.gains is None


@pytest.mark.slow
def test_gains_are_sorted_by_what_can_be_claimed(tmp_path: Path):
    gains = read_facts(write_comparison(tmp_path / "c")).gains
    assert gains is not None
    assert list(gains.lost()) == ["birch"]
    assert list(gains.won()) == ["cedar", "dogwood"]
    assert list(gains.undecided()) == ["alder"]
    assert list(gains.untested()) == []
    assert gains.overall.mean == pytest.approx(0.15)


def test_a_local_protagonist_gains_over_nobody(tmp_path: Path):
    facts = read_facts(write_comparison(tmp_path / "c", [ALONE_PLAIN, FEDAVG]))
    assert facts.gains is None
    assert facts.compared["fedavg"].paired.mean > 0
