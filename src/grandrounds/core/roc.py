"""Scores measure how well probabilities separate two classes; with one class they are nan.

Shapes: N case. A label is 1 (positive) or 0.
"""

from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

THRESHOLD = 0.5
FloatArray: TypeAlias = NDArray[np.float64]


def auc(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """Return the chance that a positive case has a higher probability than a negative one.

    Ties count half. Mann and Whitney 1947.
    """
    positives, negatives = _by_class(probabilities, labels)
    if not positives.size or not negatives.size:
        return float("nan")
    below = np.searchsorted(negatives, positives, "left")
    not_above = np.searchsorted(negatives, positives, "right")
    return float((below + not_above).mean() / 2 / negatives.size)


def balanced_accuracy(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """Return the mean of sensitivity and specificity; 0.5 or more counts as positive."""
    positives, negatives = _by_class(probabilities, labels)
    if not positives.size or not negatives.size:
        return float("nan")
    return float(((positives >= THRESHOLD).mean() + (negatives < THRESHOLD).mean()) / 2)


def sensitivity_at(probabilities: ArrayLike, labels: ArrayLike, *, specificity: float) -> float:
    """Return the highest sensitivity of all thresholds with this specificity or a higher one."""
    positives, negatives = _by_class(probabilities, labels)
    if not positives.size or not negatives.size:
        return float("nan")
    specificities = np.searchsorted(negatives, positives, "left") / negatives.size
    return float((specificities >= specificity).mean())


def _by_class(probabilities: ArrayLike, labels: ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Return the probabilities of the positive cases and of the negative ones, each in order."""
    values, positive = np.asarray(probabilities, np.float64), np.asarray(labels) > 0
    return np.sort(values[positive]), np.sort(values[~positive])
