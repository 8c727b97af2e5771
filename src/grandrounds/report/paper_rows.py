"""The rows of a paper's tables, at full precision: arms, arms at each site, and pairs of arms."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import TypeAlias

from grandrounds.report.arm import Arm
from grandrounds.report.comparisons import Difference, against, differences
from grandrounds.report.facts import Facts
from grandrounds.report.metrics import Metric
from grandrounds.report.statistics import Compared, Interval, Spread, paired, together
from grandrounds.report.summary import apart_by, worst_site

Row: TypeAlias = dict[str, object]  # column -> value; none where there is no value


@dataclass(frozen=True)
class Standing:
    """What an arm reached over all sites by one metric.

    `behind` is how much better the first arm is; none for the first arm itself.
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
    """What an arm reached at one site and task by one metric."""

    arm: Arm
    site: str
    task: str
    metric: Metric
    spread: Spread


@dataclass(frozen=True)
class Pair(Compared):
    """Two arms on the same patients, all sites together; above 0 the first is better."""

    first: Arm
    second: Arm
    metric: Metric


@dataclass(frozen=True)
class PaperRows:
    """All rows of the tables of one folder; each list is computed once."""

    facts: Facts

    @cached_property
    def standings(self) -> list[Standing]:
        """List every arm that is scored at all its sites, metric by metric."""
        return [row for metric in self.facts.metrics for row in _standings(self.facts, metric)]

    @cached_property
    def sites(self) -> list[SiteScore]:
        """List every arm's scores at every site and task, metric by metric."""
        places = [(s, t) for s in self.facts.sites for t in self.facts.tasks(s)]
        return [
            SiteScore(arm, site, task, metric, spread)
            for metric in self.facts.metrics
            for site, task in places
            for arm in self.facts.arms
            if (spread := arm.spread(site, task, metric.key))
        ]

    @cached_property
    def pairs(self) -> list[Pair]:
        """Compare every two arms by the main metric, and correct all tests together."""
        metric = self.facts.main_metric
        return _pairs(self.facts, metric) if metric else []


def _standings(facts: Facts, metric: Metric) -> Iterable[Standing]:
    hero = facts.protagonist
    found = against(hero, facts.arms[1:], sites=facts.sites, metric=metric) if hero else {}
    for arm in facts.arms:
        overall = arm.overall(metric.key)
        if overall:
            yield _standing(facts, arm, metric, overall, behind=found.get(arm.name))


def _standing(
    facts: Facts, arm: Arm, metric: Metric, overall: Spread, *, behind: Difference | None
) -> Standing:
    site, worst = worst_site(arm, metric)
    judged = facts.num_worse_than_alone(arm) if metric is facts.main_metric else None
    return Standing(
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


def _pairs(facts: Facts, metric: Metric) -> list[Pair]:
    return together(
        Pair(first, second, metric, paired=paired(strata))
        for first, second in combinations(facts.arms, 2)
        if all(strata := [differences(first, second, site=s, metric=metric) for s in facts.sites])
    )


def standing_row(row: Standing) -> Row:
    """Give the columns of arms.csv."""
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
    }


def site_row(row: SiteScore) -> Row:
    """Give the columns of sites.csv."""
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


def pair_row(row: Pair) -> Row:
    """Give the columns of pairs.csv."""
    return {
        "first": row.first.name,
        "second": row.second.name,
        "metric": row.metric.key,
        **_difference(row),
    }


def _named(arm: Arm) -> Row:
    return {"arm": arm.name, "title": arm.title}


def _ends(interval: Interval | None, prefix: str = "") -> Row:
    low, high = (interval.low, interval.high) if interval else (None, None)
    return {f"{prefix}interval_low": low, f"{prefix}interval_high": high}


def _difference(found: Compared | None) -> Row:
    interval = found.paired.interval if found else None
    return {
        "difference": found.paired.mean if found else None,
        **_ends(interval, "difference_"),
        "pairs": found.paired.n if found else None,
        "p": found.paired.p if found else None,
        "p_holm": found.corrected if found else None,
        "clear": found.clear if found else None,
    }
