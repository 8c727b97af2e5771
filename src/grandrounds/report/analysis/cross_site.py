"""How each site's model does at every other site, and at sites that it was trained without."""

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
    """What the models of an arm score: `means` maps whose model to whose patients to the mean."""

    arm: Arm
    metric: Metric
    means: Mapping[str, Mapping[str, float]]

    @property
    def models(self) -> tuple[str, ...]:
        """List whose models there are."""
        return tuple(self.means)

    @property
    def sites(self) -> tuple[str, ...]:
        """List whose patients there are, held-out sites last."""
        return tuple(dict.fromkeys(site for row in self.means.values() for site in row))

    @property
    def alike(self) -> bool:
        """Tell whether it makes no difference whose model a site uses."""
        rows = list(self.means.values())
        return all(row == rows[0] for row in rows)

    def better(self, model: str) -> float | None:
        """Tell how much better a model is than the own ones of the other sites, on average.

        Above 0 it is better, also where a lower score is. Nothing where no other site has a model.
        """
        sign = 1 if self.metric.higher_is_better else -1
        row = self.means[model]
        others = [site for site in row if site != model and site in self.means]
        found = [sign * (row[site] - self.means[site][site]) for site in others]
        return fmean(found) if found else None

    def shade(self, model: str, site: str) -> float:
        """Place a mean between the worst (0) and the best (1) of its column."""
        column = [row[site] for row in self.means.values() if site in row]
        low, high = min(column), max(column)
        if low == high:
            return 0.0
        share = (self.means[model][site] - low) / (high - low)
        return share if self.metric.higher_is_better else 1 - share


def cross_site_matrices(facts: Facts) -> list[CrossSiteMatrix]:
    """List the arms whose models were scored everywhere."""
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


TRAINING_ONLY = ("critic",)  # no part of the model that is tested


@dataclass(frozen=True)
class LeftOut:
    """An arm trained without a site: its mean there, and what it reached when the site took part.

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
        """Tell what taking part brings."""
        return paired([self.gains]) if self.gains else None


@dataclass(frozen=True)
class Overall:
    """An arm's means over the sites that it was trained without; sites count alike."""

    arm: Arm
    without: float
    took_part: float
    gain: PairedDifference


def left_out(facts: Facts, arms: Iterable[Arm]) -> Mapping[str, list[LeftOut]]:
    """List what these arms score at each site that they were trained without."""
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
    """Average each patient over the tasks that were asked of the model that did not know it."""
    asked = dict.fromkeys(
        task for each in tasks.values() for task in tasks_of(each, site, metric.key)
    )
    simulated = arm.simulates(site)
    return over_tasks(
        [units_of(scores, (site, task, metric.key), simulated=simulated) for task in asked]
    )


def overall(found: Mapping[str, Sequence[LeftOut]]) -> list[Overall]:
    """Average over the sites that also took part, for the arms that have all of these."""
    by_arm: dict[str, list[LeftOut]] = {}
    for one in flat(found):
        if one.gains:
            by_arm.setdefault(one.arm.name, []).append(one)
    most = max((len(each) for each in by_arm.values()), default=0)
    return [over_sites(each) for each in by_arm.values() if len(each) == most > 1]


def flat(found: Mapping[str, Sequence[LeftOut]]) -> list[LeftOut]:
    """Return what was found at all sites as one list."""
    return [one for each in found.values() for one in each]


def over_sites(found: Sequence[LeftOut]) -> Overall:
    """Average over sites that also took part; sites count alike."""
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
