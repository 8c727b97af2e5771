"""Ledgers are printed here, for a terminal of 80 columns."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from rich.table import Column, Table
from rich.text import Text

from grandrounds.api.progress import plain_console
from grandrounds.cli.tables import print_table
from grandrounds.core.ledger import DELIVER, NOTES, LedgerEntry, LedgerLine, listings
from grandrounds.report.analysis.ledgers import CheckedLedger, LedgersChecked
from grandrounds.report.prose.vocabulary import counted


def print_ledger(path: Path, lines: Sequence[LedgerLine]) -> None:
    """Print each message of a ledger as a row, then the names of all tensors in it."""
    console = plain_console()
    party = lines[0].entry.who if lines else ""
    words = f"{path}: ledger of {party or 'an unknown party'}, {counted(len(lines), 'line')}"
    console.print(Text(words), soft_wrap=True)
    table = Table(Column("line", justify="right"), "time (UTC)", "asked, round", "what left")
    for line in lines:
        if line.entry.asked not in NOTES:
            when = f"{datetime.fromtimestamp(line.time, UTC):%m-%d %H:%M:%S}"
            entry = line.entry
            asked = f"{entry.who}: {entry.asked} {entry.round}"
            cells = (str(line.number), when, asked, what_left(entry))
            table.add_row(*(Text(cell) for cell in cells))
    print_table(table, console)
    for digest, named in listings(lines).items():
        console.print(Text(f"tensors {digest[:12]}: {counted(len(named), 'name')}"), soft_wrap=True)
        for name, shape in named.items():
            console.print(Text(f"    {name}  {shape}"), soft_wrap=True)
    if lines:
        head = lines[-1]
        console.print(Text(f"head: line {head.number}, {head.sum}"), soft_wrap=True)


def what_left(entry: LedgerEntry) -> str:
    """Say in some words what left, or why nothing did."""
    if entry.refused or entry.failed:
        return f"refused: {entry.refused}" if entry.refused else f"failed: {entry.failed}"
    parts: list[str] = []
    if entry.tensors:
        names = f" ({entry.listing[:12]})" if entry.listing else ""
        way = " arrived" if entry.asked == DELIVER else ""
        parts.append(f"{counted(entry.tensors, 'tensor')}{names}{way}, {entry.bytes:,} bytes")
    elif entry.bytes:
        parts.append(f"{entry.bytes:,} bytes")
    parts += [f"to {', '.join(entry.to)}"] if entry.to else []
    parts += [counted(entry.scores, "score")] if entry.scores else []
    parts += [counted(len(entry.metrics), "mean")] if entry.metrics else []
    parts += [f"guards {', '.join(entry.guards)}"] if entry.guards else []
    parts += [f"epsilon {entry.epsilon:.3g}"] if entry.epsilon is not None else []
    return "; ".join(parts) or "counts"


def print_checked(found: LedgersChecked) -> None:
    """Print what the check of ledgers came to, one line for each, and what it cannot tell."""
    console = plain_console()
    for ledger in found.ledgers:
        console.print(Text(_sentence(ledger, found)), soft_wrap=True)
    if found.absent:
        words = ", ".join(found.absent)
        console.print(
            Text(f"not here, so not compared: {words}; give a site's own ledger with --with"),
            soft_wrap=True,
        )
    if not found.compared:
        words = "there is no coordinator's ledger here: that lines are missing at the very end "
        console.print(Text(f"{words}shows only beside it"), soft_wrap=True)


def _sentence(ledger: CheckedLedger, found: LedgersChecked) -> str:
    signed = f"{ledger.signed} signed" if ledger.signed else "none signed"
    words = f"intact: {ledger.party}, {len(ledger.lines)} lines ({signed})"
    if ledger.party in found.matched:
        words += f", {found.matched[ledger.party]} messages as the coordinator received them"
    if lost := found.unreceived.get(ledger.party):
        words += f", {lost} that it did not record"
    return words


def checked_as_json(found: LedgersChecked) -> dict[str, object]:
    """Return what the check of ledgers came to."""
    return {
        "intact": True,
        "compared_with_coordinator": found.compared,
        "absent": list(found.absent),
        "ledgers": [
            {
                "file": str(ledger.path),
                "party": ledger.party,
                "lines": len(ledger.lines),
                "signed": ledger.signed,
                "head": {"line": ledger.head.number, "sum": ledger.head.sum},
                "matched": found.matched.get(ledger.party),
                "unreceived": found.unreceived.get(ledger.party),
            }
            for ledger in found.ledgers
        ],
    }
