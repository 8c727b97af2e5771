"""What a card says, as values: who took part, what was trained, what left each site."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from statistics import fmean, stdev
from typing import TypeVar

from grandrounds.core.events import (
    Event,
    PolicySet,
    RoundFinished,
    RunFinished,
    RunStarted,
    SiteExchanged,
    SiteMissed,
    SiteMonitored,
    SiteReady,
    SiteTrained,
    SiteValidated,
    TopologySet,
    WorkSet,
)
from grandrounds.report.analysis.folder import Chosen, Row, RunFiles, Table
from grandrounds.report.analysis.metrics import METRICS, Metric


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


Kind = TypeVar("Kind", bound=Event)


@dataclass(frozen=True)
class Work:
    """What one site did in a run, all rounds together."""

    site: str
    rounds: int
    steps: int
    bytes_up: int
    bytes_down: int


@dataclass(frozen=True)
class Facts:
    """All that a card is filled from."""

    chosen: Chosen

    @property
    def run(self) -> RunFiles:
        """Give the run's files."""
        return self.chosen.run

    @property
    def study(self) -> Table:
        """Give the resolved study."""
        return self.run.study

    @property
    def started(self) -> RunStarted:
        """Tell how the run began."""
        return self._all(RunStarted)[-1]

    @property
    def title(self) -> str:
        """Name the method for people."""
        return self.chosen.title or self.started.title or self.started.arm

    @property
    def dates(self) -> str:
        """Write the days on which the run began and ended, in UTC."""
        days = [
            f"{datetime.fromtimestamp(m, UTC):%Y-%m-%d}" for m in (self.run.began, self.run.ended)
        ]
        return " to ".join(dict.fromkeys(days))

    @property
    def ready(self) -> list[SiteReady]:
        """List what each site delivered."""
        return list({event.site: event for event in self._all(SiteReady)}.values())

    @property
    def simulated(self) -> list[str]:
        """Name the sites whose data were computed."""
        return [ready.site for ready in self.ready if ready.simulated]

    @property
    def policy(self) -> PolicySet | None:
        """Tell what travels; none where the run did not tell."""
        return next(reversed(self._all(PolicySet)), None)

    @property
    def topology(self) -> TopologySet | None:
        """Tell who sees what; none where the run did not tell."""
        return next(reversed(self._all(TopologySet)), None)

    @property
    def work_set(self) -> WorkSet | None:
        """Tell the number of parameters; none where the run did not tell."""
        return next(reversed(self._all(WorkSet)), None)

    @property
    def rounds(self) -> list[RoundFinished]:
        """List the rounds that stand."""
        return [event for event in self._all(RoundFinished) if event.round]

    @property
    def ending(self) -> RunFinished | None:
        """Tell how the run ended."""
        return next(reversed(self._all(RunFinished)), None)

    @property
    def tested_round(self) -> str:
        """Name the round whose model was tested."""
        return next((row["round"] for row in self.run.scores), "unknown")

    @property
    def tested_digest(self) -> str:
        """Give the digest of the round that was tested."""
        found = (e.digest for e in self.rounds if str(e.round) == self.tested_round)
        return next(found, "unknown")

    @property
    def missed(self) -> dict[str, list[int]]:
        """Map each site that did not answer to the rounds that went on without it."""
        found: dict[str, list[int]] = {}
        for event in self._all(SiteMissed):
            found.setdefault(event.site, []).append(event.round)
        return found

    @property
    def work(self) -> list[Work]:
        """Add up each site's rounds, steps and bytes."""
        return [self._work(site) for site in self.started.sites]

    def _work(self, site: str) -> Work:
        trained = {e.round: e for e in self._all(SiteTrained) if e.site == site}
        up = [e for kind in (SiteTrained, SiteExchanged, SiteValidated) for e in self._all(kind)]
        return Work(
            site=site,
            rounds=len(trained),
            steps=sum(event.steps for event in trained.values()),
            bytes_up=sum(event.bytes_up for event in up if event.site == site),
            bytes_down=sum(
                e.bytes_down for e in [*up, *self._all(SiteMonitored)] if e.site == site
            ),
        )

    @cached_property
    def scores(self) -> list[Score]:
        """Describe the test scores of every site, task and metric."""
        return scores_by_task(self.run.scores)

    @cached_property
    def unseen(self) -> list[Score]:
        """Describe the test scores of the sites that did not train."""
        return scores_by_task(self.run.unseen)

    @cached_property
    def sites(self) -> Mapping[str, Score]:
        """Describe every site by the main metric, each patient's tasks averaged."""
        metric = main_metric(self.run.scores)
        return scores_by_site(self.run.scores, metric) if metric else {}

    @property
    def worst(self) -> Score | None:
        """Give the worst site; none where nothing was scored."""
        return worst(self.sites) if self.sites else None

    @property
    def alone(self) -> Mapping[str, Score]:
        """Map each site to its best score by training alone, where the comparison knows one."""
        metric, found = main_metric(self.run.scores), dict[str, Score]()
        each = [scores_by_site(run.scores, metric) for run in self.chosen.alone] if metric else []
        for site, score in (pair for scores in each for pair in scores.items()):
            found[site] = better(found.get(site, score), score)
        return found

    @property
    def pooled(self) -> bool:
        """Tell whether all sites' data lay in one place."""
        return self.study["method"]["kind"] == "central"

    def _all(self, kind: type[Kind]) -> list[Kind]:
        return [event for event in self.run.events if isinstance(event, kind)]


def better(first: Score, second: Score) -> Score:
    """Give the better one of two scores; the first where they are equal."""
    return second if is_better(second, first) else first


def is_better(first: Score, second: Score) -> bool:
    """Tell whether the first score's mean is better."""
    if first.metric.higher_is_better:
        return first.mean > second.mean
    return first.mean < second.mean


def totals(ready: Iterable[SiteReady], split: str) -> int:
    """Count the patients of a split over all sites."""
    return sum(each.patients.get(split, 0) for each in ready)
