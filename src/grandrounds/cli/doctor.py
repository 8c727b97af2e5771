"""The command `grandrounds doctor`: what it asks for, and what it prints."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from grandrounds.flare.doctor import examine
from grandrounds.flare.doctor.finding import Finding, Party
from grandrounds.flare.kit import Kit
from grandrounds.study.file import read_study

COLOURS = {"ok": "green", "bad": "red", "skipped": "dim"}


def look_at(
    kit: Path, study: Path | None, site: Path | None, overrides: Sequence[str], *, as_json: bool
) -> bool:
    """Examine a party, print what was found, and tell whether nothing is bad. Raises `BadInput`."""
    asked = read_study(study, overrides) if study else None
    found = examine(Party(Kit(kit), asked, site))
    if as_json:
        lines = [{"check": name, **asdict(finding)} for name, finding in found.items()]
        print(json.dumps(lines, indent=2))
    else:
        Console().print(_grid(found))
    return all(finding.verdict != "bad" for finding in found.values())


def _grid(findings: Mapping[str, Finding]) -> Grid:
    grid = Grid.grid("", "", "", padding=(0, 2, 0, 0))
    for name, finding in findings.items():
        mend = f"\nmend: {finding.mend}" if finding.mend else ""
        verdict = Text(finding.verdict, COLOURS[finding.verdict])
        grid.add_row(verdict, Text(name), Text(f"{finding.found}{mend}"))
    return grid
