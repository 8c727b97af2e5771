"""The area under the ROC curve is computed here, with its interval over patients or seeds."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TypeAlias

import numpy as np

from grandrounds.core.roc import FloatArray, auc
from grandrounds.report.analysis.folder import CaseRow, StudyFile
from grandrounds.report.analysis.metrics import CASE_DATA
from grandrounds.report.analysis.statistics import Interval, bootstrap

_RESAMPLES = 1000
MEANING = (
    "from 0 to 1, higher is better, 0.5 is guessing: the chance that a positive case is given a "
    "higher probability than a negative one. It needs cases of both classes."
)
Cases: TypeAlias = tuple[FloatArray, FloatArray]  # probabilities and labels of one patient


@dataclass(frozen=True)
class Discrimination:
    """The AUC of one site and task; None where all cases are of one class.

    `low` and `high` are its interval over patients for one seed, its range for several seeds.
    """

    positives: int
    cases: int
    auc: float | None
    low: float | None = None
    high: float | None = None


def discriminations(
    rows: Iterable[CaseRow], study: StudyFile
) -> dict[tuple[str, str], Discrimination]:
    """Compute the AUC of each (site, task) that has probabilities and labels.

    Where the target is a variable of the patient, the cases of a patient are averaged to one; where
    it is drawn in the image, each case counts.
    """
    found: dict[tuple[str, str], dict[str, dict[str, dict[str, float]]]] = {}
    for row in rows:
        if row.metric in CASE_DATA:
            patients = found.setdefault((row.site, row.task), defaultdict(dict))
            patients[row.patient].setdefault(row.case, {})[row.metric] = row.value
    return {
        (site, task): _discrimination(
            [_cases(own, whole=study.is_variable(task)) for own in patients.values()]
        )
        for (site, task), patients in found.items()
    }


def _cases(cases: Mapping[str, Mapping[str, float]], *, whole: bool) -> Cases:
    probabilities = np.array([case["probability"] for case in cases.values()], np.float64)
    labels = np.array([case["label"] for case in cases.values()], np.float64)
    return (probabilities.mean(keepdims=True), labels[:1]) if whole else (probabilities, labels)


def _discrimination(patients: Sequence[Cases]) -> Discrimination:
    labels = np.concatenate([labels for _, labels in patients])
    positives, count = int((labels > 0).sum()), len(labels)
    if positives in (0, count):
        return Discrimination(positives, count, None)
    interval = auc_interval(patients)
    return Discrimination(positives, count, _auc_of(patients), interval.low, interval.high)


def auc_interval(patients: Sequence[Cases]) -> Interval:
    """Return the interval of an AUC, by drawing patients with all their cases.

    Draws of one class only are left out.
    """
    if len(patients) < 2:  # resampling one patient gives the same patient
        return Interval(_auc_of(patients), _auc_of(patients))

    def drawn(places: Iterable[int]) -> float:
        return _auc_of([patients[place] for place in places])

    return bootstrap([np.arange(len(patients))], drawn, resamples=_RESAMPLES)


def _auc_of(patients: Sequence[Cases]) -> float:
    probabilities, labels = zip(*patients, strict=True)
    return auc(np.concatenate(probabilities), np.concatenate(labels))


def merged(seeds: Sequence[Discrimination]) -> Discrimination:
    """Average an AUC over the seeds for which it is defined."""
    if len(seeds) == 1:
        return seeds[0]
    positives, cases = sum(one.positives for one in seeds), sum(one.cases for one in seeds)
    found = [one.auc for one in seeds if one.auc is not None]
    if not found:
        return Discrimination(positives, cases, None)
    return Discrimination(positives, cases, fmean(found), min(found), max(found))
