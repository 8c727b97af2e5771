"""The first sentence: plain words, one number, and no claim that the tests do not make."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from grandrounds.report.analysis.facts import read_facts
from grandrounds.report.analysis.metrics import METRICS
from grandrounds.report.prose.lead import lead, plain_difference
from tests.helpers.run_folders import ALONE_SAME, ARMS, PFLSYNTH, Plan, write_comparison

JARGON = ("PSNR", "dB", "interval", "Wilcoxon", "p ", "Holm", "arm", "seed", "local-only", "Dice")


def first_sentence(folder: Path, arms: Sequence[Plan]) -> str:
    facts = read_facts(write_comparison(folder, arms))
    assert facts.main_arm
    assert facts.main_metric
    return lead(facts, facts.main_arm, facts.main_metric)


def moved(plan: Plan, by: float) -> Plan:
    return replace(plan, levels={site: level + by for site, level in plan.levels.items()})


def few(plan: Plan, patients: int) -> Plan:
    return replace(plan, patients=patients, pictured=(0,))


CASES = {
    "better": ([moved(PFLSYNTH, 2.0), *ARMS[1:]], "do clearly better together, with pFLSynth"),
    "worse": ([moved(PFLSYNTH, -3.0), *ARMS[1:]], "do clearly worse together, with pFLSynth"),
    "unclear": ([few(plan, 2) for plan in ARMS], "It is not clear whether"),
    "too few": ([few(plan, 1) for plan in ARMS], "Too few patients were tested"),
    "same": ([moved(PFLSYNTH, -0.15), *ARMS[1:]], "do practically as well together"),
    "alone": ([ALONE_SAME], "Each hospital trained alone"),
    "not compared": ([PFLSYNTH], "whether each hospital alone would do better was not tried"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_it_is_plain_and_has_one_number(tmp_path: Path, name: str):
    arms, said = CASES[name]
    found = first_sentence(tmp_path / "c", arms)
    assert said in found
    assert len(re.findall(r"\d+(?:[.]\d+)?", found)) == 1
    assert not [word for word in JARGON if word in found]


def test_hospitals_for_which_it_does_not_hold_are_named(tmp_path: Path):
    assert first_sentence(tmp_path / "c", ARMS).endswith("; but Birch would do better alone.")


@pytest.mark.parametrize(
    ("metric", "better", "said"),
    [
        ("psnr", 1.0, "the typical error of an image is about 11 % smaller"),
        ("psnr", -0.1, "the typical error of an image is about 1.2 % larger"),
        ("dice", 0.024, "the overlap of drawn and right outlines is 2.4 percentage points larger"),
        (
            "log_loss",
            -0.05,
            "the chance that the model gives to the right answer is typically about 5 % lower",
        ),
        ("hd95", 1.5, "HD95 in slices is better by 1.50 mm"),
    ],
)
def test_a_difference_is_turned_into_what_it_means(metric: str, better: float, said: str):
    assert plain_difference(better, METRICS[metric]).replace("\u00a0", " ") == said
