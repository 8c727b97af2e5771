"""A topology sends requests to sites through any engine, and gets replies in roster order."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Literal, Protocol, TypeAlias

from grandrounds.algorithms.method import Method, Need, broadcast
from grandrounds.core.messages import Describe, Evaluate, Finish, Merge, Reply, Request, Train
from grandrounds.core.state import State


class Links(Enum):
    """Who can reach whom."""

    STAR = "the coordinator reaches every site"
    MESH = "and every site reaches every other"


@dataclass(frozen=True)
class Quorum:
    """How many replies a round needs; the absence of others is always reported.

    `least` = None asks for all. `patience` in seconds, above 0, counts a site that took longer as
    absent, as long as enough others answered; 0 waits for a slow site as long as it lives.
    """

    least: int | None = None
    patience: float = 0.0


EVERYONE = Quorum()


def quorum_of(require: Literal["all"] | int, patience: float) -> Quorum:
    """Return the quorum that a study's words ask for."""
    return Quorum(None if require == "all" else require, patience)


class Sites(Protocol):
    """All that a topology uses of an engine."""

    @property
    def names(self) -> tuple[str, ...]:
        """Return the roster; its order is the order of every result."""
        ...

    @property
    def links(self) -> Links: ...

    def ask(
        self,
        requests: Mapping[str, Request],
        *,
        deliver_to: Sequence[str] = (),
        quorum: Quorum = EVERYONE,
    ) -> list[Reply]:
        """Send each request to its site, and return the replies in roster order.

        With `deliver_to`, the replies' tensors go to these sites' mailboxes, and receipts return.
        Raises `SiteFailed` unless the quorum answers: a round never continues with fewer sites
        unnoticed.
        """
        ...


Groups: TypeAlias = tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class RoundResult:
    """The result of a round: the next state, and the sites' replies in roster order.

    `groups` are the sites that trained, in groups that followed one another; within a group they
    trained side by side. Without groups, all did.
    """

    state: State
    replies: Sequence[Reply]
    groups: Groups = ()


@dataclass(frozen=True)
class CutTraffic:
    """What crosses the cut of a split network, in bytes.

    `up` (by tensor), `down` and `labels` are one training case's, `scored` both ways of a case that
    is scored. `part` is the site's part of what is shared, `moments` its optimiser's state.
    `cases` and `validated` count all sites' cases of a round; 0 where files are not counted yet.
    """

    up: Mapping[str, int]
    down: int
    labels: int
    scored: int
    batch_size: int
    part: int
    moments: int
    cases: int
    validated: int


@dataclass(frozen=True)
class RoundLoad:
    """What a round transmits, in bytes.

    `model` is what a site and the server exchange one way, `extra_up` and `extra_down` what a
    method and guards add to it, below 0 where guards take away; `validations` says how often the
    model of a round is scored; `crossing` is a split network's. With `reveals`, sites are sent the
    uploads of others.
    """

    sites: int
    model: int
    validations: float
    crossing: CutTraffic | None = None
    extra_up: int = 0
    extra_down: int = 0
    reveals: bool = False

    @property
    def both_ways(self) -> int:
        """Return the bytes that one site receives and sends in a round of training."""
        return 2 * self.model + self.extra_up + self.extra_down

    @property
    def of_star(self) -> int:
        """Return the bytes of all sites where a coordinator sends and receives the model."""
        return int(self.sites * (self.both_ways + self.validations * self.model))


@dataclass(frozen=True)
class RoundCost:
    """What a round costs and shows: bytes over all links, wall-clock, and who sees what.

    `groups` counts the groups of sites that follow one another in a round: 1 where all sites train
    side by side, as many as sites where each goes on from the one before it.
    """

    bytes_per_round: int
    wall_clock: str
    sees: Mapping[str, str]
    groups: int


def train_side_by_side(
    state: State, names: Sequence[str], sites: Sites, method: Method, *, quorum: Quorum
) -> list[Reply]:
    """Let these sites train from one model, and return their replies in roster order."""
    requests = {
        name: Train(
            round=state.round + 1,
            since=state.last_of(name),
            keep=state.best_of(name),
            weights=broadcast(method, state, name),
        )
        for name in names
    }
    return sites.ask(requests, quorum=quorum)


def names_of(replies: Sequence[Reply]) -> tuple[str, ...]:
    """Return who answered."""
    return tuple(reply.site for reply in replies)


def unasked(
    request: Request, kinds: tuple[type, ...], topology: str, *, hands_on: bool = False
) -> str:
    """Return why a request of this kind is never made over a topology; empty where it is.

    With `hands_on` sites start from what the group before them left.
    """
    if isinstance(request, Train | Merge) and request.after and not hands_on:
        return f'topology "{topology}" hands no model from one group of sites to the next'
    if isinstance(request, (Describe, Evaluate, Finish, *kinds)):
        return ""
    return f'topology "{topology}" never asks a site to {type(request).__name__.lower()}'


def undeliverable(deliver_to: tuple[str, ...]) -> str:
    """Return why nothing is delivered to other sites; empty where nobody asks for it."""
    return "no site's tensors go to another site in this study" if deliver_to else ""


def untimely(request: Request) -> str:
    """Return why a request may not say how long a site trains; empty where it does not."""
    if isinstance(request, Train) and (request.epochs or request.steps):
        return "how long a site trains is the study's to say"
    return ""


class Topology(Protocol):
    """Who talks to whom in one round."""

    @property
    def needs(self) -> Links: ...

    @property
    def quorum(self) -> Quorum:
        """Return how many sites a round needs."""
        ...

    @property
    def lacks(self) -> frozenset[Need]:
        """Return what a method might need, and does not get here."""
        ...

    @property
    def model_at_sites(self) -> bool:
        """Tell whether the sites hold the shared model, which the coordinator then never has."""
        ...

    @property
    def averages(self) -> bool:
        """Tell whether whole models of sites that started from one are averaged here."""
        ...

    @property
    def moments_travel(self) -> bool:
        """Tell whether the optimiser's state travels with the model."""
        ...

    def in_a_row(self, sites: int) -> int:
        """Return how many of this many sites train one after another in a round, on one model."""
        ...

    def refuses(
        self, request: Request, deliver_to: tuple[str, ...], roster: tuple[str, ...]
    ) -> str:
        """Return why this is never asked of a site of this roster; empty where it may be."""
        ...

    def round(self, state: State, sites: Sites, method: Method) -> RoundResult:
        """Run one round, and return the next state with the replies."""
        ...

    def evaluate(self, sites: Sites, orders: Mapping[str, Evaluate]) -> list[Reply]:
        """Let each site score its cases, and return the replies."""
        ...

    def account(self, load: RoundLoad) -> RoundCost:
        """Return what a round costs and shows."""
        ...
