"""In a swarm no server holds a model: each round a leading site merges the updates of all."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Literal

from grandrounds.algorithms.method import Method, Need
from grandrounds.algorithms.secure_round import KEY_KINDS, exchange_keys
from grandrounds.algorithms.topology import (
    EVERYONE,
    Links,
    Quorum,
    RoundCost,
    RoundLoad,
    RoundResult,
    Sites,
    names_of,
    unasked,
    untimely,
)
from grandrounds.core.errors import BadUpdate, RunFailed
from grandrounds.core.messages import (
    Adopt,
    Describe,
    Evaluate,
    Merge,
    Reply,
    Request,
    Train,
    Tune,
    Unmask,
)
from grandrounds.core.seeds import seed_for
from grandrounds.core.state import State

_NOBODY = Quorum(0)


@dataclass(frozen=True)
class Swarm:
    """Peers with a rotating leader. Warnat-Herresthal et al. 2021.

    `leader` goes round the roster, or is drawn each round: each site alike, or in proportion to its
    training examples. The coordinator carries receipts; every tensor goes from site to site. If a
    leader fails before it has merged, the next in line leads the same round.
    """

    leader: Literal["round-robin", "random", "weighted"] = "round-robin"
    seed: int = 0

    averages = True
    needs = Links.MESH
    model_at_sites = True
    moments_travel = False
    quorum = EVERYONE

    @property
    def lacks(self) -> frozenset[Need]:
        return frozenset()

    def in_a_row(self, sites: int) -> int:
        del sites
        return 1

    def refuses(
        self, request: Request, deliver_to: tuple[str, ...], roster: tuple[str, ...]
    ) -> str:
        return (
            unasked(request, (Train, Merge, Adopt, Tune, *KEY_KINDS), "swarm")
            or untimely(request)
            or _astray(request, deliver_to, roster)
        )

    def round(self, state: State, sites: Sites, method: Method) -> RoundResult:
        """Train everywhere, deliver to the leader, merge there, deliver to all."""
        number = state.round + 1
        request = Train(round=number, since=state.round, keep=state.best_round)
        leader, merged, replies = led(
            sites,
            self.line(number, sites),
            dict.fromkeys(sites.names, request),
            Merge(round=number, since=state.round, peers=sites.names),
            deliver_to=sites.names,
            masks=method.guards.masks,
        )
        held = adopted_by_all(sites, leader, merged, keep=state.best_round)
        state = replace(state, round=number, held=held)
        return RoundResult(state, replies, (names_of(replies),))

    def line(self, round: int, sites: Sites) -> list[str]:
        """Return the round's leader, then the sites that replace it, in order, if it fails."""
        names = list(sites.names)
        if self.leader == "round-robin":
            first = (round - 1) % len(names)
            return names[first:] + names[:first]
        rng = Random(seed_for(self.seed, "leader", round))
        chances = dict.fromkeys(names, 1.0)
        if self.leader == "weighted":
            replies = sites.ask({name: Describe(round=round) for name in names})
            chances = {reply.site: float(reply.examples) for reply in replies}
        leaders: list[str] = []
        while chances:
            (name,) = rng.choices(list(chances), list(chances.values()))
            leaders.append(name)
            del chances[name]
        return leaders

    def evaluate(self, sites: Sites, orders: Mapping[str, Evaluate]) -> list[Reply]:
        """Let each site score the merged model that it holds, and return the scores."""
        return sites.ask({n: replace(order, weights={}) for n, order in orders.items()})

    def account(self, load: RoundLoad) -> RoundCost:
        """Return the cost of updates to the leader and the merged model back; scoring is free."""
        others = ", and other sites' own updates" if load.reveals else ""
        carried = (
            "public keys, sealed shares; no tensor of the model" if load.masked else "no tensor"
        )
        return RoundCost(
            (load.sites - 1) * load.both_ways,
            "the slowest site's time, and the leader's merging",
            {
                "coordinator": f"receipts only: digests, counts, metrics; {carried}",
                "leader of the round": f"{load.updates}, and the merged model",
                "sites": f"the merged model{others}",
            },
            groups=self.in_a_row(load.sites),
        )


def _astray(request: Request, deliver_to: tuple[str, ...], roster: tuple[str, ...]) -> str:
    """Return why an update may not go where it is asked to; empty where it may.

    An update goes to one leader, any site in line; a merged model goes to all.
    """
    match request:
        case Train() | Unmask():
            right = len(deliver_to) == 1 and deliver_to[0] in roster
        case Merge():
            right = deliver_to == roster == request.peers
        case Adopt():
            right = request.leader in roster and not deliver_to
        case _:
            right = not deliver_to
    return "" if right else "updates go to the leader of the round, and the merged model to all"


def led(
    sites: Sites,
    line: Sequence[str],
    requests: Mapping[str, Train],
    merge: Merge,
    *,
    deliver_to: Sequence[str],
    masks: bool = False,
) -> tuple[str, Reply, list[Reply]]:
    """Let sites train, the first in line that can merge, and deliver what was merged.

    Where updates leave with `masks`, every attempt has fresh ones, and the sites reveal to the
    leader what takes them off the sum. Returns the leader, its receipt, and the sites' receipts.
    Raises `RunFailed` where none can.
    """
    for leader in line:
        exchange = exchange_keys(sites, tuple(requests), merge.round) if masks else None
        replies = sites.ask(requests, deliver_to=(leader,))
        if exchange:
            sites.ask(exchange.unmasking(exchange.names), deliver_to=(leader,))
        merged = sites.ask({leader: merge}, deliver_to=deliver_to, quorum=_NOBODY)
        if merged:
            return leader, merged[0], replies
    raise RunFailed(f"round {merge.round}: no site could lead; each one's failure is told above")


def adopted_by_all(sites: Sites, leader: str, merged: Reply, *, keep: int) -> str:
    """Let all sites save a leader's merged model, and return its digest. Raises `BadUpdate`."""
    adopt = Adopt(round=merged.round, leader=leader, keep=keep)
    _check_alike(leader, merged, sites.ask(dict.fromkeys(sites.names, adopt)))
    return merged.shared


def _check_alike(leader: str, merged: Reply, adopted: list[Reply]) -> None:
    for reply in adopted:
        if reply.shared != merged.shared:
            raise BadUpdate(
                f"site '{reply.site}' keeps another merged model in round {reply.round} "
                f"than its leader '{leader}' sent"
            )
