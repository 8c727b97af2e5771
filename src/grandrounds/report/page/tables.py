"""The page's tables are made here as rows of text, one row an arm."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from grandrounds.report.analysis.arm import Arm, apart_by, worst_site
from grandrounds.report.analysis.auc import Discrimination
from grandrounds.report.analysis.facts import Difference, Facts
from grandrounds.report.analysis.metrics import Metric
from grandrounds.report.analysis.statistics import Compared, PairedDifference, Spread
from grandrounds.report.page.style import Axis, axis
from grandrounds.report.prose.vocabulary import (
    amount,
    display_name,
    duration,
    level,
    operations,
    own_steps,
    size,
    steps,
    within,
)


@dataclass(frozen=True)
class ScoreCell:
    """One score in a table, as text; `best` where no other arm prints a better one."""

    mean: str
    sd: str
    interval: str
    best: bool


@dataclass(frozen=True)
class Gain(Compared):
    """A difference on the page; a composite one is to several arms, with an uncorrected test."""

    label: str
    against: str
    composite: bool = False


@dataclass(frozen=True)
class GainRows:
    """A column of differences, on an axis that includes zero."""

    axis: Axis
    rows: tuple[Gain, ...]


@dataclass(frozen=True)
class ArmSummary:
    """An arm's results over all sites, as text."""

    arm: Arm
    seeds: str
    cell: ScoreCell
    seed_sd: str
    worst: str
    apart: str
    worse_than_alone: int | None


@dataclass(frozen=True)
class Cost:
    """The cost of one run of an arm, on average over its seeds, as text."""

    arm: Arm
    parameters: str
    local_steps: str
    in_a_row: str
    moved: str
    wall_clock: str
    seconds: float
    operations: str


def cells(spreads: Sequence[Spread | None], metric: Metric) -> tuple[ScoreCell, ...]:
    """Return a column of scores as text; all that print as the best are marked."""
    printed = [round(spread.mean, 2) for spread in spreads if spread]
    best = (max if metric.higher_is_better else min)(printed, default=None)
    return tuple(_cell(spread, best, metric) for spread in spreads)


@dataclass(frozen=True)
class ArmRow:
    """One arm's scores."""

    arm: Arm
    cells: tuple[ScoreCell, ...]
    patients: int = 0


def _cell(spread: Spread | None, best: float | None, metric: Metric) -> ScoreCell:
    if spread is None:
        return ScoreCell("not scored", "", "", best=False)
    sd = "" if spread.sd is None else f"{spread.sd:.2f}"
    interval = within(spread.interval, metric)
    return ScoreCell(f"{spread.mean:.2f}", sd, interval, best=round(spread.mean, 2) == best)


def task_rows(facts: Facts, site: str, task: str) -> list[ArmRow]:
    """Return every arm's scores of one site and task, a column a metric."""
    columns = [
        cells([arm.spread(site, task, metric.key) for arm in facts.arms], metric)
        for metric in facts.metrics
    ]
    counts = [arm.num_patients(site, task) for arm in facts.arms]
    return _rows(facts, columns, counts) if columns else []


def overview(facts: Facts, metric: Metric) -> list[ArmRow]:
    """Return every arm's means, a column a site."""
    columns = [
        cells([arm.site_spread(site, metric.key) for arm in facts.arms], metric)
        for site in facts.sites
    ]
    return _rows(facts, columns, [0] * len(facts.arms))


def _rows(
    facts: Facts, columns: Sequence[Sequence[ScoreCell]], counts: Sequence[int]
) -> list[ArmRow]:
    rows = zip(facts.arms, zip(*columns, strict=True), counts, strict=True)
    return [ArmRow(arm, row, patients) for arm, row, patients in rows]


def standings(facts: Facts, metric: Metric) -> list[ArmSummary]:
    """Return every arm's results over all sites."""
    spreads = [arm.overall(metric.key) for arm in facts.arms]
    marked = cells([Spread(s.mean, None, s.n, s.interval) if s else None for s in spreads], metric)
    return [_standing(facts, a, c, metric) for a, c in zip(facts.arms, marked, strict=True)]


def _standing(facts: Facts, arm: Arm, cell: ScoreCell, metric: Metric) -> ArmSummary:
    sd, scored = arm.seed_sd(metric.key), arm.overall(metric.key)
    site, value = worst_site(arm, metric) if scored else ("", 0.0)
    return ArmSummary(
        arm=arm,
        seeds=f"{len(arm.seeds)} of {len(facts.seeds)}",
        cell=cell,
        seed_sd="" if sd is None else f"{sd:.2f}",
        worst=f"{level(value, metric)}, {display_name(site)}" if scored else "",
        apart=amount(apart_by(arm, metric), metric) if scored else "",
        worse_than_alone=facts.num_worse_than_alone(arm),
    )


def arm_gains(facts: Facts) -> GainRows:
    """Return the main arm's differences to every other arm, all sites together."""
    found = facts.compared.values()
    return _gains([_gain(d.other.title, d) for d in found])


def site_gains(facts: Facts) -> GainRows:
    """Return the main arm's differences to the best local-only arm of every site, and of all."""
    if facts.gains is None:
        return _gains([])
    each = [_gain(display_name(site), d) for site, d in facts.gains.sites.items()]
    overall, against = facts.gains.overall, "each its best local-only"
    total = Gain("All hospitals", against, composite=True, paired=overall, corrected=overall.p)
    return _gains([*each, total])


def _gain(label: str, found: Difference) -> Gain:
    return Gain(label, found.other.title, paired=found.paired, corrected=found.corrected)


def _gains(rows: Sequence[Gain]) -> GainRows:
    ends = [end for gain in rows for end in _ends(gain.paired)]
    return GainRows(axis([0.0, *ends]), tuple(rows))


def _ends(paired: PairedDifference) -> tuple[float, ...]:
    return (paired.interval.low, paired.interval.high) if paired.interval else (paired.mean,)


def costs(facts: Facts) -> list[Cost]:
    """Return every arm's cost."""
    return [_cost(arm) for arm in facts.arms]


def _cost(arm: Arm) -> Cost:
    flops = [run.flops for run in arm.runs if run.flops is not None]
    parameters = [run.workload.parameters for run in arm.runs if run.workload]
    return Cost(
        arm=arm,
        parameters=f"{parameters[0]:,}" if parameters else "not told",
        local_steps=own_steps(arm),
        in_a_row=steps(arm.steps_in_a_row),
        moved=size(arm.num_bytes),
        wall_clock="not known" if arm.wall_clock is None else duration(arm.wall_clock),
        seconds=fmean(run.seconds for run in arm.runs),
        operations=operations(fmean(flops)) if flops else "not told",
    )


def aucs(facts: Facts) -> list[tuple[Arm, tuple[Discrimination | None, ...]]]:
    """Return every arm's AUC, a column a site and task."""
    return [
        (arm, tuple(arm.discrimination.get(cell) for cell in facts.discriminated))
        for arm in facts.arms
        if arm.discrimination
    ]
