"""The rows of a paper's tables are made here, at full precision: arms, sites and pairs of arms."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, groupby
from typing import TypeAlias

from grandrounds.report.analysis.arm import Arm, apart_by, worst_site
from grandrounds.report.analysis.depth import Span
from grandrounds.report.analysis.facts import Difference, Facts, against, arm_differences
from grandrounds.report.analysis.metrics import Metric
from grandrounds.report.analysis.statistics import (
    LEVEL,
    Compared,
    Interval,
    Spread,
    paired,
    together,
)
from grandrounds.report.paper.latex import (
    LatexTable,
    best_rows,
    bold,
    digits,
    escaped,
    interval_text,
    number,
    p_value_text,
)
from grandrounds.report.prose.vocabulary import display_name

PaperRow: TypeAlias = dict[str, object]  # column -> value; None where there is no value


@dataclass(frozen=True)
class StandingRow:
    """The result of an arm over all sites by one metric.

    `behind` is how much better the first arm is; None for the first arm itself.
    """

    arm: Arm
    metric: Metric
    overall: Spread
    seed_sd: float | None
    worst_site: str
    worst: float
    apart: float
    worse_than_local: int | None
    behind: Difference | None


@dataclass(frozen=True)
class SiteScore:
    """The result of an arm at one site and task by one metric."""

    arm: Arm
    site: str
    task: str
    metric: Metric
    spread: Spread


@dataclass(frozen=True)
class ArmPair(Compared):
    """Two arms compared on the same patients, all sites together; above 0 the first is better."""

    first: Arm
    second: Arm
    metric: Metric


@dataclass(frozen=True)
class PaperRows:
    """All rows of the tables of one folder; each list is computed once."""

    facts: Facts

    @cached_property
    def standings(self) -> list[StandingRow]:
        """Return every arm that is scored at all its sites, metric by metric."""
        return [row for metric in self.facts.metrics for row in _standings(self.facts, metric)]

    @property
    def costs(self) -> tuple[Arm, ...]:
        """Return every arm that has started, as soon as one of them is scored."""
        return self.facts.arms if self.facts.main_metric else ()

    @cached_property
    def sites(self) -> list[SiteScore]:
        """Return every arm's scores at every site and task, metric by metric."""
        places = [(s, t) for s in self.facts.sites for t in self.facts.tasks(s)]
        return [
            SiteScore(arm, site, task, metric, spread)
            for metric in self.facts.metrics
            for site, task in places
            for arm in self.facts.arms
            if (spread := arm.spread(site, task, metric.key))
        ]

    @cached_property
    def pairs(self) -> list[ArmPair]:
        """Compare every two arms by the main metric, and correct all tests together."""
        metric = self.facts.main_metric
        return _pairs(self.facts, metric) if metric else []


def _standings(facts: Facts, metric: Metric) -> Iterable[StandingRow]:
    hero = facts.main_arm
    found = against(hero, facts.arms[1:], sites=facts.sites, metric=metric) if hero else {}
    for arm in facts.arms:
        overall = arm.overall(metric.key)
        if overall:
            yield _standing(facts, arm, metric, overall, behind=found.get(arm.name))


def _standing(
    facts: Facts, arm: Arm, metric: Metric, overall: Spread, *, behind: Difference | None
) -> StandingRow:
    site, worst = worst_site(arm, metric)
    judged = facts.num_worse_than_alone(arm) if metric is facts.main_metric else None
    return StandingRow(
        arm=arm,
        metric=metric,
        overall=overall,
        seed_sd=arm.seed_sd(metric.key),
        worst_site=site,
        worst=worst,
        apart=apart_by(arm, metric),
        worse_than_local=judged,
        behind=behind,
    )


def _pairs(facts: Facts, metric: Metric) -> list[ArmPair]:
    return together(
        ArmPair(first, second, metric, paired=paired(strata))
        for first, second in combinations(facts.arms, 2)
        if all(
            strata := [arm_differences(first, second, site=s, metric=metric) for s in facts.sites]
        )
    )


def standing_row(row: StandingRow) -> PaperRow:
    """Return the columns of arms.csv."""
    return {
        **_named(row.arm),
        "metric": row.metric.key,
        "seeds": len(row.arm.seeds),
        "sites": row.overall.n,
        "mean": row.overall.mean,
        **_ends(row.overall.interval),
        "sd_over_seeds": row.seed_sd,
        "worst_site": row.worst_site,
        "worst_site_mean": row.worst,
        "best_minus_worst_site": row.apart,
        "sites_worse_than_local": row.worse_than_local,
        **_difference(row.behind),
        **_depth(row.arm),
    }


