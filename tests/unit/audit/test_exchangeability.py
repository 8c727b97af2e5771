"""Permutation tests over patients: exact where there are few, silent where too few."""

import numpy as np
import pytest

from grandrounds.audit.exchangeability import (
    FLAGGED_AT,
    enough_patients,
    permutation_p,
    rate_interval,
    roc_points,
    sensitivity_with_interval,
    smallest_p,
)


def test_the_most_extreme_assignment_of_few_patients_has_the_exact_p():
    values = np.array([5.0, 6.0, 7.0, 1.0, 2.0])
    members = np.array([1, 1, 1, 0, 0], bool)
    assert permutation_p(lambda m: values[m].mean(), members, seed=0) == pytest.approx(1 / 10)
    assert permutation_p(lambda m: -values[m].mean(), members, seed=0) == 1.0


def test_many_patients_are_drawn_and_no_p_is_0():
    values = np.arange(40.0)
    members = values >= 20
    p = permutation_p(lambda m: values[m].mean(), members, seed=0)
    assert p == pytest.approx(smallest_p(20, 20))
    assert 0 < p < FLAGGED_AT


@pytest.mark.parametrize(
    ("inside", "outside", "able"), [(2, 2, False), (4, 4, False), (5, 5, True)]
)
def test_two_patients_of_each_kind_can_never_be_told_from_chance(
    inside: int, outside: int, able: bool
):
    assert enough_patients(inside, outside, tests=2) is able


def test_a_rate_has_the_exact_interval_of_clopper_and_pearson():
    assert rate_interval(0, 10) == pytest.approx((0.0, 0.30850), abs=1e-5)
    assert rate_interval(5, 10) == pytest.approx((0.18709, 0.81291), abs=1e-5)
    assert rate_interval(10, 10) == pytest.approx((0.69150, 1.0), abs=1e-5)


def test_a_rate_at_few_false_positives_needs_that_many_others():
    scores = np.concatenate([np.full(10, 2.0), np.arange(100) / 100])
    members = np.arange(110) < 10
    assert sensitivity_with_interval(scores, members, 0.001) is None
    found = sensitivity_with_interval(scores, members, 0.01)
    assert found is not None
    assert found[0] == 1.0
    assert found[1] == pytest.approx(0.69150, abs=1e-5)


def test_a_curve_runs_from_none_to_all():
    points = roc_points(np.array([3.0, 2.0, 1.0]), np.array([True, False, False]))
    assert points == ((0.0, 0.0), (0.0, 1.0), (0.5, 1.0), (1.0, 1.0))
