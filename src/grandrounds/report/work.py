"""What each site did in one run, as numbers: rounds, steps, time, bytes; and who was missing."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from grandrounds.events import Event, SiteMissed, SiteTrained
from grandrounds.traffic import Traffic, absent_of, traffic_of


@dataclass(frozen=True)
class Work:
    """One site's part in one run, all rounds together."""

    site: str
    rounds: tuple[int, ...]
    steps: int
    examples: int
    seconds: float
    bytes_up: int
    bytes_down: int


@dataclass(frozen=True)
class Absence:
    """Why a site did not answer, and in which rounds."""

    site: str
    stage: str
    reason: str
    rounds: tuple[int, ...]


def work_of(events: Sequence[Event], sites: Sequence[str]) -> tuple[Work, ...]:
    """Add up each site's training and all its bytes, whatever they were sent for."""
    trained = {(e.round, e.site): e for e in events if isinstance(e, SiteTrained)}
    absent, rounds = absent_of(events), {round for round, _ in trained}
    parts = {
        name: [e for place, e in trained.items() if e.site == name and place not in absent]
        for name in sites
    }
    traffic = {
        name: [
            t for (round, own), t in traffic_of(events).items() if own == name and round in rounds
        ]
        for name in sites
    }
    return tuple(_site_work(name, parts[name], traffic[name]) for name in sites)


def _site_work(site: str, parts: Sequence[SiteTrained], traffic: Sequence[Traffic]) -> Work:
    return Work(
        site=site,
        rounds=tuple(sorted(part.round for part in parts)),
        steps=sum(part.steps for part in parts),
        examples=max((part.examples for part in parts), default=0),
        seconds=sum(part.seconds for part in parts),
        bytes_up=sum(up for up, _ in traffic),
        bytes_down=sum(down for _, down in traffic),
    )


def absences_of(events: Iterable[Event]) -> tuple[Absence, ...]:
    """List who did not answer and why; equal failures in several rounds are one."""
    rounds: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for event in events:
        if isinstance(event, SiteMissed):
            said = f"{event.error}: {event.message}".rstrip(".")
            reason = f"{said}. {event.hint}".rstrip()
            rounds[event.site, event.stage, reason].append(event.round)
    return tuple(
        Absence(*key, rounds=tuple(sorted(set(numbers)))) for key, numbers in rounds.items()
    )
