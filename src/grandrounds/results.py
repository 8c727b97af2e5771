"""What a command prints at its end: the test scores of every arm, as a table or as JSON."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from grandrounds.report.arm import Arm, Spread
from grandrounds.report.discrimination import LEVEL, Discrimination
from grandrounds.report.facts import Facts, read_facts
from grandrounds.report.metrics import Metric


def show(folder: Path, report: Path, *, as_json: bool, quiet: bool) -> None:
    """Print a folder's results on stdout. Raises `BadFolder`."""
    facts = read_facts(folder)
    if as_json:
        print(json.dumps(_as_json(facts, folder, report), indent=2))
        return
    console = Console()
    if facts.main_metric and not quiet:
        console.print(_table(facts, facts.main_metric))
    if facts.discrimination and not quiet:
        console.print(_discrimination(facts))
    console.print(f"report: {report}", soft_wrap=True)


def _as_json(facts: Facts, folder: Path, report: Path) -> dict[str, object]:
    return {
        "folder": str(folder),
        "report": str(report),
        "arms": {arm.entry.name: _arm(facts, arm) for arm in facts.arms},
    }


def _arm(facts: Facts, arm: Arm) -> dict[str, object]:
    keys = [metric.key for metric in facts.metrics]
    digests = [event.digest for event in arm.finished_rounds]
    return {
        "title": arm.title,
        "rounds": len(arm.rounds),
        "best_round": arm.best_round,
        "digest": digests[-1] if digests else None,
        "mean": {key: spread.mean for key in keys if (spread := arm.overall(key))},
        "sites": {
            site: {
                task: {key: s.mean for key in keys if (s := arm.spread(site, task, key))}
                for task in facts.tasks(site)
            }
            for site in facts.sites
        },
        "auc": _aucs(arm),
    }


def _aucs(arm: Arm) -> dict[str, dict[str, object]]:
    found: dict[str, dict[str, object]] = {}
    for (site, task), value in arm.discrimination.items():
        found.setdefault(site, {})[task] = asdict(value)
    return found


def _discrimination(facts: Facts) -> Table:
    table = Table(title=f"Test AUC, and its {LEVEL} % interval over patients")
    for name in ("site", "task", *(arm.title for arm in facts.arms)):
        table.add_column(name)
    for (site, task), row in facts.discrimination.items():
        table.add_row(site, task, *(_auc(found) for found in row))
    return table


def _auc(found: Discrimination | None) -> str:
    if found is None:
        return "-"
    if found.auc is None:
        return "none: one class only"
    return f"{found.auc:.2f} ({found.low:.2f} to {found.high:.2f})"


def _table(facts: Facts, metric: Metric) -> Table:
    unit = f" in {metric.unit}" if metric.unit else ""
    table = Table(title=f"Test {metric.label}{unit}, mean over patients; the best in bold")
    table.add_column("site")
    table.add_column("task")
    for arm in facts.arms:
        table.add_column(arm.title, justify="right")
    for site in facts.sites:
        for task in facts.tasks(site):
            spreads = [arm.spread(site, task, metric.key) for arm in facts.arms]
            table.add_row(site, task, *_cells(spreads, metric))
    table.add_section()
    table.add_row("all", "", *_cells([arm.overall(metric.key) for arm in facts.arms], metric))
    return table


def _cells(spreads: Sequence[Spread | None], metric: Metric) -> list[str]:
    means = [spread.mean for spread in spreads if spread]
    best = (max if metric.higher_is_better else min)(means, default=None)
    return [_cell(s.mean, bold=s.mean == best) if s else "-" for s in spreads]


def _cell(value: float, *, bold: bool) -> str:
    return f"[bold]{value:.2f}[/bold]" if bold else f"{value:.2f}"
