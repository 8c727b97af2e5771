"""Test scores on a card: the patient is the unit, slices are averaged within a patient first."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from grandrounds.cards.folder import Row
from grandrounds.report.metrics import METRICS, Metric


@dataclass(frozen=True)
class Score:
    """One metric at one site: mean and standard deviation over `patients`; none for a single one.

    `task` is empty where a patient's tasks are averaged.
    """

    site: str
    task: str
    metric: Metric
    mean: float
    sd: float | None
    patients: int


def scores_by_task(rows: Iterable[Row]) -> list[Score]:
    """Describe every site, task and metric, in the table's order."""
    found: dict[tuple[str, str, str], dict[str, list[float]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for row in rows:
        if row["metric"] in METRICS:
            key = row["site"], row["task"], row["metric"]
            found[key][row["patient"]].append(float(row["value"]))
    means = {key: [fmean(values) for values in each.values()] for key, each in found.items()}
    return [_score(site, task, METRICS[key], m) for (site, task, key), m in means.items()]


def scores_by_site(rows: Sequence[Row], metric: Metric) -> dict[str, Score]:
    """Describe every site by one metric, each patient's tasks averaged."""
    found: dict[str, dict[str, dict[str, list[float]]]] = defaultdict(
        lambda: defaultdict(lambda: defaultdict(list))
    )
    for row in rows:
        if row["metric"] == metric.key:
            found[row["site"]][row["patient"]][row["task"]].append(float(row["value"]))
    return {site: _score(site, "", metric, _patients(each)) for site, each in found.items()}


def _patients(found: Mapping[str, Mapping[str, Sequence[float]]]) -> list[float]:
    return [fmean(fmean(values) for values in tasks.values()) for tasks in found.values()]


def _score(site: str, task: str, metric: Metric, means: Sequence[float]) -> Score:
    sd = stdev(means) if len(means) > 1 else None
    return Score(site, task, metric, fmean(means), sd, len(means))


def main_metric(rows: Iterable[Row]) -> Metric | None:
    """Give the first metric that a report would show; none where nothing was scored."""
    present = {row["metric"] for row in rows}
    return next((metric for key, metric in METRICS.items() if key in present), None)


def worst(found: Mapping[str, Score]) -> Score:
    """Give the site with the worst mean."""
    return _ranked(found)[0]


def best(found: Mapping[str, Score]) -> Score:
    """Give the site with the best mean."""
    return _ranked(found)[-1]


def _ranked(found: Mapping[str, Score]) -> list[Score]:
    way = {score.site: 1 if score.metric.higher_is_better else -1 for score in found.values()}
    return sorted(found.values(), key=lambda score: way[score.site] * score.mean)


def written(score: Score) -> str:
    """Write a mean, for example "24.31 dB"; without a unit it has a digit more."""
    return f"{score.mean:.{_digits(score)}f} {score.metric.unit}".rstrip()


def spread(score: Score) -> str:
    """Write a standard deviation; a single patient has none."""
    return "none" if score.sd is None else f"{score.sd:.{_digits(score)}f}"


def _digits(score: Score) -> int:
    return 2 if score.metric.unit else 3
