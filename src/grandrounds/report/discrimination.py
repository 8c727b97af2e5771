"""How well a model tells two classes apart: the area under the ROC curve, with its uncertainty."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from grandrounds.metrics.classification import Values, auc, bootstrap_interval
from grandrounds.report.folder import CaseRow, StudyFile
from grandrounds.report.metrics import CASE_DATA

LEVEL = 95  # per cent
SEED = 1  # of the resampling: the same table gives the same interval
MEANING = (
    "from 0 to 1, higher is better, 0.5 is guessing: the chance that a positive case is given a "
    "higher probability than a negative one. It needs cases of both classes."
)
Cases: TypeAlias = tuple[Values, Values]  # probabilities and labels of one patient


@dataclass(frozen=True)
class Discrimination:
    """The AUC of one site and task, and its interval over patients; none for one class only."""

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
    probabilities, labels = (np.concatenate(values) for values in zip(*patients, strict=True))
    positives, count = int((labels > 0).sum()), len(labels)
    if positives in (0, count):
        return Discrimination(positives, count, None)
    low, high = bootstrap_interval(patients, auc, seed=SEED, level=LEVEL / 100)
    return Discrimination(positives, count, auc(probabilities, labels), low, high)
