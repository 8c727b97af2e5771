"""AUC and its kin against values worked out by hand and against scipy's."""

import math

import numpy as np
import pytest
from scipy import stats

from grandrounds.core.roc import auc, balanced_accuracy, sensitivity_at

FOUND = [0.1, 0.4, 0.35, 0.8]
REAL = [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("found", "real", "value"),
    [
        (FOUND, REAL, 3 / 4),
        ([0.5, 0.5], [0, 1], 1 / 2),
        ([0.2, 0.2, 0.9, 0.1], [1, 0, 1, 0], 3.5 / 4),
        ([0.9, 0.1], [0, 1], 0.0),
        ([0.1, 0.9], [0, 1], 1.0),
    ],
)
def test_an_auc_is_the_share_of_pairs_in_the_right_order(
    found: list[float], real: list[int], value: float
):
    assert auc(found, real) == value


def test_an_auc_is_mann_and_whitneys_u_over_the_number_of_pairs():
    draw = np.random.default_rng(1)
    found, real = draw.integers(0, 10, 60) / 10, draw.integers(0, 2, 60)
    u = stats.mannwhitneyu(found[real == 1], found[real == 0]).statistic
    pairs = (real == 1).sum() * (real == 0).sum()
    assert auc(found, real) == pytest.approx(u / pairs, abs=1e-12)


@pytest.mark.parametrize(
    ("found", "real", "value"),
    [
        (FOUND, REAL, (1 / 2 + 1) / 2),
        ([0.5, 0.5, 0.5, 0.5], [1, 0, 0, 0], 1 / 2),
        ([0.9, 0.9, 0.9, 0.6, 0.4], [1, 1, 1, 0, 0], (1 + 1 / 2) / 2),
    ],
)
def test_a_balanced_accuracy_counts_both_classes_alike(
    found: list[float], real: list[int], value: float
):
    assert balanced_accuracy(found, real) == value


TEN = [0.05 * n for n in range(10)]  # of ten healthy cases, one more is right at each threshold


@pytest.mark.parametrize(
    ("positives", "specificity", "value"),
    [
        ([0.41, 0.46, 0.9, 0.1], 0.9, 3 / 4),
        ([0.41, 0.46, 0.9, 0.1], 1.0, 2 / 4),
        ([0.41, 0.46, 0.9, 0.1], 0.2, 4 / 4),
        ([0.45, 0.45], 0.95, 0.0),  # a tie with the highest healthy case
    ],
)
def test_a_sensitivity_is_the_best_one_at_a_threshold_that_is_specific_enough(
    positives: list[float], specificity: float, value: float
):
    found, real = [*TEN, *positives], [0] * 10 + [1] * len(positives)
    assert sensitivity_at(found, real, specificity=specificity) == value


@pytest.mark.parametrize("real", [[0, 0, 0, 0], [1, 1, 1, 1]])
def test_one_class_only_is_undefined(real: list[int]):
    assert math.isnan(auc(FOUND, real))
    assert math.isnan(balanced_accuracy(FOUND, real))
    assert math.isnan(sensitivity_at(FOUND, real, specificity=0.9))
