"""A few sentences that claim no more than the numbers do."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from grandrounds.report.analysis.facts import read_facts
from grandrounds.report.prose.summary import summary_sentences
from grandrounds.report.prose.vocabulary import MINUS
from tests.helpers.run_folders import (
    ALONE_PLAIN,
    ALONE_SAME,
    ARMS,
    FEDAVG,
    PFLSYNTH,
    Plan,
    real,
    write_comparison,
    write_run,
)

LOW = replace(PFLSYNTH, levels={site: level - 3 for site, level in PFLSYNTH.levels.items()})
DITTO = replace(
    FEDAVG,
    name="ditto",
    title="Ditto",
    method="ditto",
    levels={site: level + 0.6 for site, level in PFLSYNTH.levels.items()},
)


def said(folder: Path, arms: Sequence[Plan] = ARMS, *, seeds: Sequence[int] = (7,)) -> list[str]:
    facts = read_facts(write_comparison(folder, arms, seeds=seeds))
    return [told.replace("\u00a0", " ").replace(MINUS, "-") for told in summary_sentences(facts)]


@pytest.mark.slow
def test_six_sentences_say_it_all(tmp_path: Path):
    assert said(tmp_path / "c") == [
        "The hospitals do clearly better together, with pFLSynth, than each alone: the typical "
        "error of an image is about 1.7 % smaller; but Birch would do better alone.",
        "Beside each hospital's best local-only model, by PSNR and with 95 % intervals, pFLSynth "
        "clearly loses at 1 of 4 hospitals: Birch (-0.30 dB, -0.49 to -0.11); it clearly gains at "
        "2 of 4 hospitals: Cedar (+0.30 dB, +0.11 to +0.49) and Dogwood (+0.40 dB, +0.21 to "
        "+0.59); it shows no clear difference at 1 of 4 hospitals: Alder (+0.20 dB, +0.01 to "
        "+0.39); it is clearly better on average over hospitals (+0.15 dB, +0.07 to +0.24).",
        "On average over hospitals it is clearly better than FedAvg, the best other federated arm "
        "(+2.08 dB, 95 % interval +2.00 to +2.17).",
        "Its worst hospital is Birch with 23.4 dB, where the best local-only model reaches "
        "23.7 dB; its hospitals lie 2.1 dB apart, those of FedAvg 4.6 dB.",
        "This rests on 32 test patients at 4 hospitals and one random seed, with 95 % bootstrap "
        "intervals and Wilcoxon signed-rank tests over patients; a difference is called clear "
        "where its interval leaves out zero and its p, after Holm's correction for comparing 3 "
        "arms, is below 0.05.",
        "It cannot say how the models do at other hospitals, on other scanners or in patients' "
        "care, nor how they do on real patients, for the images are simulated, nor what another "
        "random seed would change, nor how far the rivals owe their rank to being picked on these "
        "same patients.",
    ]


@pytest.mark.slow
def test_a_protagonist_that_loses_on_average_says_so_first(tmp_path: Path):
    [_, lead, *_] = said(tmp_path / "c", [LOW, *ARMS[1:]])
    assert "pFLSynth is clearly worse on average over hospitals (-2.85 dB" in lead
    assert "it clearly loses at all 4 hospitals: Birch (-3.30 dB" in lead


@pytest.mark.slow
def test_the_rival_that_wins_is_named_before_the_one_that_loses(tmp_path: Path):
    sentence = said(tmp_path / "c", [*ARMS, DITTO])[2]
    assert sentence.startswith(
        "On average over hospitals it is clearly worse than Ditto, the best other federated arm"
    )
    assert "and clearly better than FedAvg (+2.08 dB" in sentence


def test_equal_arms_are_not_called_different(tmp_path: Path):
    twin = replace(ALONE_PLAIN, name="twin", title="Twin", method="fedprox")
    [_, lead, second, *_] = said(tmp_path / "c", [twin, FEDAVG, ALONE_PLAIN])
    assert "has too few patients to tell at all 4 hospitals" in lead
    assert "not clearly different on average" in lead
    assert second.startswith("On average over hospitals it is clearly better than FedAvg")


def test_a_large_difference_of_few_patients_is_no_claim(tmp_path: Path):
    few = [replace(plan, patients=5) for plan in (LOW, *ARMS[1:])]
    found = said(tmp_path / "c", few)
    assert "has too few patients to tell at all 4 hospitals: Birch (-3.2" in found[1]
    assert "clearly loses" not in found[1]
    assert found[4].endswith(
        "Birch, Alder, Cedar and Dogwood had fewer than the 6 differing patients that a test needs."
    )


def test_without_any_test_nothing_is_called_clear_or_unclear(tmp_path: Path):
    found = said(tmp_path / "c", [replace(plan, patients=1, pictured=(0,)) for plan in ARMS])
    assert found[1] == (
        "Beside each hospital's best local-only model, by PSNR, pFLSynth has Alder (+0.45 dB), "
        "Birch (-0.05 dB), Cedar (+0.55 dB) and Dogwood (+0.65 dB); on average over hospitals "
        "+0.40 dB."
    )
    assert found[2].startswith("On average over hospitals it is +2.33 dB beside FedAvg")
    assert found[4].endswith(
        "4 hospitals and one random seed; that is too few for a statistical test."
    )
    assert "clear" not in " ".join(found)


@pytest.mark.slow
def test_several_seeds_are_counted_with_their_patients(tmp_path: Path):
    found = said(tmp_path / "c", seeds=(7, 8, 9))
    assert "96 test patients at 4 hospitals and 3 random seeds" in found[4]
    assert "another random seed" not in found[5]


@pytest.mark.slow
def test_real_patients_are_the_same_with_every_seed(tmp_path: Path):
    found = said(tmp_path / "c", [real(plan) for plan in ARMS], seeds=(7, 8, 9))
    assert "32 test patients at 4 hospitals and 3 random seeds" in found[4]
    assert "simulated" not in found[5]


def test_without_local_arms_nobody_is_said_to_gain(tmp_path: Path):
    found = said(tmp_path / "c", [PFLSYNTH, FEDAVG])
    assert found[1].startswith("pFLSynth reached 24.2 dB (PSNR, 95 % interval 23.9")
    assert "nothing here says who gains" in found[1]
    assert len(found) == 6


def test_without_a_rival_nothing_is_compared(tmp_path: Path):
    found = said(tmp_path / "c", [PFLSYNTH, ALONE_SAME])
    assert found[2] == "No other federated arm was tested, so nothing compares it with one."


def test_a_run_without_federation_says_so(tmp_path: Path):
    facts = read_facts(write_run(tmp_path / "run", ALONE_SAME))
    assert summary_sentences(facts)[1].endswith(
        "each hospital trained alone, and nothing was shared."
    )
    assert len(summary_sentences(facts)) == 6


def test_an_unfinished_run_says_how_far_it_is(tmp_path: Path):
    facts = read_facts(write_run(tmp_path / "run", PFLSYNTH, until=4))
    assert summary_sentences(facts) == [
        "There is no complete set of test scores yet.",
        "pflsynth, seed 7: Not finished: 4 of 10 rounds done so far. It has no test scores.",
    ]


@pytest.mark.parametrize("sites", [("alder",), ("alder", "birch")])
def test_any_number_of_hospitals_reads_well(tmp_path: Path, sites: tuple[str, ...]):
    found = said(tmp_path / "c", [replace(LOW, sites=sites), replace(ALONE_PLAIN, sites=sites)])
    where = "the only hospital" if len(sites) == 1 else "all 2 hospitals"
    assert f"clearly loses at {where}: " in found[1]
