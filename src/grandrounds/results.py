"""What a command prints at its end: the test scores of every arm, as a table or as JSON."""

import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

from grandrounds.report.arm import Arm, Spread
from grandrounds.report.facts import Facts, read_facts

MAIN = "psnr"


def show(folder: Path, report: Path, *, as_json: bool, quiet: bool) -> None:
    """Print a folder's results on stdout. Raises `BadFolder`."""
    facts = read_facts(folder)
    if as_json:
        print(json.dumps(_as_json(facts, folder, report), indent=2))
        return
    console = Console()
    if facts.metrics and not quiet:
        console.print(_table(facts))
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
    }


def _table(facts: Facts) -> Table:
    table = Table(title="Test PSNR in dB, mean over patients; the best in bold")
    table.add_column("site")
    table.add_column("task")
    for arm in facts.arms:
        table.add_column(arm.title, justify="right")
    for site in facts.sites:
        for task in facts.tasks(site):
            table.add_row(site, task, *_cells([arm.spread(site, task, MAIN) for arm in facts.arms]))
    table.add_section()
    table.add_row("all", "", *_cells([arm.overall(MAIN) for arm in facts.arms]))
    return table


def _cells(spreads: list[Spread | None]) -> list[str]:
    best = max((s.mean for s in spreads if s), default=0.0)
    return [_cell(s.mean, bold=s.mean == best) if s else "-" for s in spreads]


def _cell(value: float, *, bold: bool) -> str:
    return f"[bold]{value:.2f}[/bold]" if bold else f"{value:.2f}"
