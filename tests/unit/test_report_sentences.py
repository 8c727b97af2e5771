from dataclasses import replace
from pathlib import Path

import pytest

from grandrounds.events import Failed, Interrupted, StoppedEarly
from grandrounds.journal import Journal
from grandrounds.report import sentences, verdicts, words
from grandrounds.report.facts import Facts, read_facts
from grandrounds.report.metrics import METRICS
from tests.unit.report_folder import ARMS, FEDAVG, PFLSYNTH, real, write_comparison, write_run


def plain(said: list[str]) -> str:
    return " ".join(said).replace("\u00a0", " ")


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> Facts:
    return read_facts(write_comparison(tmp_path_factory.mktemp("comparison")))


def test_the_summary_names_who_gains_who_does_not_by_how_much_and_on_how_many(facts: Facts):
    assert plain(verdicts.summary(facts)) == (
        "pFLSynth did better than training alone at 3 of 4 hospitals: Alder (by 0.2 dB), "
        "Cedar (by 0.3 dB) and Dogwood (by 0.4 dB). Training alone was better for Birch "
        "(by 0.3 dB). On average over hospitals it was 0.1 dB better than each hospital's best "
        "local-only model and 2.1 dB better than FedAvg (PSNR). "
        "Measured on 32 test patients with one random seed; no test of significance was made, and "
        "other patients or seeds may differ."
    )


def test_a_hospital_that_loses_reads_so_first(facts: Facts):
    assert plain(verdicts.verdict(facts, "birch")) == (
        "Birch would have been better off alone. "
        "Trained alone, the best model reached 23.7 dB (PSNR): Local-only (plain generator). "
        "pFLSynth was 0.3 dB worse; it did better for 0 of 8 test patients. "
        "FedAvg was 2.4 dB worse; it did better for 0 of 8 test patients."
    )


def test_a_hospital_that_gains_reads_so(facts: Facts):
    said = plain(verdicts.verdict(facts, "alder"))
    assert "better off alone" not in said
    assert "pFLSynth was 0.2 dB better; it did better for 4 of 8" in said


def test_a_summary_without_gains_says_none(tmp_path: Path):
    low = replace(PFLSYNTH, levels=FEDAVG.levels)
    said = plain(verdicts.summary(read_facts(write_comparison(tmp_path / "c", [low, *ARMS[2:]]))))
    assert (
        "did better than training alone at none of 4 hospitals. Training alone was better" in said
    )


def test_equal_scores_are_called_equal(tmp_path: Path):
    same = replace(PFLSYNTH, levels=ARMS[3].levels)
    facts = read_facts(write_comparison(tmp_path / "c", [same, ARMS[3]]))
    assert "There was no practical difference at Alder, Birch, Cedar and Dogwood." in plain(
        verdicts.summary(facts)
    )
    assert "it was practically equal to each hospital's best" in plain(verdicts.summary(facts))


def test_without_local_arms_nobody_is_said_to_gain(tmp_path: Path):
    facts = read_facts(write_comparison(tmp_path / "c", [PFLSYNTH, FEDAVG]))
    assert "nothing here says who gains" in plain(verdicts.summary(facts))
    assert verdicts.verdict(facts, "alder") == []


def test_a_run_without_federation_says_so(tmp_path: Path):
    facts = read_facts(write_run(tmp_path / "run", ARMS[2]))
    assert "Each hospital trained alone; nothing was shared." in plain(verdicts.summary(facts))


def test_an_unfinished_run_says_how_far_it_is(tmp_path: Path):
    facts = read_facts(write_run(tmp_path / "run", PFLSYNTH, until=4))
    assert plain(verdicts.summary(facts)) == (
        "There is no complete set of test scores yet. "
        "pflsynth: Not finished: 4 of 10 rounds done so far."
    )


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
    assert sentences.progress(read_facts(folder).arms[0]) == said


def test_simulated_data_is_always_told(facts: Facts):
    assert sentences.simulated(facts).startswith("All 4 hospitals are simulated")


def test_real_data_is_not_called_simulated(tmp_path: Path):
    facts = read_facts(write_run(tmp_path / "run", real(PFLSYNTH)))
    assert sentences.simulated(facts) == ""


def test_absences_are_named(tmp_path: Path):
    plan = replace(PFLSYNTH, absent={"cedar": (3, 4), "alder": (1,)})
    arm = read_facts(write_run(tmp_path / "run", plan)).arms[0]
    assert sentences.took_part(arm) == "Alder missed round 1; Cedar missed rounds 3 and 4."


def test_few_steps_are_warned_of(tmp_path: Path):
    facts = read_facts(write_run(tmp_path / "run", replace(PFLSYNTH, steps=16)))
    assert "few optimisation steps (Alder 160, Birch 160, Cedar 160 and Dogwood 160)" in (
        sentences.few_steps(facts.arms[0])
    )


def test_what_travels_and_what_stays_is_told(facts: Facts):
    assert sentences.policy(facts.arms[0]) == (
        "Travels each round: mapper (82,816) and decoder (345,313); stays at the hospital: "
        "personal (117,440) (in brackets: numbers of parameters)."
    )


def test_missing_pictures_of_real_patients_are_explained(tmp_path: Path):
    folder = write_run(tmp_path / "run", real(PFLSYNTH))
    (folder / "sites" / "alder" / "panels.npz").unlink()
    facts = read_facts(folder)
    assert "images of patients stay at the hospital" in sentences.pictures(
        facts, "alder", "T1w->T2w"
    )
    assert "test patient" not in sentences.pictures(facts, "alder", "T1w->T2w")
    assert "not by eye or score" in sentences.pictures(facts, "birch", "T1w->T2w")


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (words.listed(["a"]), "a"),
        (words.listed(["a", "b", "c"]), "a, b and c"),
        (words.counted(1, "round"), "1 round"),
        (words.counted(1200, "round"), "1,200 rounds"),
        (words.size(0), "nothing"),
        (words.size(512), "512 bytes"),
        (words.size(3_425_032), "3.4 MB"),
        (words.duration(12.34), "12.3 s"),
        (words.duration(600), "10 min"),
        (words.duration(8040), "2 h 14 min"),
        (words.day(0), "1 January 1970"),
        (words.compared(0.42, METRICS["psnr"]), "0.4\u00a0dB better"),
        (words.compared(-0.02, METRICS["ssim"]), "0.02 worse"),
        (words.gained(-0.42, METRICS["psnr"]), "-0.4\u00a0dB"),
        (words.arrow("T1w->T2w"), "T1w → T2w"),
    ],
)
def test_words(written: str, expected: str):
    assert written == expected
