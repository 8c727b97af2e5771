import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from grandrounds.core.events import Failed, Interrupted, RoundLost, RunResumed, StoppedEarly
from grandrounds.core.journal import Journal
from grandrounds.report.analysis.facts import Facts, read_facts
from grandrounds.report.analysis.metrics import METRICS
from grandrounds.report.analysis.statistics import Interval
from grandrounds.report.page.html import render_page
from grandrounds.report.prose import sentences
from grandrounds.report.prose import sentences as verdicts
from grandrounds.report.prose import vocabulary as words
from tests.helpers.run_folders import (
    ARMS,
    FEDAVG,
    PFLSYNTH,
    real,
    run_folder,
    write_arms,
    write_comparison,
    write_run,
)


def plain(said: list[str]) -> str:
    return " ".join(said).replace("\u00a0", " ").replace(words.MINUS, "-")


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> Facts:
    return read_facts(write_comparison(tmp_path_factory.mktemp("comparison")))


@pytest.mark.slow
def test_a_hospital_that_loses_reads_so_first(facts: Facts):
    assert plain(verdicts.verdict(facts, "birch")) == (
        "Birch would have been better off alone. "
        "Trained alone, the best model reached 23.7 dB (PSNR): Local-only (plain generator). "
        "pFLSynth: -0.30 dB, 95 % interval -0.49 to -0.11; better for 0 of 8 test patients. "
        "FedAvg: -2.40 dB, 95 % interval -2.40 to -2.40; better for 0 of 8 test patients."
    )


def test_a_hospital_that_gains_reads_so(facts: Facts):
    said = plain(verdicts.verdict(facts, "cedar"))
    assert "better off alone" not in said
    assert "pFLSynth: +0.30 dB, 95 % interval +0.11 to +0.49; better for 8 of 8" in said


def test_without_local_arms_a_hospital_has_no_verdict(tmp_path: Path):
    facts = read_facts(write_comparison(tmp_path / "c", [PFLSYNTH, FEDAVG]))
    assert verdicts.verdict(facts, "alder") == []


@pytest.mark.parametrize(
    ("event", "said"),
    [
        (StoppedEarly(4, 2), "Stopped early after 4 of 10 rounds: nothing improved after round 2."),
        (Interrupted(4), "Interrupted by a person after 4 of 10 rounds; it can be resumed."),
        (
            Failed("alder", 5, "train", "MemoryError", "too big", "Halve the batch."),
            "Failed after 4 of 10 rounds: in round 5 at Alder (train), MemoryError: too big. "
            "Halve the batch.",
        ),
    ],
)
def test_an_ending_is_told(tmp_path: Path, event: StoppedEarly | Interrupted | Failed, said: str):
    folder = write_run(tmp_path / "run", PFLSYNTH, until=4)
    Journal(folder / "journal.jsonl").append(event)
    assert sentences.progress_sentence(read_facts(folder).arms[0]) == said


def test_simulated_data_is_always_told(facts: Facts):
    assert sentences.simulated(facts).startswith("All 4 hospitals are simulated")


def test_real_data_is_not_called_simulated(tmp_path: Path):
    facts = read_facts(write_run(tmp_path / "run", real(PFLSYNTH)))
    assert sentences.simulated(facts) == ""


def test_absences_are_named(tmp_path: Path):
    plan = replace(PFLSYNTH, absent={"cedar": (3, 4), "alder": (1,)})
    arm = read_facts(write_run(tmp_path / "run", plan)).arms[0]
    assert sentences.took_part(arm) == "Alder missed round 1; Cedar missed rounds 3 and 4."


def test_a_saved_round_that_a_resume_could_not_use_is_told_once_and_its_words_are_text(
    tmp_path: Path,
):
    folder = write_run(tmp_path / "run", PFLSYNTH, until=6)
    journal, lost = Journal(folder / "journal.jsonl"), RoundLost("cedar", 6, "it is <b>damaged</b>")
    for event in (RunResumed(5), lost, RunResumed(5), lost):
        journal.append(event)
    facts = read_facts(folder)
    assert facts.arms[0].runs[0].lost == (lost,)
    assert sentences.lost_round(lost) == "Cedar, round 6: it is <b>damaged</b>"
    page = render_page(facts)
    assert page.count("<li>Cedar, round 6: it is &lt;b&gt;damaged&lt;/b&gt;</li>") == 1
    assert "Saved rounds that could not be used" in page


def test_arms_whose_scores_were_still_rising_are_named(tmp_path: Path, facts: Facts):
    rising = read_facts(write_run(tmp_path / "run", replace(PFLSYNTH, rounds=9)))
    assert sentences.still_rising(rising).startswith("pflsynth validated best in the last round")
    assert sentences.still_rising(facts) == ""


