"""What each site sent and received in each round, and who missed one, as the events tell it."""

from collections.abc import Iterable
from typing import TypeAlias

from grandrounds.events import (
    Event,
    SiteExchanged,
    SiteMissed,
    SiteMonitored,
    SiteTrained,
    SiteValidated,
)

Place: TypeAlias = tuple[int, str]  # round, site
Traffic: TypeAlias = tuple[int, int]  # bytes up, bytes down


def traffic_of(events: Iterable[Event]) -> dict[Place, Traffic]:
    """Add up what each site sent and received in each round, whatever it was for."""
    found: dict[Place, Traffic] = {}
    for event in events:
        match event:
            case SiteTrained() | SiteExchanged() | SiteValidated():
                up, down = event.bytes_up, event.bytes_down
            case SiteMonitored():
                up, down = 0, event.bytes_down
            case _:
                continue
        before = found.get((event.round, event.site), (0, 0))
        found[event.round, event.site] = (before[0] + up, before[1] + down)
    return found


def absent_of(events: Iterable[Event]) -> set[Place]:
    """Find who missed a round's training."""
    missed = (event for event in events if isinstance(event, SiteMissed))
    return {(event.round, event.site) for event in missed if event.stage == "train"}
