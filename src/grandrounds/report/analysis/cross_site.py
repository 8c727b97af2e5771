"""Each site's model is compared here at every site, and at sites that it was trained without."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from grandrounds.report.analysis.arm import Arm, Units, over_tasks, tasks_of, units_of
from grandrounds.report.analysis.facts import Facts
from grandrounds.report.analysis.metrics import Metric
from grandrounds.report.analysis.run import Run, RunScores
from grandrounds.report.analysis.statistics import PairedDifference, paired


@dataclass(frozen=True)
class CrossSiteMatrix:
    """The scores of an arm's models: `means` maps a model's site to its mean at every site."""

    arm: Arm
    metric: Metric
    means: Mapping[str, Mapping[str, float]]

    @property
    def models(self) -> tuple[str, ...]:
        """Return the sites whose models were scored."""
        return tuple(self.means)

    @property
    def sites(self) -> tuple[str, ...]:
        """Return the sites whose patients were scored, held-out sites last."""
        return tuple(dict.fromkeys(site for row in self.means.values() for site in row))

    @property
    def alike(self) -> bool:
        """Tell whether it makes no difference whose model a site uses."""
        rows = list(self.means.values())
        return all(row == rows[0] for row in rows)

    def better(self, model: str) -> float | None:
        """Return how much better a model is than the other sites' own models there, on average.

        Above 0 it is better, for every metric. None where no other site has a model.
        """
        sign = 1 if self.metric.higher_is_better else -1
        row = self.means[model]
        others = [site for site in row if site != model and site in self.means]
        found = [sign * (row[site] - self.means[site][site]) for site in others]
        return fmean(found) if found else None

    def shade(self, model: str, site: str) -> float:
        """Return where a mean lies between the worst (0) and the best (1) of its column."""
        column = [row[site] for row in self.means.values() if site in row]
        low, high = min(column), max(column)
        if low == high:
            return 0.0
        share = (self.means[model][site] - low) / (high - low)
        return share if self.metric.higher_is_better else 1 - share


def cross_site_matrices(facts: Facts) -> list[CrossSiteMatrix]:
    """Return the matrices of the arms whose models were scored at every site."""
    metric = facts.main_metric
    found = [_crossing(arm, metric) for arm in facts.arms] if metric else []
    return [crossing for crossing in found if crossing.means]


def _crossing(arm: Arm, metric: Metric) -> CrossSiteMatrix:
    runs = [run for run in arm.runs if run.crossed]
    sites = (*arm.study.sites, *arm.study.held_out)
    models = dict.fromkeys(model for run in runs for model in run.crossed)
    means = {
        model: {s: mean for s in sites if (mean := _mean(runs, model, s, metric)) is not None}
        for model in models
    }
    return CrossSiteMatrix(arm, metric, means)


def _mean(runs: Iterable[Run], model: str, site: str, metric: Metric) -> float | None:
    """Average over tasks, patients and then seeds."""
    found = [_patients(run, model, site, metric) for run in runs if model in run.crossed]
    return fmean(fmean(each) for each in found if each) if any(found) else None


def _patients(run: Run, model: str, site: str, metric: Metric) -> list[float]:
    scores = run.crossed[model]
    cells = [(site, task, metric.key) for task in tasks_of(scores, site, metric.key)]
    each = [units_of({run.seed: scores}, cell, simulated=True) for cell in cells]
    return list(over_tasks(each).values())


TRAINING_ONLY = ("critic",)  # not a part of the tested model


@dataclass(frozen=True)
class LeftOut:
    """An arm trained without a site: its mean there, and its mean when the site took part.

    `gains` are those of taking part, patient by patient, above 0 where it is better; all are on
    the tasks, seeds and patients that both have. A site that never trained has no such scores.
    """

    arm: Arm
    site: str
    without: float
    took_part: float | None
    gains: tuple[float, ...]

    @property
    def gain(self) -> PairedDifference | None:
        """Return the mean gain of taking part."""
        return paired([self.gains]) if self.gains else None


@dataclass(frozen=True)
class Overall:
    """An arm's means over the sites that it was trained without; sites have equal weights."""

    arm: Arm
    without: float
    took_part: float
    gain: PairedDifference


def left_out(facts: Facts, arms: Iterable[Arm]) -> Mapping[str, list[LeftOut]]:
    """Return the scores of these arms at each site that they were trained without."""
    study, metric = facts.arms[0].study, facts.main_metric
    if metric is None:
        return {}
    pairs = {
        site: [_left_out(arm, site, metric) for arm in arms]
        for site in (*study.sites, *study.held_out)
    }
    found = {site: [one for one in each if one] for site, each in pairs.items()}
    return {site: each for site, each in found.items() if each}


def _left_out(arm: Arm, site: str, metric: Metric) -> LeftOut | None:
    away = {run.seed: run.unseen for run in arm.runs if tasks_of(run.unseen, site, metric.key)}
    if not away:
        return None
    here = {run.seed: run.scores for run in arm.scored_runs if run.seed in away}
    outside = _units(arm, site, metric, scores=away, tasks=away)
    inside = _units(arm, site, metric, scores=here, tasks=away)
    both = [unit for unit in outside if unit in inside]
    sign = 1 if metric.higher_is_better else -1
    return LeftOut(
        arm,
        site,
        fmean(outside[unit] for unit in both or outside),
        fmean(inside[unit] for unit in both) if both else None,
        tuple(sign * (inside[unit] - outside[unit]) for unit in both),
    )


def _units(
    arm: Arm,
    site: str,
    metric: Metric,
    *,
    scores: Mapping[int, RunScores],
    tasks: Mapping[int, RunScores],
) -> Units:
    """Return one value for each patient, over the tasks of the model trained without the site."""
    asked = dict.fromkeys(
        task for each in tasks.values() for task in tasks_of(each, site, metric.key)
    )
    simulated = arm.simulates(site)
    return over_tasks(
        [units_of(scores, (site, task, metric.key), simulated=simulated) for task in asked]
    )


def overall(found: Mapping[str, Sequence[LeftOut]]) -> list[Overall]:
    """Return the means over the sites that also took part, for the arms that have all of these."""
    by_arm: dict[str, list[LeftOut]] = {}
    for one in flat(found):
        if one.gains:
            by_arm.setdefault(one.arm.name, []).append(one)
    most = max((len(each) for each in by_arm.values()), default=0)
    return [over_sites(each) for each in by_arm.values() if len(each) == most > 1]


def flat(found: Mapping[str, Sequence[LeftOut]]) -> list[LeftOut]:
    """Return the scores of all sites as one list."""
    return [one for each in found.values() for one in each]


def over_sites(found: Sequence[LeftOut]) -> Overall:
    """Return the means over sites that also took part; sites have equal weights."""
    return Overall(
        found[0].arm,
        fmean(one.without for one in found),
        fmean(one.took_part for one in found if one.took_part is not None),
        paired([one.gains for one in found]),
    )


def keeps_private(arm: Arm) -> bool:
    """Tell whether a federation leaves a part of the tested model at the sites."""
    policy = arm.runs[0].policy
    kept = [g.group for g in policy.groups if g.policy == "private"] if policy else []
    return arm.federated and any(group not in TRAINING_ONLY for group in kept)
