"""A run's scores, rounds, digests and forgetting are written as CSV tables."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TypeAlias

from grandrounds.core.events import Event, RoundFinished, SiteMonitored, SiteTrained, SiteValidated
from grandrounds.core.files import write_text
from grandrounds.core.journal import Place, Traffic, absences, bytes_by_site
from grandrounds.core.messages import CaseScore
from grandrounds.core.quoting import original, table_text
from grandrounds.core.run_folder import SCORE_COLUMNS

ROUND_COLUMNS = ("round", "site", "took_part", "seconds", "bytes_up", "bytes_down")
FORGETTING_COLUMNS = ("round", "after", "site", "score", "cases")
_Row: TypeAlias = Mapping[str, object]


@dataclass(frozen=True)
class ScoreLabel:
    """What a table's scores belong to: an arm, a seed, and the round whose model was tested."""

    arm: str
    seed: int
    round: int


def write_scores(path: Path, scores: Iterable[CaseScore], label: ScoreLabel) -> None:
    """Write one row for each test case and metric."""
    _write(path, SCORE_COLUMNS, _score_rows(scores, label))


def take_scores(path: Path, parts: Iterable[tuple[Path, str]], arm: str) -> None:
    """Write the rows of each table that are of one site, as those of another arm."""
    rows: list[_Row] = [
        {name: original(cell) for name, cell in row.items()} | {"arm": arm}
        for table, site in parts
        for row in _rows_of(table)
        if original(row["site"]) == site
    ]
    _write(path, SCORE_COLUMNS, rows)


def _rows_of(table: Path) -> list[dict[str, str]]:
    with table.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def write_matrix(path: Path, scores: Mapping[str, Iterable[CaseScore]], label: ScoreLabel) -> None:
    """Write one row for each model (by the name of its site), test case and metric."""
    rows = [
        {"model": m, **row}
        for m, of_model in scores.items()
        for row in _score_rows(of_model, label)
    ]
    _write(path, ("model", *SCORE_COLUMNS), rows)


def _score_rows(scores: Iterable[CaseScore], label: ScoreLabel) -> list[_Row]:
    return [
        {
            "arm": label.arm,
            "seed": label.seed,
            "site": score.site,
            "patient": score.patient,
            "case": score.case,
            "task": score.task,
            "metric": metric,
            "value": repr(value),
            "round": label.round,
        }
        for score in scores
        for metric, value in score.values.items()
    ]


def write_rounds(path: Path, events: Sequence[Event], sites: Sequence[str]) -> None:
    """Write one row for each round and site: whether it took part, seconds, bytes, losses.

    Where guards touch updates, `bytes_full` are those of an update before.
    """
    trained = {(e.round, e.site): e for e in events if isinstance(e, SiteTrained)}
    absent = absences(events)
    scores = {(e.round, e.site): e for e in events if isinstance(e, SiteValidated) and e.cases}
    traffic = bytes_by_site(events)
    losses = list(dict.fromkeys(name for e in trained.values() for name in e.losses))
    rows = [
        _round_row(place, None if place in absent else trained.get(place))
        | _bytes(traffic.get(place))
        | ({"validation": repr(scores[place].score)} if place in scores else {})
        for place in product(sorted({round for round, _ in trained}), sites)
    ]
    guarded = ("bytes_full",) if any(e.bytes_full for e in trained.values()) else ()
    named = (f"loss:{name}" for name in losses)
    _write(path, (*ROUND_COLUMNS, *named, "validation", *guarded), rows)


def _round_row(place: Place, trained: SiteTrained | None) -> dict[str, object]:
    round, site = place
    row: dict[str, object] = {"round": round, "site": site, "took_part": trained is not None}
    if trained:
        row |= {"seconds": f"{trained.seconds:.4f}"}
        row |= {"bytes_full": trained.bytes_full} if trained.bytes_full else {}
        row |= {f"loss:{name}": repr(value) for name, value in trained.losses.items()}
    return row


def _bytes(traffic: Traffic | None) -> dict[str, object]:
    return {"bytes_up": traffic[0], "bytes_down": traffic[1]} if traffic else {}


def write_forgetting(path: Path, events: Sequence[Event]) -> None:
    """Write each site's score of the travelling model after each turn, if turns were monitored."""
    watched = [event for event in events if isinstance(event, SiteMonitored)]
    rows = [
        {"round": e.round, "after": e.after, "site": e.site, "score": score, "cases": e.cases}
        for e in watched
        for score in [repr(e.score) if e.cases else ""]
    ]
    if rows:
        _write(path, FORGETTING_COLUMNS, rows)


def write_digests(path: Path, events: Sequence[Event]) -> None:
    """Write each round's digest, so that anyone can see where two runs start to differ."""
    finished = [event for event in events if isinstance(event, RoundFinished)]
    _write(path, ("round", "digest"), [{"round": e.round, "digest": e.digest} for e in finished])


def concatenate(path: Path, sources: Sequence[Path]) -> None:
    """Join tables of equal columns into one."""
    # Only the first line break is known to end a row: a cell between quotes may have others.
    tables = [source.read_bytes().decode().partition("\n") for source in sources]
    write_text(path, tables[0][0] + "\n" + "".join(rows for _, _, rows in tables))


def _write(path: Path, columns: Sequence[str], rows: Iterable[_Row]) -> None:
    write_text(path, table_text(columns, rows))
