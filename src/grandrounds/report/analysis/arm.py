"""The numbers of one arm are computed here from its runs, one for each seed.

The unit is the patient: cases are averaged within a patient and task first. With another seed a
simulated site has other patients, so there a unit is a seed's patient; a real site has the same
patients for all seeds, so there a patient's scores are averaged over the seeds.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean, stdev
from typing import TypeAlias

from grandrounds.core.events import RunStarted, SiteReady
from grandrounds.core.names import POOLED
from grandrounds.report.analysis.auc import Discrimination, merged
from grandrounds.report.analysis.depth import Span, span
from grandrounds.report.analysis.empty import EmptyCases, merged_empty
from grandrounds.report.analysis.folder import ArmEntry, ArmRecord, StudyFile
from grandrounds.report.analysis.metrics import Metric, shown
from grandrounds.report.analysis.run import Cell, Run, RunScores, run_of
from grandrounds.report.analysis.statistics import Spread, interval, spread

Unit: TypeAlias = tuple[int | None, str]  # (seed, patient); no seed where patients are the same
Units: TypeAlias = Mapping[Unit, float]
Seeds: TypeAlias = Collection[int] | None  # None: all seeds


@dataclass(frozen=True)
class Arm:
    """One arm of the report: one method's runs, and the seeds that have not started."""

    entry: ArmEntry
    runs: tuple[Run, ...]
    waiting: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """Return the arm's name in folders."""
        return self.entry.name

    @property
    def title(self) -> str:
        """Return the arm's title for readers."""
        return self.entry.title

    @property
    def study(self) -> StudyFile:
        """Return the first seed's study; others differ in the seed only."""
        return self.runs[0].study

    @property
    def started(self) -> RunStarted:
        """Return the start event of the first run."""
        return self.runs[0].started

    @property
    def local(self) -> bool:
        """Tell whether every site trained alone: none of its parameters left it."""
        policy = next((run.policy for run in self.runs if run.policy), None)
        if policy is None or self.pooled:
            return False
        return all(group.policy in ("private", "reset", "fixed") for group in policy.groups)

    @property
    def pooled(self) -> bool:
        """Tell whether all sites' data were in one place."""
        return self.started.sites == (POOLED,)

    @property
    def derived(self) -> bool:
        """Tell whether the scores come from other arms' models, and nothing was trained."""
        return self.runs[0].derived is not None

    @property
    def chosen(self) -> bool:
        """Tell whether every site took the arm that validates best there."""
        return any(run.derived and run.derived.chosen for run in self.runs)

    @property
    def federated(self) -> bool:
        """Tell whether sites trained together, each with its own data."""
        return not self.local and not self.pooled and not self.derived

    @cached_property
    def ready(self) -> Mapping[str, SiteReady]:
        """Return what data each site has, from the first run that reports it."""
        found: dict[str, SiteReady] = {}
        for run in reversed(self.runs):
            found |= run.ready
        return found

    @property
    def scored_runs(self) -> tuple[Run, ...]:
        """Return the runs that were tested."""
        return tuple(run for run in self.runs if run.scores)

    @property
    def seeds(self) -> tuple[int, ...]:
        """Return the seeds whose runs were tested."""
        return tuple(run.seed for run in self.scored_runs)

    @property
    def metrics(self) -> tuple[str, ...]:
        """Return the metrics that were scored, the main one first."""
        present = [metric for run in self.runs for *_, metric in run.scores]
        return shown(present, own=self.study.own_task)

    def scored_tasks(self, site: str, metric: str) -> tuple[str, ...]:
        """Return the tasks of a site that have test scores."""
        each = [tasks_of(run.scores, site, metric) for run in self.runs]
        return tuple(dict.fromkeys(task for tasks in each for task in tasks))

    def units(self, site: str, metric: str, *, task: str, seeds: Seeds = None) -> Units:
        """Return one value for each patient of one site and task."""
        runs = [run for run in self.scored_runs if seeds is None or run.seed in seeds]
        scores = {run.seed: run.scores for run in runs}
        return units_of(scores, (site, task, metric), simulated=self.simulates(site))

    def simulates(self, site: str) -> bool:
        """Tell whether a site's patients are simulated, so that another seed has others."""
        return self.ready[site].simulated if site in self.ready else site in self.study.simulated

    def site_units(self, site: str, metric: str, *, seeds: Seeds = None) -> Units:
        """Return one value for each patient of a site, averaged over the tasks."""
        tasks = self.scored_tasks(site, metric)
        return over_tasks([self.units(site, metric, task=task, seeds=seeds) for task in tasks])

    def spread(self, site: str, task: str, metric: str) -> Spread | None:
        """Return the spread over patients of one site and task; None where unscored."""
        return _described(self.units(site, metric, task=task))

    def num_patients(self, site: str, task: str) -> int:
        """Count the patients of one site and task that were scored."""
        return max((len(self.units(site, key, task=task)) for key in self.metrics), default=0)

    def site_spread(self, site: str, metric: str, *, seeds: Seeds = None) -> Spread | None:
        """Return the spread over a site's patients, their tasks averaged; None where unscored."""
        return _described(self.site_units(site, metric, seeds=seeds))

    def overall(self, metric: str, *, seeds: Seeds = None) -> Spread | None:
        """Return the mean of the sites' means, their deviation, and the interval over patients.

        None unless every site of the study is scored; `n` counts sites.
        """
        sites = [list(self.site_units(s, metric, seeds=seeds).values()) for s in self.study.sites]
        if not all(sites):
            return None
        means = [fmean(values) for values in sites]
        sd = stdev(means) if len(means) > 1 else None
        return Spread(fmean(means), sd, len(means), interval(sites))

    def overall_by_seed(self, metric: str) -> Mapping[int, float]:
        """Return each seed's mean over sites."""
        found = {seed: self.overall(metric, seeds=(seed,)) for seed in self.seeds}
        return {seed: described.mean for seed, described in found.items() if described}

    def seed_sd(self, metric: str) -> float | None:
        """Return the standard deviation of the mean over seeds; None for a single seed."""
        means = list(self.overall_by_seed(metric).values())
        return stdev(means) if len(means) > 1 else None

    @cached_property
    def discrimination(self) -> Mapping[tuple[str, str], Discrimination]:
        """Return the AUC by (site, task), over all seeds."""
        cells = dict.fromkeys(cell for run in self.runs for cell in run.discrimination)
        found = {cell: [run.discrimination.get(cell) for run in self.runs] for cell in cells}
        return {cell: merged([one for one in each if one]) for cell, each in found.items()}

    @cached_property
    def empty(self) -> EmptyCases | None:
        """Return the test cases with an empty structure, of all seeds; None where none has."""
        return merged_empty([run.empty for run in self.runs])

    def auc(self, site: str) -> float | None:
        """Return a site's AUC, averaged over the tasks for which it is defined, or None."""
        found = [d.auc for (at, _), d in self.discrimination.items() if at == site]
        defined = [value for value in found if value is not None]
        return fmean(defined) if defined else None

    @property
    def local_steps(self) -> Span | None:
        """Return a site's own steps for the tested model: the fewest and the most, all seeds."""
        return span(n for run in self.runs for n in run.depth.local_steps.values())

    @property
    def steps_in_a_row(self) -> Span | None:
        """Return the steps in a row of the tested model, over seeds; None where not known."""
        return span(n for run in self.runs if (n := run.depth.in_a_row) is not None)

    @property
    def depth_allowed(self) -> int | None:
        """Return how many steps in a row the arm's models may take; None where not known."""
        found = [run.depth.allowed for run in self.runs]
        return max((steps for steps in found if steps is not None), default=None)

    @property
    def wall_clock(self) -> float | None:
        """Return the seconds of a run over sites, on average over seeds; None where not known."""
        found = [run.depth.wall_clock for run in self.runs]
        known = [seconds for seconds in found if seconds is not None]
        return fmean(known) if known and len(known) == len(found) else None

    @property
    def num_bytes(self) -> int:
        """Return the bytes that all sites sent and received, on average over seeds."""
        return round(fmean(run.num_bytes for run in self.runs))

    @property
    def still_rising(self) -> bool:
        """Tell whether a tested run validated best in the last of several validated rounds."""
        curves = [run.weighted for run in self.scored_runs]
        return any(
            len(curve) > 1 and curve[-1][1] > max(score for _, score in curve[:-1])
            for curve in curves
        )


