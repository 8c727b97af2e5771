"""A paper's tables as LaTeX, rounded to what their intervals support; the best is in bold."""

from collections.abc import Sequence
from itertools import groupby

from grandrounds.report.latex import (
    Tabular,
    best,
    between,
    bold,
    digits,
    escaped,
    number,
    probability,
)
from grandrounds.report.metrics import Metric
from grandrounds.report.paper_rows import Pair, PaperRows, SiteScore, Standing
from grandrounds.report.statistics import LEVEL
from grandrounds.report.words import shown

NEEDS = r"Needs \usepackage{booktabs}."
INTERVAL = f"{LEVEL}\\,\\% interval"


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
    ]
    heads = ("Arm", f"Mean{_unit(metric)}", INTERVAL, "SD over seeds", "Worst site", "Its mean")
    heads += ("Best $-$ worst", "Worse than local", "Difference", INTERVAL, "$p$ (Holm)")
    note = f"{NEEDS} Test {metric.label} over all sites, which count alike; {_better(metric)}."
    if hero := rows.facts.protagonist:
        note += f"\nDifference: {hero.title} minus the arm, above 0 the former is better."
    return Tabular("lrlrrlrrrlr", heads, tuple(zip(*columns, strict=True)), note).text()


def _means(found: Sequence[Standing], metric: Metric) -> list[list[str]]:
    intervals = [row.overall.interval for row in found]
    decimals = digits(intervals)
    means = _marked([row.overall.mean for row in found], decimals, metric)
    return [means, [between(each, decimals) for each in intervals]]


def _marked(values: Sequence[float], decimals: int, metric: Metric) -> list[str]:
    tops = best(values, decimals, highest=metric.higher_is_better)
    texts = [number(value, decimals) for value in values]
    return [bold(text) if top else text for text, top in zip(texts, tops, strict=True)]


def _plain(values: Sequence[float | None], found: Sequence[Standing]) -> list[str]:
    decimals = digits(row.overall.interval for row in found)
    return ["--" if value is None else number(value, decimals) for value in values]


def _worst(found: Sequence[Standing], metric: Metric) -> list[list[str]]:
    decimals = digits(row.overall.interval for row in found)
    values = _marked([row.worst for row in found], decimals, metric)
    names = [escaped(shown(row.worst_site)) for row in found]
    return [names, values, _plain([row.apart for row in found], found)]


def _counts(found: Sequence[Standing]) -> list[str]:
    return ["--" if r.worse_than_local is None else str(r.worse_than_local) for r in found]


def _behind(found: Sequence[Standing]) -> list[list[str]]:
    differences = [row.behind.paired if row.behind else None for row in found]
    decimals = digits(each.interval for each in differences if each)
    return [
        [number(d.mean, decimals, signed=True) if d else "--" for d in differences],
        [between(d.interval, decimals, signed=True) if d else "" for d in differences],
        [probability(row.behind.corrected) if row.behind else "--" for row in found],
    ]


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
        [between(each, decimals) for each in intervals],
    ]
    where = f"{shown(found[0].site)}, {found[0].task}"
    note = f"{NEEDS} {where}: test {metric.label}; {_better(metric)}."
    heads = (escaped(where), "Patients", f"Mean{_unit(metric)}", "SD", INTERVAL)
    return Tabular("lrrrl", heads, tuple(zip(*columns, strict=True)), note).text()


def pairs_table(rows: PaperRows) -> str:
    """Write every two of the notable arms against each other; what is clear is in bold."""
    names = {arm.name for arm in rows.facts.notable}
    found = [row for row in rows.pairs if {row.first.name, row.second.name} <= names]
    if not found:
        return ""
    metric, decimals = found[0].metric, digits(row.paired.interval for row in found)
    heads = ("First", "Second", f"First $-$ second{_unit(metric)}", INTERVAL, "Pairs", "$p$ (Holm)")
    note = (
        f"{NEEDS} Test {metric.label} on the same patients; above 0 the first is better.\n"
        f"In bold: the interval leaves out zero and p, after Holm for {len(rows.pairs)} pairs, "
        "is below 0.05."
    )
    return Tabular("llrlrr", heads, tuple(_pair(row, decimals) for row in found), note).text()


def _pair(row: Pair, decimals: int) -> tuple[str, ...]:
    difference = number(row.paired.mean, decimals, signed=True)
    return (
        escaped(row.first.title),
        escaped(row.second.title),
        bold(difference) if row.clear else difference,
        between(row.paired.interval, decimals, signed=True),
        str(row.paired.n),
        probability(row.corrected),
    )


def _unit(metric: Metric) -> str:
    return f" ({metric.unit})" if metric.unit else ""


def _better(metric: Metric) -> str:
    return f"{'higher' if metric.higher_is_better else 'lower'} is better"
