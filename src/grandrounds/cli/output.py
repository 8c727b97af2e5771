"""The results of runs are printed here, as tables or as JSON."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.table import Table
from rich.text import Text

from grandrounds.api.progress import plain_console
from grandrounds.cli.tables import print_table
from grandrounds.report.analysis.arm import Arm, apart_by, worst_site
from grandrounds.report.analysis.auc import Discrimination
from grandrounds.report.analysis.cross_site import LeftOut, cross_site_matrices, left_out
from grandrounds.report.analysis.facts import Difference, Facts, read_facts
from grandrounds.report.analysis.metrics import Metric
from grandrounds.report.analysis.statistics import LEVEL, Spread
from grandrounds.report.prose.sentences import unequal_depth, unfinished
from grandrounds.report.prose.summary import summary_sentences
from grandrounds.report.prose.vocabulary import duration, own_steps, size, steps

MOST_COLUMNS = 5  # with more arms than these, arms are rows


def print_json(value: object) -> None:
    """Print the result of a command with --json."""
    print(json.dumps(value, indent=2))


def print_line(name: str, value: str, *, as_json: bool) -> None:
    """Print the one value of a command, and flush it for whoever waits for it."""
    print(json.dumps({name: value}) if as_json else f"{name}: {value}", flush=True)


def show(folder: Path, report: Path, *, as_json: bool, quiet: bool) -> None:
    """Print a folder's results on stdout. Raises `BadFolder`."""
    facts = read_facts(folder)
    if as_json:
        print_json(_as_json(facts, folder, report))
        return
    console = plain_console()
    if facts.main_metric and not quiet:
        print_table(_table(facts, facts.main_metric), console)
    if facts.discriminated and not quiet:
        print_table(_discrimination(facts), console)
    if facts.main_metric and not quiet:
        print_table(_costs(facts), console)
        if words := unequal_depth(facts):
            console.print(words, highlight=False, soft_wrap=True)
    console.print(f"report: {report}", soft_wrap=True)


def _as_json(facts: Facts, folder: Path, report: Path) -> dict[str, object]:
    return {
        "folder": str(folder),
        "report": str(report),
        "seeds": list(facts.seeds),
        "metric": facts.main_metric.key if facts.main_metric else None,
        "summary": [sentence.replace("\u00a0", " ") for sentence in summary_sentences(facts)],
        "unfinished": unfinished(facts),
        "unequal_depth": unequal_depth(facts),
        "arms": {arm.name: _arm(facts, arm) for arm in facts.arms},
    }


def _arm(facts: Facts, arm: Arm) -> dict[str, object]:
    keys = [metric.key for metric in facts.metrics]
    return {
        "title": arm.title,
        "rounds": len(arm.runs[0].rounds),
        "best_round": arm.runs[0].best_round,
        "digest": _digest(arm),
        "cost": _cost(arm),
        "seeds": {str(seed): means for seed, means in _by_seed(facts, arm).items()},
        "mean": {key: spread.mean for key in keys if (spread := arm.overall(key))},
        "sites": {
            site: {
                task: {key: s.mean for key in keys if (s := arm.spread(site, task, key))}
                for task in facts.tasks(site)
            }
            for site in facts.sites
        },
        "statistics": _statistics(facts, arm),
        "auc": _aucs(arm),
        "matrix": _matrix(facts, arm),
        "unseen": {site: _left_out(each[0]) for site, each in left_out(facts, [arm]).items()},
    }


def _cost(arm: Arm) -> dict[str, object]:
    """Return the steps of the tested model, and what a run cost on average over seeds."""
    return {
        "local_steps": asdict(arm.local_steps) if arm.local_steps else None,
        "steps_in_a_row": asdict(arm.steps_in_a_row) if arm.steps_in_a_row else None,
        "wall_clock_seconds": arm.wall_clock,
        "bytes": arm.num_bytes,
    }


def _digest(arm: Arm) -> str | None:
    digests = [event.digest for event in arm.runs[0].finished_rounds]
    return digests[-1] if digests else None


def _by_seed(facts: Facts, arm: Arm) -> dict[int, dict[str, float]]:
    found: dict[int, dict[str, float]] = {seed: {} for seed in arm.seeds}
    for metric in facts.metrics:
        for seed, mean in arm.overall_by_seed(metric.key).items():
            found[seed][metric.key] = mean
    return found


def _statistics(facts: Facts, arm: Arm) -> dict[str, object]:
    """Return the intervals of an arm, and how much better than it the first arm is."""
    at_sites = {s: d[arm.name] for s, d in facts.compared_at.items() if arm.name in d}
    return {
        "overall": {metric.key: _overall(arm, metric) for metric in facts.metrics},
        "sites": {site: _site(facts, arm, site) for site in facts.sites},
        "worse_than_alone": facts.num_worse_than_alone(arm),
        "first_arm_minus_this": _difference(facts.compared.get(arm.name)),
        "first_arm_minus_this_at": {site: _difference(d) for site, d in at_sites.items()},
    }


def _overall(arm: Arm, metric: Metric) -> dict[str, object] | None:
    spread = arm.overall(metric.key)
    if spread is None:
        return None
    return {
        **asdict(spread),
        "seed_sd": arm.seed_sd(metric.key),
        "worst_site": worst_site(arm, metric)[0],
        "apart": apart_by(arm, metric),
    }


def _site(facts: Facts, arm: Arm, site: str) -> dict[str, object]:
    spreads = {m.key: arm.site_spread(site, m.key) for m in facts.metrics}
    return {key: asdict(spread) for key, spread in spreads.items() if spread}


