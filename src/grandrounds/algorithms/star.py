"""In a star a server sends the model to every site, and combines the updates it receives."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from grandrounds.algorithms.method import Method, Need, merge_updates
from grandrounds.algorithms.secure_round import KEY_KINDS, train_masked
from grandrounds.algorithms.topology import (
    Links,
    Quorum,
    RoundCost,
    RoundLoad,
    RoundResult,
    Sites,
    names_of,
    quorum_of,
    train_side_by_side,
    unasked,
    undeliverable,
    untimely,
)
from grandrounds.core.messages import Evaluate, Reply, Request, Train, Tune
from grandrounds.core.state import State


@dataclass(frozen=True)
class Star:
    """Server and clients, synchronous. McMahan et al. 2017.

    `require` says how many sites a round needs; with fewer the run stops. `patience` (seconds, 0
    for ever) is how long a round waits for the others once enough have answered.
    """

    require: Literal["all"] | int = "all"
    patience: float = 0.0

    averages = True
    needs = Links.STAR
    model_at_sites = False
    moments_travel = False

    @property
    def lacks(self) -> frozenset[Need]:
        return frozenset() if self.require == "all" else frozenset({"every site"})

    @property
    def quorum(self) -> Quorum:
        return quorum_of(self.require, self.patience)

    def in_a_row(self, sites: int) -> int:
        del sites
        return 1

    def refuses(
        self, request: Request, deliver_to: tuple[str, ...], roster: tuple[str, ...]
    ) -> str:
        return (
            unasked(request, (Train, Tune, *KEY_KINDS), "star")
            or undeliverable(deliver_to)
            or untimely(request)
        )

    def round(self, state: State, sites: Sites, method: Method) -> RoundResult:
        """Broadcast, let every site train, combine in roster order."""
        if method.guards.masks:
            replies, combined = train_masked(state, sites, method, quorum=self.quorum)
        else:
            replies = train_side_by_side(state, sites.names, sites, method, quorum=self.quorum)
            combined = replies
        seen = state.missed_by(sites.names, {reply.site for reply in replies})
        merged = replace(merge_updates(method, state, combined), seen=seen)
        return RoundResult(merged, replies, (names_of(replies),))

    def evaluate(self, sites: Sites, orders: Mapping[str, Evaluate]) -> list[Reply]:
        """Send the model to the sites, and return their scores."""
        return sites.ask(orders, quorum=self.quorum)

    def account(self, load: RoundLoad) -> RoundCost:
        """Return the cost of the model down, the update up, and the model down to be scored."""
        others = "other sites' own updates" if load.reveals else "no other site's update"
        return RoundCost(
            load.of_star,
            "the slowest site's time",
            {
                "server": f"{load.updates}, and the model",
                "sites": f"the model, and {others}",
            },
            groups=self.in_a_row(load.sites),
        )