def arm_of(folder: ArmRecord) -> Arm:
    """Compute the numbers of one arm. Raises `BadFolder` for a score of an unknown site."""
    return Arm(folder.entry, tuple(run_of(run) for run in folder.runs), folder.waiting)


def tasks_of(scores: RunScores, site: str, metric: str) -> tuple[str, ...]:
    """Return the tasks of a site that have scores."""
    return tuple(task for at, task, key in scores if (at, key) == (site, metric))


def units_of(scores: Mapping[int, RunScores], cell: Cell, *, simulated: bool) -> Units:
    """Return one value for each patient of one site and task, from the scores of each seed."""
    found: dict[Unit, list[float]] = defaultdict(list)
    for seed, each in scores.items():
        for patient, value in each.get(cell, {}).items():
            found[seed if simulated else None, patient].append(value)
    return _means(found)


def over_tasks(tasks: Iterable[Units]) -> Units:
    """Return one value for each patient, averaged over the tasks."""
    found: dict[Unit, list[float]] = defaultdict(list)
    for units in tasks:
        for unit, value in units.items():
            found[unit].append(value)
    return _means(found)


def _means(found: Mapping[Unit, list[float]]) -> Units:
    return {unit: fmean(values) for unit, values in found.items()}


def _described(units: Units) -> Spread | None:
    return spread(list(units.values())) if units else None


def site_means(arm: Arm, metric: Metric) -> dict[str, float]:
    """Map each scored site to its mean."""
    spreads = {site: arm.site_spread(site, metric.key) for site in arm.study.sites}
    return {site: spread.mean for site, spread in spreads.items() if spread}


def worst_site(arm: Arm, metric: Metric) -> tuple[str, float]:
    """Return the site with the worst mean, and that mean."""
    means = site_means(arm, metric)
    choose = min if metric.higher_is_better else max
    site = choose(means, key=lambda name: means[name])
    return site, means[site]


def apart_by(arm: Arm, metric: Metric) -> float:
    """Return the difference between the best and the worst site's means."""
    means = site_means(arm, metric).values()
    return max(means) - min(means)
