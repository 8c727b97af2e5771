"""Hospitals that did not take part: what a model scores there, and what taking part brings."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from grandrounds.report.arm import Arm, Units, over_tasks, tasks_of, units_of
from grandrounds.report.facts import Facts
from grandrounds.report.metrics import Metric
from grandrounds.report.run import Scores
from grandrounds.report.statistics import Paired, paired
from grandrounds.report.summary import told
from grandrounds.report.words import few, level, shown

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
    def gain(self) -> Paired | None:
        """Tell what taking part brings."""
        return paired([self.gains]) if self.gains else None


@dataclass(frozen=True)
class Overall:
    """An arm's means over the sites that it was trained without; sites count alike."""

    arm: Arm
    without: float
    took_part: float
    gain: Paired


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
    scores: Mapping[int, Scores],
    tasks: Mapping[int, Scores],
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
    for one in _flat(found):
        if one.gains:
            by_arm.setdefault(one.arm.name, []).append(one)
    most = max((len(each) for each in by_arm.values()), default=0)
    return [_overall(each) for each in by_arm.values() if len(each) == most > 1]


def _flat(found: Mapping[str, Sequence[LeftOut]]) -> list[LeftOut]:
    return [one for each in found.values() for one in each]


def _overall(found: Sequence[LeftOut]) -> Overall:
    return Overall(
        found[0].arm,
        fmean(one.without for one in found),
        fmean(one.took_part for one in found if one.took_part is not None),
        paired([one.gains for one in found]),
    )


def sentence(found: Mapping[str, Sequence[LeftOut]], metric: Metric) -> str:
    """Say what the first arm reaches where it was trained without the hospital, and with it."""
    everything = _flat(found)
    own = [one for one in everything if one.arm is everything[0].arm]
    once = [one for one in own if one.gains]
    never = [one for one in own if not one.gains]
    said = [_once(once, metric)] if once else []
    return " ".join([*said, _never(never, metric)] if never else said)


def _once(found: Sequence[LeftOut], metric: Metric) -> str:
    means, single = _overall(found), len(found) == 1
    where = (
        f"at {shown(found[0].site)} when it was trained without this hospital"
        if single
        else "on average at hospitals that it was trained without, one at a time"
    )
    return (
        f"{means.arm.title} reached {level(means.without, metric)} ({metric.label}) {where}, and "
        f"{level(means.took_part, metric)} on the same patients when "
        f"{'it' if single else 'they'} took part: taking part brings {told(means.gain, metric)}."
    )


def _never(found: Sequence[LeftOut], metric: Metric) -> str:
    reached = few([f"{level(one.without, metric)} at {shown(one.site)}" for one in found])
    return f"{found[0].arm.title} reached {reached} ({metric.label}), which never took part."


def personal(found: Mapping[str, Sequence[LeftOut]]) -> str:
    """Say that what stays at the hospitals is untrained at one that did not take part."""
    arms = {one.arm.name: one.arm for one in _flat(found)}
    titles = [arm.title for arm in arms.values() if keeps_private(arm)]
    if not titles:
        return ""
    return (
        f"{few(titles)} {'keeps' if len(titles) == 1 else 'keep'} a part of the model at each "
        "hospital. At a hospital that did not take part this part has its first, untrained "
        "weights: the method is not at its best there until the hospital trains that part "
        "(grandrounds adapt)."
    )


def keeps_private(arm: Arm) -> bool:
    """Tell whether a federation leaves a part of the tested model at the sites."""
    policy = arm.runs[0].policy
    kept = [g.group for g in policy.groups if g.policy == "private"] if policy else []
    return arm.federated and any(group not in TRAINING_ONLY for group in kept)