def site_row(row: SiteScore) -> PaperRow:
    """Return the columns of sites.csv."""
    return {
        "site": row.site,
        "task": row.task,
        "metric": row.metric.key,
        **_named(row.arm),
        "patients": row.spread.n,
        "mean": row.spread.mean,
        "sd": row.spread.sd,
        **_ends(row.spread.interval),
    }


def pair_row(row: ArmPair) -> PaperRow:
    """Return the columns of pairs.csv."""
    return {
        "first": row.first.name,
        "second": row.second.name,
        "metric": row.metric.key,
        **_difference(row),
    }


def _named(arm: Arm) -> PaperRow:
    return {"arm": arm.name, "title": arm.title}


def cost_row(arm: Arm) -> PaperRow:
    """Return the columns of costs.csv; time and bytes are means over seeds."""
    took = {"wall_clock_seconds": arm.wall_clock, "bytes": arm.num_bytes}
    return {**_named(arm), **_depth(arm), **took}


def _depth(arm: Arm) -> PaperRow:
    own, row = arm.local_steps, arm.steps_in_a_row
    return {
        "local_steps_low": own.low if own else None,
        "local_steps_high": own.high if own else None,
        "steps_in_a_row_low": row.low if row else None,
        "steps_in_a_row_high": row.high if row else None,
    }


def _ends(interval: Interval | None, prefix: str = "") -> PaperRow:
    low, high = (interval.low, interval.high) if interval else (None, None)
    return {f"{prefix}interval_low": low, f"{prefix}interval_high": high}


def _difference(found: Compared | None) -> PaperRow:
    interval = found.paired.interval if found else None
    return {
        "difference": found.paired.mean if found else None,
        **_ends(interval, "difference_"),
        "pairs": found.paired.n if found else None,
        "p": found.paired.p if found else None,
        "p_holm": found.corrected if found else None,
        "clear": found.clear if found else None,
    }


NEEDS = r"Needs \usepackage{booktabs}."
_INTERVAL = f"{LEVEL}\\,\\% interval"


def arms_table(rows: PaperRows) -> str:
    """Write every arm over all sites by the main metric."""
    metric = rows.facts.main_metric
    found = [row for row in rows.standings if row.metric is metric]
    if metric is None or not found:
        return ""
    columns = [
        [escaped(row.arm.title) for row in found],
        *_means(found, metric),
        _plain([row.seed_sd for row in found], found),
        *_worst(found, metric),
        _counts(found),
        *_behind(found),
        [_steps(row.arm.local_steps) for row in found],
        [_steps(row.arm.steps_in_a_row) for row in found],
    ]
    heads = ("Arm", f"Mean{_unit(metric)}", _INTERVAL, "SD over seeds", "Worst site", "Its mean")
    heads += ("Best $-$ worst", "Worse than local", "Difference", _INTERVAL, "$p$ (Holm)")
    heads += ("Local steps", "Steps in a row")
    note = f"{NEEDS} Test {metric.label} over all sites, which count alike; {_better(metric)}."
    if hero := rows.facts.main_arm:
        note += f"\nDifference: {hero.title} minus the arm, above 0 the former is better."
    return LatexTable("lrlrrlrrrlrrr", heads, tuple(zip(*columns, strict=True)), note).text()


def _means(found: Sequence[StandingRow], metric: Metric) -> list[list[str]]:
    intervals = [row.overall.interval for row in found]
    decimals = digits(intervals)
    means = _marked([row.overall.mean for row in found], decimals, metric)
    return [means, [interval_text(each, decimals) for each in intervals]]


def _marked(values: Sequence[float], decimals: int, metric: Metric) -> list[str]:
    tops = best_rows(values, decimals, highest=metric.higher_is_better)
    texts = [number(value, decimals) for value in values]
    return [bold(text) if top else text for text, top in zip(texts, tops, strict=True)]


def _plain(values: Sequence[float | None], found: Sequence[StandingRow]) -> list[str]:
    decimals = digits(row.overall.interval for row in found)
    return ["--" if value is None else number(value, decimals) for value in values]


def _worst(found: Sequence[StandingRow], metric: Metric) -> list[list[str]]:
    decimals = digits(row.overall.interval for row in found)
    values = _marked([row.worst for row in found], decimals, metric)
    names = [escaped(display_name(row.worst_site)) for row in found]
    return [names, values, _plain([row.apart for row in found], found)]


