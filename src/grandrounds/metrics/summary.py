"""Averages in the one fair order: slices within a patient, then patients, tasks, sites."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean

from grandrounds.messages import CaseScore


def patient_means(scores: Iterable[CaseScore], metric: str) -> dict[tuple[str, str, str], float]:
    """Average a metric within each (site, task, patient)."""
    values: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for score in scores:
        values[score.site, score.task, score.patient].append(score.values[metric])
    return {key: fmean(found) for key, found in values.items()}


def summary(scores: Sequence[CaseScore]) -> dict[str, float]:
    """Average every metric over patients, then tasks, then sites; empty without scores."""
    metrics = scores[0].values if scores else ()
    return {metric: _mean_of_means(patient_means(scores, metric)) for metric in metrics}


def _mean_of_means(by_patient: Mapping[tuple[str, str, str], float]) -> float:
    by_task: dict[tuple[str, str], list[float]] = defaultdict(list)
    for (site, task, _), value in by_patient.items():
        by_task[site, task].append(value)
    by_site: dict[str, list[float]] = defaultdict(list)
    for (site, _), values in by_task.items():
        by_site[site].append(fmean(values))
    return fmean(fmean(values) for values in by_site.values())
