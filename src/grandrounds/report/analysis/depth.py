"""How deep a model was trained: its steps that followed one another, and the time they take.

A round is groups of sites that follow one another; within a group the sites train side by side. So
a model takes, in a row, the most steps of a site of each group, and a round lasts as long as the
slowest site of each group. Averaging, sending and scoring are not counted.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from grandrounds.core.events import (
    Event,
    RoundFinished,
    SiteTested,
    SiteTrained,
    SiteTuned,
    TopologySet,
)
from grandrounds.core.journal import Place, absences

SIDE_BY_SIDE = ("star", "swarm")  # how journals without groups are read, by their topology
ONE_BY_ONE = ("cyclic",)
SERVED_ONE_BY_ONE = ("split",)  # the server trains with one site at a time, whatever is averaged
_Kind = TypeVar("_Kind", bound=Event)
_Number = TypeVar("_Number", int, float)


@dataclass(frozen=True)
class Span:
    """The lowest and the highest of some counts."""

    low: int
    high: int


def span(counts: Iterable[int]) -> Span | None:
    """Return the span of counts; None where there are none."""
    found = list(counts)
    return Span(min(found), max(found)) if found else None


@dataclass(frozen=True)
class RoundWork:
    """The training of one round: groups that followed one another, None where nobody told.

    With `one_at_a_time` a site waits for the one before it, even where both start from one model.
    """

    round: int
    trained: Mapping[str, SiteTrained]
    groups: tuple[tuple[SiteTrained, ...], ...] | None
    one_at_a_time: bool = False

    @property
    def steps_in_a_row(self) -> int | None:
        """Return the steps that the round's model took one after another."""
        if self.groups is None:
            return None
        return sum(max((site.steps for site in group), default=0) for group in self.groups)

    @property
    def seconds(self) -> float | None:
        """Return how long the sites' training lasted."""
        if self.one_at_a_time:
            return sum(site.seconds for site in self.trained.values())
        if self.groups is None:
            return None
        return sum(max((site.seconds for site in group), default=0.0) for group in self.groups)


@dataclass(frozen=True)
class Depth:
    """The steps of the model that a run tested, and the wall-clock over sites of all its rounds.

    `rounds` are those that are finished, `planned` those that the run may have, `tested` the one
    whose model was tested, `tuned` the sites that trained it on, each for itself alone.
    """

    rounds: tuple[RoundWork, ...]
    planned: int
    sites: tuple[str, ...]
    tested: int | None
    tuned: Mapping[str, SiteTuned]

    @property
    def local_steps(self) -> Mapping[str, int]:
        """Map each site to its own steps until the tested round; empty where none was tested."""
        if self.tested is None:
            return {}
        found = {site: more.steps for site, more in self.tuned.items()}
        for work in self._until_tested:
            for site, event in work.trained.items():
                found[site] = found.get(site, 0) + event.steps
        return dict.fromkeys(self.sites, 0) | found

    @property
    def in_a_row(self) -> int | None:
        """Return the steps in a row of the tested model; None where untested or not told."""
        if self.tested is None:
            return None
        steps = _all(work.steps_in_a_row for work in self._until_tested)
        return None if steps is None else sum(steps) + self._more_steps

    @property
    def allowed(self) -> int | None:
        """Return the steps in a row of as many of the deepest round as the run may have."""
        steps = _all(work.steps_in_a_row for work in self.rounds)
        return self.planned * max(steps) + self._more_steps if steps else None

    @property
    def wall_clock(self) -> float | None:
        """Return the seconds of all finished rounds and of fine-tuning; None where not told."""
        seconds = _all(work.seconds for work in self.rounds)
        more = max((event.seconds for event in self.tuned.values()), default=0.0)
        return None if seconds is None else sum(seconds) + more

    @property
    def _until_tested(self) -> list[RoundWork]:
        return [work for work in self.rounds if work.round <= (self.tested or 0)]

    @property
    def _more_steps(self) -> int:
        return max((event.steps for event in self.tuned.values()), default=0)


def depth_of(events: Sequence[Event], sites: Sequence[str], *, planned: int) -> Depth:
    """Read the depth of a run that may have so many rounds from its journal."""
    tested = next((event.round for event in reversed(_of(events, SiteTested))), None)
    tuned = {event.site: event for event in _of(events, SiteTuned) if event.round == tested}
    return Depth(tuple(rounds_of(events)), planned, tuple(sites), tested, tuned)


def rounds_of(events: Sequence[Event]) -> list[RoundWork]:
    """Return the training of every finished round, oldest first."""
    absent = absences(events)
    trained = {(e.round, e.site): e for e in _of(events, SiteTrained)}
    present = {place: event for place, event in trained.items() if place not in absent}
    kind = next((event.kind for event in reversed(_of(events, TopologySet))), "")
    finished = {event.round: event for event in _of(events, RoundFinished) if event.round}
    return [_work(finished[number], present, kind) for number in sorted(finished)]


def _work(finished: RoundFinished, present: Mapping[Place, SiteTrained], kind: str) -> RoundWork:
    trained = {site: e for (round, site), e in present.items() if round == finished.round}
    names = finished.groups or _read_as(tuple(trained), kind)
    groups = None
    if names is not None:
        groups = tuple(tuple(trained[name] for name in group if name in trained) for group in names)
    return RoundWork(finished.round, trained, groups, kind in SERVED_ONE_BY_ONE)


def _read_as(sites: tuple[str, ...], kind: str) -> tuple[tuple[str, ...], ...] | None:
    """Return the groups of a round whose journal tells none; None where they cannot be known."""
    if kind in SIDE_BY_SIDE:
        return (sites,)
    return tuple((site,) for site in sites) if kind in ONE_BY_ONE else None


def _all(parts: Iterable[_Number | None]) -> list[_Number] | None:
    """Return the parts; None where one of them is not known."""
    found = list(parts)
    known = [part for part in found if part is not None]
    return known if len(known) == len(found) else None


def _of(events: Iterable[Event], kind: type[_Kind]) -> list[_Kind]:
    return [event for event in events if isinstance(event, kind)]