def _counts(found: Sequence[StandingRow]) -> list[str]:
    return ["--" if r.worse_than_local is None else str(r.worse_than_local) for r in found]


def _behind(found: Sequence[StandingRow]) -> list[list[str]]:
    differences = [row.behind.paired if row.behind else None for row in found]
    decimals = digits(each.interval for each in differences if each)
    return [
        [number(d.mean, decimals, signed=True) if d else "--" for d in differences],
        [interval_text(d.interval, decimals, signed=True) if d else "" for d in differences],
        [p_value_text(row.behind.corrected) if row.behind else "--" for row in found],
    ]


def costs_table(rows: PaperRows) -> str:
    """Write the steps of every arm's tested model, the wall-clock over sites and the bytes."""
    if not rows.costs:
        return ""
    heads = ("Arm", "Local steps", "Steps in a row", "Wall-clock (s)", "Bytes (MB)")
    note = (
        f"{NEEDS} Steps: of the model tested, from the fewest to the most over sites and seeds.\n"
        "Wall-clock: the slowest site of each group that trains side by side, all rounds; bytes: "
        "sent and received\nby all sites. Both are means over seeds."
    )
    return LatexTable("lrrrr", heads, tuple(_cost(arm) for arm in rows.costs), note).text()


def _cost(arm: Arm) -> tuple[str, ...]:
    return (
        escaped(arm.title),
        _steps(arm.local_steps),
        _steps(arm.steps_in_a_row),
        "--" if arm.wall_clock is None else number(arm.wall_clock, 1),
        number(arm.num_bytes / 1e6, 1),
    )


def _steps(found: Span | None) -> str:
    if found is None:
        return "--"
    return str(found.low) if found.low == found.high else f"{found.low}--{found.high}"


def sites_table(rows: PaperRows) -> str:
    """Write every arm at every site and task by the main metric, one tabular for each of them."""
    metric = rows.facts.main_metric
    if metric is None:
        return ""
    found = [row for row in rows.sites if row.metric is metric]
    groups = groupby(found, key=lambda row: (row.site, row.task))
    return "\n".join(_site_table(list(group), metric) for _, group in groups)


def _site_table(found: Sequence[SiteScore], metric: Metric) -> str:
    intervals = [row.spread.interval for row in found]
    decimals = digits(intervals)
    columns = [
        [escaped(row.arm.title) for row in found],
        [str(row.spread.n) for row in found],
        _marked([row.spread.mean for row in found], decimals, metric),
        ["--" if r.spread.sd is None else number(r.spread.sd, decimals) for r in found],
        [interval_text(each, decimals) for each in intervals],
    ]
    where = f"{display_name(found[0].site)}, {found[0].task}"
    note = f"{NEEDS} {where}: test {metric.label}; {_better(metric)}."
    heads = (escaped(where), "Patients", f"Mean{_unit(metric)}", "SD", _INTERVAL)
    return LatexTable("lrrrl", heads, tuple(zip(*columns, strict=True)), note).text()


def pairs_table(rows: PaperRows) -> str:
    """Write every two of the notable arms against each other; what is clear is in bold."""
    names = {arm.name for arm in rows.facts.notable}
    found = [row for row in rows.pairs if {row.first.name, row.second.name} <= names]
    if not found:
        return ""
    metric, decimals = found[0].metric, digits(row.paired.interval for row in found)
    heads = (
        "First",
        "Second",
        f"First $-$ second{_unit(metric)}",
        _INTERVAL,
        "Pairs",
        "$p$ (Holm)",
    )
    note = (
        f"{NEEDS} Test {metric.label} on the same patients; above 0 the first is better.\n"
        f"In bold: the interval leaves out zero and p, after Holm for {len(rows.pairs)} pairs, "
        "is below 0.05."
    )
    return LatexTable("llrlrr", heads, tuple(_pair(row, decimals) for row in found), note).text()


def _pair(row: ArmPair, decimals: int) -> tuple[str, ...]:
    difference = number(row.paired.mean, decimals, signed=True)
    return (
        escaped(row.first.title),
        escaped(row.second.title),
        bold(difference) if row.clear else difference,
        interval_text(row.paired.interval, decimals, signed=True),
        str(row.paired.n),
        p_value_text(row.corrected),
    )


def _unit(metric: Metric) -> str:
    return f" ({metric.unit})" if metric.unit else ""


def _better(metric: Metric) -> str:
    return f"{'higher' if metric.higher_is_better else 'lower'} is better"
