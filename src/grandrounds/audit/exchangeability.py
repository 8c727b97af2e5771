"""Whether a model tells training patients from test patients: permutation tests over patients.

Patients were assigned to training and test by a hash of their ID, so to a model that never saw them
they are exchangeable: whatever statistic of its outputs is computed, every other assignment of as
many patients was as likely. Fisher 1935; Phipson and Smyth 2010 for p-values that are never 0.

Shapes: N patient.
"""

from collections.abc import Callable, Iterator
from itertools import combinations
from math import comb, floor
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv  # pyright: ignore[reportMissingTypeStubs]

FLAGGED_AT = 0.01  # of a verdict: one in a hundred models that never saw the data is flagged
CONFIDENCE = 0.95  # of intervals
MOST_ASSIGNMENTS = 5_000  # up to so many, all are taken; beyond, so many are drawn

Members: TypeAlias = NDArray[np.bool_]
Values: TypeAlias = NDArray[np.float64]


def smallest_p(members: int, others: int) -> float:
    """Return the smallest p-value that these numbers of patients can give."""
    return max(1 / comb(members + others, members), 1 / (MOST_ASSIGNMENTS + 1))


def enough_patients(members: int, others: int, *, tests: int = 1) -> bool:
    """Tell whether any outcome at all could be flagged."""
    return min(members, others) > 0 and smallest_p(members, others) * tests <= FLAGGED_AT


def permutation_p(statistic: Callable[[Members], float], members_N: Members, *, seed: int) -> float:
    """Return the share of assignments whose statistic is at least that of the true one."""
    true = statistic(members_N)
    found = [statistic(each) >= true - 1e-12 for each in _assignments(members_N, seed)]
    if comb(len(members_N), int(members_N.sum())) <= MOST_ASSIGNMENTS:
        return float(np.mean(found))  # the true one is among them
    return (1 + sum(found)) / (1 + len(found))


def _assignments(members_N: Members, seed: int) -> Iterator[Members]:
    count, inside = len(members_N), int(members_N.sum())
    if comb(count, inside) <= MOST_ASSIGNMENTS:
        for chosen in combinations(range(count), inside):
            yield np.isin(np.arange(count), chosen)
        return
    draw = np.random.Generator(np.random.PCG64(seed))
    for _ in range(MOST_ASSIGNMENTS):
        yield draw.permutation(members_N)


def shuffled(members_N: Members, seed: int) -> Members:
    """Return the patients' assignment in another order, for a control with shuffled labels."""
    return np.random.Generator(np.random.PCG64(seed)).permutation(members_N)


def rate_interval(hits: int, number: int) -> tuple[float, float]:
    """Return the exact interval of a rate. Clopper and Pearson 1934."""
    tail = (1 - CONFIDENCE) / 2
    low = betaincinv(hits, number - hits + 1, tail) if hits else 0.0
    high = betaincinv(hits + 1, number - hits, 1 - tail) if hits < number else 1.0
    return float(low), float(high)


def sensitivity_with_interval(
    scores_N: Values, members_N: Members, false_positives: float
) -> tuple[float, float, float] | None:
    """Return the rate of members above the threshold that lets so many others pass, with its ends.

    None where there are too few others to tell such a rate from 0: fewer than one of them may pass.
    """
    inside, outside = scores_N[members_N], np.sort(scores_N[~members_N])[::-1]
    allowed = floor(false_positives * len(outside) + 1e-9)
    if allowed < 1 or not len(inside):
        return None
    hits = int((inside > outside[allowed]).sum()) if allowed < len(outside) else len(inside)
    return hits / len(inside), *rate_interval(hits, len(inside))


def roc_points(scores_N: Values, members_N: Members) -> tuple[tuple[float, float], ...]:
    """Return the points (false, true positive rate) of every threshold, from (0, 0) to (1, 1)."""
    inside, outside = scores_N[members_N], scores_N[~members_N]
    thresholds = np.unique(scores_N)[::-1]
    points = [
        (float((outside >= least).mean()), float((inside >= least).mean())) for least in thresholds
    ]
    return ((0.0, 0.0), *points)
