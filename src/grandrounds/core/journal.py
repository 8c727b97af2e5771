"""A journal saves a run's events, one JSON object a line, even if its process is killed.

Each line ends with a sum of itself, so that one which a disk changed is noticed.
"""

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import takewhile
from pathlib import Path
from typing import TypeAlias, cast
from zlib import crc32

from grandrounds.core.errors import BadFolder, DiskFailed
from grandrounds.core.events import (
    EVENT_KINDS,
    Event,
    PolicySet,
    RoundFinished,
    RunResumed,
    RunStarted,
    SiteExchanged,
    SiteMissed,
    SiteMonitored,
    SiteReady,
    SiteTrained,
    SiteValidated,
    TopologySet,
    WorkSet,
)
from grandrounds.core.files import append_line, whole_lines
from grandrounds.core.serialization import from_plain

Stamped: TypeAlias = tuple[float, Event]  # unix seconds, event
Place: TypeAlias = tuple[int, str]  # round, site
Traffic: TypeAlias = tuple[int, int]  # bytes up, bytes down
_SUM = b', "sum": '  # at the end of a line


@dataclass(frozen=True)
class Journal:
    """A listener that writes every event to a file, in order."""

    path: Path

    def __call__(self, event: Event) -> None:
        self.append(event)

    def append(self, event: Event) -> None:
        """Write one event as one line, after cutting a line that a killed process left unfinished.

        A finished round is flushed to the disk, with all that came before it, so that its state is
        never saved without its line. Raises `DiskFailed`.
        """
        record = {"event": type(event).__name__, "time": time.time(), **asdict(event)}
        try:
            append_line(self.path, _with_sum(record), flush=isinstance(event, RoundFinished))
        except OSError as error:
            raise DiskFailed(f"{self.path}: the journal cannot be written: {error}") from error


def _with_sum(record: Mapping[str, object]) -> bytes:
    """Return a record as JSON, with the CRC-32 of the JSON without it at the end."""
    line = json.dumps(record).encode()
    return line[:-1] + _SUM + _sum_of(line)


def _sum_of(line: bytes) -> bytes:
    return b'"%08x"}' % crc32(line)


def _is_intact(line: bytes) -> bool:
    """Tell whether a line is what was written with its sum."""
    start, _, end = line.rpartition(_SUM)
    return end == _sum_of(start + b"}")


def read_journal(path: Path) -> list[Stamped]:
    """Read every event with its time, oldest first; an unfinished last line is left out.

    Raises `BadFolder` where the file is missing or another line is damaged.
    """
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise BadFolder(
            f"{path}: no journal here; a run folder holds journal.jsonl from its first event on"
        ) from None
    lines = whole_lines(raw).split(b"\n")[:-1]
    older = sum(1 for _ in takewhile(lambda line: _SUM not in line, lines))  # wrote no sums
    return [
        _event(line, f"{path}: line {number}", summed=number > older)
        for number, line in enumerate(lines, start=1)
    ]


def _event(line: bytes, place: str, *, summed: bool) -> Stamped:
    try:
        if summed and not _is_intact(line):
            raise ValueError("its sum differs, so the disk or a copy changed it")
        record = json.loads(line)
        record.pop("sum", None)
        kind, moment = EVENT_KINDS[record.pop("event")], float(record.pop("time"))
        return moment, cast(Event, from_plain(kind, record))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadFolder(
            f"{place} is no event that this version knows ({type(error).__name__}: {error}); "
            "restore the file from a copy, or read it with the version that wrote it"
        ) from None


def without_superseded(events: Iterable[Stamped]) -> list[Stamped]:
    """Drop what a resumed run repeated: the earlier events of rounds after the one it resumed."""
    surviving: list[Stamped] = []
    for stamped in events:
        if isinstance(stamped[1], RunResumed):
            last = stamped[1].round
            surviving = [earlier for earlier in surviving if _round(earlier[1]) <= last]
        surviving.append(stamped)
    return surviving


def finished_rounds(path: Path) -> set[int]:
    """Return the rounds whose end a journal tells. Raises `BadFolder` as `read_journal` does."""
    events = without_superseded(read_journal(path))
    return {event.round for _, event in events if isinstance(event, RoundFinished)}


def _round(event: Event) -> int:
    match event:
        case RunStarted() | SiteReady() | PolicySet() | TopologySet() | WorkSet():
            return 0
        case _:
            return event.round


def bytes_by_site(events: Iterable[Event]) -> dict[Place, Traffic]:
    """Return the bytes that each site sent and received in each round, for all purposes."""
    totals: dict[Place, Traffic] = {}
    for event in events:
        match event:
            case SiteTrained() | SiteExchanged() | SiteValidated():
                up, down = event.bytes_up, event.bytes_down
            case SiteMonitored():
                up, down = 0, event.bytes_down
            case _:
                continue
        before = totals.get((event.round, event.site), (0, 0))
        totals[event.round, event.site] = (before[0] + up, before[1] + down)
    return totals


def absences(events: Iterable[Event]) -> set[Place]:
    """Return which sites missed the training of which rounds."""
    missed = (event for event in events if isinstance(event, SiteMissed))
    return {(event.round, event.site) for event in missed if event.stage == "train"}
