"""A model that memorised is flagged and one that never saw the patients is not."""

from pathlib import Path

import numpy as np
import pytest

from grandrounds.audit.exchangeability import FLAGGED_AT
from grandrounds.audit.membership import Fits, judge_membership, likelihood_ratio
from grandrounds.audit.memorisation import judge_copies
from tests.helpers.planted_models import operating_curve, planted

NUMBER = 20  # of each kind


@pytest.mark.full
def test_nineteen_of_twenty_planted_memories_are_flagged_and_at_most_one_of_twenty_others():
    curve = operating_curve(NUMBER)
    assert set(curve["memorised"]) == {"memorisation", "membership"}
    for attack in curve["memorised"]:
        assert sum(p <= FLAGGED_AT for p in curve["memorised"][attack]) >= 19, attack
        assert sum(p <= FLAGGED_AT for p in curve["never saw them"][attack]) <= 1, attack


@pytest.mark.slow
def test_a_planted_model_gets_the_sentences_of_a_leak_and_its_controls_do_not():
    model, control = planted(4, saw_them=True), planted(4, saw_them=False)
    copies = judge_copies(model.copies(), {"never saw them": control.copies()}, seed=1)
    assert copies.verdict == "found"
    assert "memorised" in copies.sentence
    assert copies.controls[0].value is not None
    assert copies.controls[0].value > FLAGGED_AT
    told = judge_membership(model.fits(), model.members, {"other": control.fits().values}, seed=1)
    assert told.verdict == "found"
    assert judge_copies(control.copies(), {}, seed=1).verdict == "not found"
    assert judge_membership(control.fits(), model.members, {}, seed=1).verdict == "not found"


def test_too_few_patients_are_called_too_few_and_not_safe():
    fits = Fits.of(np.array([9.0, 8.0, 1.0, 2.0]), [])
    found = judge_membership(fits, np.array([1, 1, 0, 0], bool), {}, seed=1)
    assert found.verdict == "too few"
    assert [each.note for each in found.figures if each.value is None] == [
        "too few patients to say: it takes 1000 or more who did not train",
        "too few patients to say: it takes 100 or more who did not train",
        "too few patients to say: it takes 10 or more who did not train",
    ]


def test_a_likelihood_ratio_sees_who_is_fitted_better_than_by_models_that_never_saw_them():
    """Hard patients hide in a threshold on the loss: the ratio asks how hard each one is."""
    hardness = np.array([0.0, 10.0, 20.0, 0.0, 10.0, 20.0])
    members = np.array([1, 1, 1, 0, 0, 0], bool)
    values = hardness + 3.0 * members
    unseen = np.stack([hardness - 0.5, hardness + 0.5])
    assert likelihood_ratio(values, unseen)[members].min() > 0.99
    assert likelihood_ratio(values, unseen)[~members].max() == pytest.approx(0.5)
    assert likelihood_ratio(values, unseen[:1])[members].min() > 0.8


def test_the_curve_on_the_page_was_written_by_its_benchmark():
    page = (Path(__file__).parents[3] / "docs/reference/privacy.md").read_text("utf-8")
    assert "benchmarks/audit_curve.py" in page
