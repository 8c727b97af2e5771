"""In a relay groups of sites train one after another, each from the mean of the one before."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from random import Random
from typing import Literal, TypeAlias

from grandrounds.algorithms.method import Method, Need, merge_updates
from grandrounds.algorithms.swarm import adopted_by_all, led
from grandrounds.algorithms.topology import (
    Groups,
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
from grandrounds.core.messages import Adopt, Evaluate, Merge, Reply, Request, Train, Tune
from grandrounds.core.seeds import seed_for
from grandrounds.core.state import State

Handover: TypeAlias = Literal["coordinator", "sites"]


@dataclass(frozen=True)
class Relay:
    """The roster is shuffled in each round and cut into groups, which follow one another.

    Within a group sites train side by side and are averaged; the next group starts from that mean.
    One group is the star, groups of one are the cycle in shuffled order, and between them the
    model takes `groups` times the star's steps in a row. `require` and `patience` are the star's,
    over all groups of a round: a site that is absent is skipped. With `handover` = "sites" a leader
    of each group merges, and hands the model to the next group; the coordinator carries receipts.
    Cho et al. 2023 (groups of clients that take turns); Chang et al. 2018 (groups of one).
    """

    groups: int = 2
    handover: Handover = "coordinator"
    require: Literal["all"] | int = "all"
    patience: float = 0.0
    seed: int = 0

    averages = True
    moments_travel = False

    @property
    def needs(self) -> Links:
        return Links.MESH if self.model_at_sites else Links.STAR

    @property
    def model_at_sites(self) -> bool:
        return self.handover == "sites"

    @property
    def lacks(self) -> frozenset[Need]:
        lacking: set[Need] = set()
        if self.groups > 1:
            lacking.add("side by side")
        if self.require != "all":
            lacking.add("every site")
        return frozenset(lacking)

    @property
    def quorum(self) -> Quorum:
        return quorum_of(self.require, self.patience)

    def in_a_row(self, sites: int) -> int:
        return min(self.groups, sites)

    def refuses(
        self, request: Request, deliver_to: tuple[str, ...], roster: tuple[str, ...]
    ) -> str:
        if not self.model_at_sites:
            asked = unasked(request, (Train, Tune), "relay")
            return asked or undeliverable(deliver_to) or untimely(request)
        asked = unasked(request, (Train, Merge, Adopt, Tune), "relay", hands_on=True)
        return asked or untimely(request) or self._astray(request, deliver_to, roster)

    def _astray(
        self, request: Request, deliver_to: tuple[str, ...], roster: tuple[str, ...]
    ) -> str:
        """Return why an update may not go where it is asked to; empty where it may.

        An update goes to a leader of its own group, and what is merged to the next group; what the
        last group merged goes to all.
        """
        groups = self.groups_of(request.round, roster)
        turns = tuple(zip([("",), *groups], groups, strict=False))  # who went before, and who goes
        match request:
            case Train():
                right = any(
                    len(deliver_to) == 1 and deliver_to[0] in group and request.after in before
                    for before, group in turns
                )
            case Merge():
                right = any(
                    request.peers == group
                    and request.after in before
                    and deliver_to == receivers(place, groups, roster)
                    for place, (before, group) in enumerate(turns)
                )
            case Adopt():
                right = request.leader in groups[-1] and not deliver_to
            case _:
                right = not deliver_to
        return "" if right else "updates stay in their group, whose mean goes to the next group"

    def round(self, state: State, sites: Sites, method: Method) -> RoundResult:
        """Let one group after another train, each from the mean of the group before it."""
        if self.model_at_sites:
            return self._round_among_sites(state, sites)
        groups = self.groups_of(state.round + 1, sites.names)
        travelling, answered = state, list[list[Reply]]()
        for place, group in enumerate(groups):
            others = sum(map(len, (*answered, *groups[place + 1 :])))
            quorum = self._quorum_of_group(others)
            replies = train_side_by_side(travelling, group, sites, method, quorum=quorum)
            if replies:
                merged = merge_updates(method, travelling, replies)
                travelling = replace(merged, round=state.round)
                answered.append(replies)
        replies = in_order_of(answered, sites)
        missed = state.missed_by(sites.names, {reply.site for reply in replies})
        state = replace(travelling, round=state.round + 1, seen=missed)
        return RoundResult(state, replies, tuple(names_of(group) for group in answered))

    def _quorum_of_group(self, others: int) -> Quorum:
        """Return how many of a group must answer, where `others` is the most that others can add.

        The run stops as soon as the sites that are left are too few.
        """
        least = self.quorum.least
        return self.quorum if least is None else replace(self.quorum, least=max(0, least - others))

    def _round_among_sites(self, state: State, sites: Sites) -> RoundResult:
        """Let a leader of each group merge, and hand the model to the next group."""
        number, answered, before, merged = state.round + 1, list[list[Reply]](), "", None
        groups = self.groups_of(number, sites.names)
        for place, group in enumerate(groups):
            train = Train(round=number, since=state.round, keep=state.best_round, after=before)
            before, merged, replies = led(
                sites,
                group,
                dict.fromkeys(group, train),
                Merge(round=number, since=state.round, peers=group, after=before),
                deliver_to=receivers(place, groups, sites.names),
            )
            answered.append(replies)
        assert merged is not None, "a roster has one group or more"
        held = adopted_by_all(sites, before, merged, keep=state.best_round)
        state = replace(state, round=number, held=held)
        return RoundResult(state, in_order_of(answered, sites), groups)

    def groups_of(self, round: int, names: tuple[str, ...]) -> Groups:
        """Return a round's groups in the order of their turns, each in roster order.

        Their sizes are as equal as can be.
        """
        order = Random(seed_for(self.seed, "order", round)).sample(names, len(names))
        groups = self.in_a_row(len(names))
        ends = [len(names) * place // groups for place in range(groups + 1)]
        parts = (order[start:end] for start, end in pairwise(ends))
        return tuple(tuple(sorted(part, key=names.index)) for part in parts)

    def evaluate(self, sites: Sites, orders: Mapping[str, Evaluate]) -> list[Reply]:
        """Let each site score the model, which it is sent or holds, and return the scores."""
        if self.model_at_sites:
            orders = {name: replace(order, weights={}) for name, order in orders.items()}
        return sites.ask(orders, quorum=self.quorum)

    def account(self, load: RoundLoad) -> RoundCost:
        """Return a round's bytes, the time of as many stars as there are groups, and who sees."""
        smallest = load.sites // self.groups
        return RoundCost(
            self._bytes_among_sites(load, smallest) if self.model_at_sites else load.of_star,
            self._wall_clock(),
            self._sees(smallest, reveals=load.reveals),
            groups=self.in_a_row(load.sites),
        )

    def _bytes_among_sites(self, load: RoundLoad, first: int) -> int:
        """Add up updates to leaders, each mean to the next group, and the last one to all.

        `first` is the size of the first group, which starts from what it holds.
        """
        updates = (load.sites - self.groups) * (load.model + load.extra_up)
        return updates + (2 * load.sites - first - 1) * (load.model + load.extra_down)

    def _wall_clock(self) -> str:
        slowest = "the slowest site's time"
        each = slowest if self.groups == 1 else f"{slowest} in each of {self.groups} groups"
        return f"{each}, and the leaders' merging" if self.model_at_sites else each

    def _sees(self, smallest: int, *, reveals: bool) -> dict[str, str]:
        """Say who sees what, where the smallest group has so many sites.

        With `reveals` the method sends sites what others sent.
        """
        own = "every site's own update, and the model after each group"
        left = "the model as the group before left it" if self.groups > 1 else "the model"
        if smallest == 1 and self.groups > 1:
            left += (
                ", which in a group of one is one site's alone; the sites before and after "
                "that one can together work out its own update"
            )
        if reveals:
            left += ", and other sites' own updates"
        if not self.model_at_sites:
            return {"coordinator": own, "sites": left}
        return {
            "coordinator": "receipts only: digests, counts, metrics; no tensor",
            "leader of a group": "the own update of every site of its group, and the model",
            "sites": left,
        }


def receivers(place: int, groups: Groups, roster: tuple[str, ...]) -> tuple[str, ...]:
    """Return who gets a group's merged model: the next group, and in the end all."""
    return groups[place + 1] if place + 1 < len(groups) else roster


def in_order_of(answered: Sequence[Sequence[Reply]], sites: Sites) -> list[Reply]:
    """Return the replies of all groups in the order of the roster."""
    by_site = {reply.site: reply for group in answered for reply in group}
    return [by_site[name] for name in sites.names if name in by_site]