def test_what_travels_and_what_stays_is_told(facts: Facts):
    assert sentences.policy_sentence(facts.arms[0]) == (
        "Travels each round: mapper (82,816) and decoder (345,313); stays at the hospital: "
        "personal (117,440) (in brackets: numbers of parameters)."
    )


def test_seeds_that_ended_alike_are_told_together(tmp_path: Path):
    facts = read_facts(write_comparison(tmp_path / "c", [PFLSYNTH], seeds=(7, 8)))
    assert sentences.progress_sentence(facts.arms[0]) == (
        "Finished with 2 seeds, after 10 and 10 rounds; the models of rounds 10 and 10 validated "
        "best."
    )
    assert sentences.took_part(facts.arms[0]) == "Every hospital took part in every round (10)."


def test_seeds_that_are_not_done_are_told_one_by_one(tmp_path: Path):
    folder = write_comparison(tmp_path / "c", [PFLSYNTH, FEDAVG], seeds=(7, 8, 9))
    shutil.rmtree(run_folder(folder, "pflsynth", 8))
    shutil.rmtree(run_folder(folder, "pflsynth", 9))
    write_run(run_folder(folder, "pflsynth", 9), replace(PFLSYNTH, seed=9), until=2)
    facts = read_facts(folder)
    assert sentences.progress_sentence(facts.arms[0]) == (
        "Seed 7: Finished after 10 of 10 rounds; the model of round 10 validated best. "
        "Seed 9: Not finished: 2 of 10 rounds done so far. Seed 8: Not started."
    )
    assert sentences.unfinished(facts) == [
        "pFLSynth, seed 9: Not finished: 2 of 10 rounds done so far. It has no test scores.",
        "pFLSynth, seed 8: Not started.",
    ]


def test_absences_of_several_seeds_are_told_seed_by_seed(tmp_path: Path):
    folder = write_comparison(tmp_path / "c", [PFLSYNTH])
    late = replace(PFLSYNTH, seed=8, absent={"cedar": (3,)})
    write_run(run_folder(folder, "pflsynth", 8), late)
    write_arms(folder, [PFLSYNTH], seeds=(7, 8))
    assert sentences.took_part(read_facts(folder).arms[0]) == (
        "Seed 7: Every hospital took part in every round (10). Seed 8: Cedar missed round 3."
    )


@pytest.mark.slow
def test_the_rule_that_folds_arms_away_is_told_only_where_it_is_used(facts: Facts, tmp_path: Path):
    assert sentences.notable(facts) == ""
    more = [replace(FEDAVG, name=f"m{n}", title=f"M{n}") for n in range(4)]
    many = read_facts(write_comparison(tmp_path / "c", [*ARMS, *more]))
    said = sentences.notable(many)
    assert said.startswith("Of 8 arms, these are shown first: pFLSynth, FedAvg and Local-only")
    assert "The rule: the arm that this report is about, the best local-only arm, FedAvg" in said


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (words.join_words(["a"]), "a"),
        (words.join_words(["a", "b", "c"]), "a, b and c"),
        (words.counted(1, "round"), "1 round"),
        (words.counted(1200, "round"), "1,200 rounds"),
        (words.size(0), "nothing"),
        (words.size(512), "512 bytes"),
        (words.size(3_425_032), "3.4 MB"),
        (words.duration(12.34), "12.3 s"),
        (words.duration(600), "10 min"),
        (words.duration(8040), "2 h 14 min"),
        (words.day(0), "1 January 1970"),
        (words.gained(-0.42, METRICS["psnr"]), f"{words.MINUS}0.42\u00a0dB"),
        (words.gained(0.42, METRICS["ssim"]), "+0.420"),
        (words.signed(-0.001, METRICS["psnr"]), "0.00"),
        (words.between(Interval(-0.1, 0.25), METRICS["psnr"]), f"{words.MINUS}0.10 to +0.25"),
        (words.between(None, METRICS["psnr"]), ""),
        (words.within(Interval(23.1, 24.0), METRICS["psnr"]), "23.10 to 24.00"),
        (words.probability(None), "too few"),
        (words.probability(0.0004), "< 0.001"),
        (words.probability(0.0312), "0.031"),
        (words.probability(0.345), "0.34"),
        (words.few(["a", "b", "c", "d"], most=2), "a, b and 2 more"),
        (words.operations(5.76e13), "57.6\u00a0TFLOP"),
        (words.operations(12), "12\u00a0FLOP"),
        (words.trifle(METRICS["psnr"]), "0.05\u00a0dB"),
        (words.tick(-0.4), f"{words.MINUS}0.4"),
        (words.capital("equal"), "Equal"),
        (words.arrow("T1w->T2w"), "T1w → T2w"),
    ],
)
def test_words(written: str, expected: str):
    assert written == expected
