"""Every statistic against an example that was worked out elsewhere, or by hand here."""

from itertools import product
from statistics import fmean

import numpy as np
import pytest

from grandrounds.report.analysis.statistics import (
    FEWEST,
    Interval,
    holm,
    interval,
    paired,
    signed_rank,
    spread,
)

# Darwin's cross- and self-fertilised maize, differences in eighths of an inch, in the order of
# Fisher, The Design of Experiments (1935), section 17.
DARWIN = [49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48]


def exact_p(differences: list[float]) -> float:
    """Count, over all signs, the rank sums at least as far from the middle as the one seen."""
    ranks = np.argsort(np.argsort(np.abs(differences))) + 1
    middle = ranks.sum() / 2
    seen = abs(sum(r for r, d in zip(ranks, differences, strict=True) if d > 0) - middle)
    sums = [np.dot(ranks, signs) for signs in product((0, 1), repeat=len(differences))]
    return fmean(abs(total - middle) >= seen for total in sums)


def test_wilcoxon_on_darwin_s_maize():
    # The ranks of the two negative differences sum to 24: p = 0.0413.
    assert signed_rank(DARWIN) == pytest.approx(0.0413, abs=5e-5)
    assert signed_rank(DARWIN) == pytest.approx(exact_p([float(d) for d in DARWIN]))


@pytest.mark.parametrize(
    ("differences", "p"),
    [
        ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 2 / 2**6),  # all of one sign: only two of 64 are as far
        ([-1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 4 / 2**6),
        ([-1.0, -2.0, -3.0, 4.0, 5.0, 6.0, 7.0], 28 / 2**7),  # 14 of 128 subsets sum to 6 or less
        ([0.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 2 / 2**6),  # zeros are left out
    ],
)
def test_wilcoxon_by_counting_signs(differences: list[float], p: float):
    assert signed_rank(differences) == pytest.approx(p)


@pytest.mark.parametrize("differences", [[1.0] * 5, [0.0] * 9, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0], []])
def test_too_few_patients_have_no_p(differences: list[float]):
    assert signed_rank(differences) is None


def test_the_fewest_that_are_tested_are_those_that_can_reach_five_per_cent():
    assert 2 / 2**FEWEST < 0.05 < 2 / 2 ** (FEWEST - 1)


def test_holm_by_hand():
    # Sorted 0.005, 0.01, 0.03, 0.04; times 4, 3, 2, 1; and never below the one before.
    tests = {"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}
    expected = {"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02}
    assert holm(tests) == pytest.approx(expected)


def test_holm_is_no_more_than_one_and_counts_only_the_tests_that_were_made():
    assert holm({"a": 0.6, "b": None, "c": 0.7}) == {"a": 1.0, "b": None, "c": 1.0}
    assert holm({"a": 0.02, "b": None}) == {"a": 0.02, "b": None}
    assert holm({}) == {}


def holds_95_per_cent(found: Interval | None, means: list[float]) -> bool:
    """Tell whether 2.5 % of all samples lie below and above, within the noise of the draws."""
    assert found is not None
    ends = {"below": fmean(m < found.low - 1e-9 for m in means)}
    ends |= {"up to": fmean(m < found.low + 1e-9 for m in means)}
    ends |= {"above": fmean(m > found.high + 1e-9 for m in means)}
    ends |= {"from": fmean(m > found.high - 1e-9 for m in means)}
    noise = 0.01
    few = max(ends["below"], ends["above"]) <= 0.025 + noise
    return few and min(ends["up to"], ends["from"]) >= 0.025 - noise


@pytest.mark.parametrize(
    "values", [[1.0, 2.0, 4.0], [0.0, 1.0], [3.1, 0.2, -1.0, 2.2, 5.0], [2.0, 2.0, 2.0]]
)
def test_an_interval_cuts_off_two_and_a_half_per_cent_of_all_samples(values: list[float]):
    means = [fmean(sample) for sample in product(values, repeat=len(values))]
    assert holds_95_per_cent(interval([values]), means)


def test_strata_are_drawn_apart_and_count_alike():
    # Nothing varies within a stratum, so nothing varies at all; and three values weigh as two do.
    assert interval([[1.0, 1.0, 1.0], [4.0, 4.0]]) == Interval(2.5, 2.5)
    first, second = [0.0, 2.0, 3.0], [1.0, 5.0]
    samples = product(product(first, repeat=3), product(second, repeat=2))
    means = [fmean([fmean(one), fmean(other)]) for one, other in samples]
    assert holds_95_per_cent(interval([first, second]), means)


def test_a_stratum_of_one_has_no_interval():
    assert interval([[1.0, 2.0], [3.0]]) is None


def test_the_same_scores_have_the_same_interval():
    assert interval([DARWIN]) == interval([DARWIN])


def test_one_patient_has_neither_a_deviation_nor_an_interval():
    found = spread([3.0])
    assert (found.mean, found.sd, found.n, found.interval) == (3.0, None, 1, None)


def test_a_mean_comes_with_its_deviation_and_interval():
    found = spread([float(d) for d in DARWIN])
    assert found.mean == pytest.approx(20.933, abs=5e-4)  # Fisher: 314 eighths over 15 pairs
    assert found.sd == pytest.approx(37.744, abs=5e-4)
    assert found.interval is not None
    assert found.interval.low < found.mean < found.interval.high


def test_strata_of_differences_are_compared_in_one_test():
    found = paired([[1.0, 2.0, 3.0], [4.0, 5.0, -6.0]])
    assert (found.mean, found.n, found.better) == (1.5, 6, 5)
    assert found.p == pytest.approx(exact_p([1.0, 2.0, 3.0, 4.0, 5.0, -6.0]))
    assert found.interval is not None
    assert not found.clear(found.p)


def test_a_difference_is_clear_only_where_interval_and_corrected_test_agree():
    found = paired([[-1.0, -1.1, -1.2, -0.9, -1.3, -0.8]])
    assert found.clear(0.049)
    assert not found.clear(0.05)
    assert not found.clear(None)


def test_of_too_few_patients_nothing_is_clear():
    found = paired([[1.0, 1.1, 1.2]])
    assert found.interval is not None
    assert found.interval.clear
    assert not found.clear(found.p)
