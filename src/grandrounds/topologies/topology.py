"""The seam between a topology and an engine: ask sites, get replies in roster order."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from grandrounds.checkpoints import State
from grandrounds.messages import Reply, Request
from grandrounds.methods.method import Method


class Sites(Protocol):
    """The only view that a topology has of an engine."""

    @property
    def names(self) -> tuple[str, ...]:
        """Give the roster; its order is the order of every result."""
        ...

    def ask(self, requests: Mapping[str, Request]) -> list[Reply]:
        """Carry each request to its site and bring the replies back in roster order.

        Raises `SiteFailed` if any site cannot answer: a round never goes on with a subset in
        silence.
        """
        ...


@dataclass(frozen=True)
class Outcome:
    """What a round came to: the next state, and the sites' replies in roster order."""

    state: State
    replies: Sequence[Reply]


class Topology(Protocol):
    """Who talks to whom in one round."""

    def round(self, state: State, sites: Sites, method: Method) -> Outcome:
        """Play one round: from one state to the next."""
        ...
