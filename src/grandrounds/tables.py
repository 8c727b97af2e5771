"""The tables of a run folder, each a view of what happened: scores, rounds and digests (CSV)."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from grandrounds.events import Event, RoundFinished, SiteTrained, SiteValidated
from grandrounds.messages import CaseScore
from grandrounds.weights import write_atomically

SCORE_COLUMNS = ("arm", "seed", "site", "patient", "case", "task", "metric", "value", "round")
ROUND_COLUMNS = ("round", "site", "took_part", "seconds", "bytes_up", "bytes_down")

Row = Mapping[str, object]


def write_scores(
    path: Path, scores: Iterable[CaseScore], *, arm: str, seed: int, round: int
) -> None:
    """Write one row for each test case and metric."""
    rows = [
        {
            "arm": arm,
            "seed": seed,
            "site": score.site,
            "patient": score.patient,
            "case": score.case,
            "task": score.task,
            "metric": metric,
            "value": repr(value),
            "round": round,
        }
        for score in scores
        for metric, value in score.values.items()
    ]
    _write(path, SCORE_COLUMNS, rows)


def write_rounds(path: Path, events: Sequence[Event], sites: Sequence[str]) -> None:
    """Write one row for each round and site: whether it took part, seconds, bytes, losses."""
    trained = {(e.round, e.site): e for e in events if isinstance(e, SiteTrained)}
    validated = {(e.round, e.site): e for e in events if isinstance(e, SiteValidated)}
    losses = list(dict.fromkeys(name for e in trained.values() for name in e.losses))
    rounds = sorted({round for round, _ in trained})
    rows = [
        _round_row(round, site, trained.get((round, site)), validated.get((round, site)))
        for round in rounds
        for site in sites
    ]
    _write(path, (*ROUND_COLUMNS, *(f"loss:{name}" for name in losses), "validation"), rows)


def _round_row(
    round: int, site: str, trained: SiteTrained | None, validated: SiteValidated | None
) -> Row:
    row: dict[str, object] = {"round": round, "site": site, "took_part": trained is not None}
    if trained:
        row |= {"seconds": f"{trained.seconds:.4f}", "bytes_up": trained.bytes_up}
        row |= {"bytes_down": trained.bytes_down + (validated.bytes_down if validated else 0)}
        row |= {f"loss:{name}": repr(value) for name, value in trained.losses.items()}
    if validated and validated.cases:
        row["validation"] = repr(validated.score)
    return row


def write_digests(path: Path, events: Sequence[Event]) -> None:
    """Write each round's digest, so that anyone can see where two runs part."""
    finished = [event for event in events if isinstance(event, RoundFinished)]
    _write(path, ("round", "digest"), [{"round": e.round, "digest": e.digest} for e in finished])


def concatenate(path: Path, sources: Sequence[Path]) -> None:
    """Join tables of equal columns into one."""
    tables = [source.read_text("utf-8").splitlines() for source in sources]
    lines = [tables[0][0], *(line for table in tables for line in table[1:])]
    write_atomically(path, ("\n".join(lines) + "\n").encode())


def _write(path: Path, columns: Sequence[str], rows: Iterable[Row]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue().encode())
