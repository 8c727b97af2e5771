"""The interval of an AUC, over patients."""

import numpy as np
import pytest

from grandrounds.core.roc import auc
from grandrounds.report.analysis.auc import Cases, auc_interval


def patients(count: int, cases: int = 1) -> list[Cases]:
    """Patients whose cases all are the same, half of them positive and a little higher."""
    draw = np.random.default_rng(2)
    real = np.arange(count) % 2
    found = draw.normal(0.5 + 0.2 * real, 0.2)
    return [(np.full(cases, f), np.full(cases, float(r))) for f, r in zip(found, real, strict=True)]


def pooled_auc(patients: list[Cases]) -> float:
    return auc(*(np.concatenate(each) for each in zip(*patients, strict=True)))


def test_an_interval_covers_the_value_is_repeatable_and_shrinks_with_more_patients():
    few, narrow = auc_interval(patients(20)), auc_interval(patients(320))
    assert 0 < few.low < pooled_auc(patients(20)) < few.high <= 1
    assert auc_interval(patients(20)) == few
    assert narrow.high - narrow.low < (few.high - few.low) / 2


def test_an_interval_is_over_patients_not_over_their_cases():
    """Ten copies of each case tell nothing new."""
    once, often = (auc_interval(patients(20, n)) for n in (1, 10))
    assert (once.low, once.high) == pytest.approx((often.low, often.high), abs=1e-12)


def test_draws_of_one_class_are_left_out():
    two = auc_interval(patients(2))
    assert two.low == two.high == pooled_auc(patients(2))


def test_a_single_patient_has_no_width():
    single: Cases = np.array([0.2, 0.6, 0.4]), np.array([0.0, 1.0, 1.0])
    found = auc_interval([single])
    assert found.low == found.high == 1.0