def _difference(found: Difference | None) -> dict[str, object] | None:
    if found is None:
        return None
    return {**asdict(found.paired), "p_holm": found.corrected, "clear": found.clear}


def _matrix(facts: Facts, arm: Arm) -> dict[str, dict[str, float]]:
    """Return the means of every site's model at every site, by the main metric."""
    found = [crossing.means for crossing in cross_site_matrices(facts) if crossing.arm is arm]
    return {model: dict(row) for means in found for model, row in means.items()}


def _left_out(found: LeftOut) -> dict[str, object]:
    gain = asdict(found.gain) if found.gain else None
    return {"mean": found.without, "took_part": found.took_part, "taking_part_brings": gain}


def _aucs(arm: Arm) -> dict[str, dict[str, object]]:
    found: dict[str, dict[str, object]] = {}
    for (site, task), value in arm.discrimination.items():
        found.setdefault(site, {})[task] = asdict(value)
    return found


def _discrimination(facts: Facts) -> Table:
    several = len(facts.seeds) > 1
    spread = "range over seeds" if several else f"{LEVEL} % interval over patients"
    table = Table(title=f"Test AUC, and its {spread}")
    for name in ("site", "task", "arm", "AUC"):
        table.add_column(name)
    for cell in facts.discriminated:
        for arm in facts.arms:
            table.add_row(*cell, arm.title, _auc(arm.discrimination.get(cell)))
    return table


def _costs(facts: Facts) -> Table:
    """Make the table of steps, wall-clock and bytes, which has room on 80 columns."""
    table = Table("arm", title="Steps of the model tested; time and bytes of the whole run")
    for name in ("own steps", "in a row", "wall-clock", "traffic"):
        table.add_column(name, justify="right")
    for arm in facts.arms:
        took = "not known" if arm.wall_clock is None else duration(arm.wall_clock)
        table.add_row(
            arm.title, own_steps(arm), steps(arm.steps_in_a_row), took, size(arm.num_bytes)
        )
    return table


def _auc(found: Discrimination | None) -> str:
    if found is None:
        return "-"
    if found.auc is None:
        return "none: one class only"
    return f"{found.auc:.2f} ({found.low:.2f} to {found.high:.2f})"


def _table(facts: Facts, metric: Metric) -> Table:
    unit = f" in {metric.unit}" if metric.unit else ""
    seeds = f" of {len(facts.seeds)} seeds" if len(facts.seeds) > 1 else ""
    title = f"Test {metric.label}{unit}, mean over patients{seeds}; the best in bold"
    many = len(facts.arms) > MOST_COLUMNS
    return _by_arm(facts, metric, title) if many else _by_site(facts, metric, title)


def _by_site(facts: Facts, metric: Metric, title: str) -> Table:
    table = Table("site", "task", title=title)
    for arm in facts.arms:
        table.add_column(arm.title, justify="right")
    for site in facts.sites:
        for task in facts.tasks(site):
            spreads = [arm.spread(site, task, metric.key) for arm in facts.arms]
            table.add_row(site, task, *_cells(spreads, metric))
    table.add_section()
    table.add_row("all", "", *_cells([arm.overall(metric.key) for arm in facts.arms], metric))
    return table


def _by_arm(facts: Facts, metric: Metric, title: str) -> Table:
    table = Table("arm", title=title)
    columns: dict[str, Sequence[Spread | None]] = {
        "all": [arm.overall(metric.key) for arm in facts.arms]
    }
    for site in facts.sites:
        columns[site] = [arm.site_spread(site, metric.key) for arm in facts.arms]
    for name in (*columns, "seeds"):
        table.add_column(name, justify="right")
    cells = [_cells(spreads, metric) for spreads in columns.values()]
    for arm, row in zip(facts.arms, zip(*cells, strict=True), strict=True):
        table.add_row(arm.title, *row, str(len(arm.seeds)))
    return table


def _cells(spreads: Sequence[Spread | None], metric: Metric) -> list[Text]:
    means = [spread.mean for spread in spreads if spread]
    best = (max if metric.higher_is_better else min)(means, default=None)
    return [_cell(s.mean, bold=s.mean == best) if s else Text("-") for s in spreads]


def _cell(value: float, *, bold: bool) -> Text:
    return Text(f"{value:.2f}", "bold" if bold else "")


def print_means(
    means: Mapping[str, Mapping[str, Mapping[str, float]]], *, metric: str, title: str
) -> None:
    """Print a metric's means of models at sites, one model a row."""
    sites = list(dict.fromkeys(site for row in means.values() for site in row))
    table = Table("", *sites, title=f"{title}: test {metric}")
    for model, row in means.items():
        cells = (f"{row[site][metric]:.2f}" if site in row else "-" for site in sites)
        table.add_row(model, *cells)
    print_table(table)


def print_patients(scored: Mapping[str, str]) -> None:
    """Print which patients of each site were scored."""
    for site, which in scored.items():
        print(f"{site}: {which}")


def print_adaptation(
    site: str, steps: Mapping[str, int], scores: Mapping[str, Mapping[str, float]]
) -> None:
    """Print the steps and the scores of each model at a new site."""
    metrics = list(next(iter(scores.values())))
    table = Table("model", "own steps", *metrics, title=f"{site} joins: test scores")
    for model, means in scores.items():
        table.add_row(model, str(steps[model]), *(f"{means[m]:.3f}" for m in metrics))
    print_table(table)
