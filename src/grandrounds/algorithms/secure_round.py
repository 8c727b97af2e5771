"""Where updates are masked, sites exchange keys before they train, and unmask the sum after."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from grandrounds.algorithms.method import Method
from grandrounds.algorithms.topology import EVERYONE, Quorum, Sites, names_of, train_side_by_side
from grandrounds.core.errors import BadUpdate
from grandrounds.core.messages import AdvertiseKeys, Reply, ShareKeys, Unmask
from grandrounds.core.state import State
from grandrounds.core.weights import Weights
from grandrounds.privacy.secure_sum.fixed_point import tensor_of, vector_of
from grandrounds.privacy.secure_sum.guard import SUM, TOTAL
from grandrounds.privacy.secure_sum.roster import FEWEST_MASKED, MaskRoster
from grandrounds.privacy.secure_sum.secret_sharing import threshold_of
from grandrounds.privacy.secure_sum.wire import (
    PUBLIC,
    REVEALED,
    SHARES,
    keys_from_tensors,
    tensors_to_bytes,
)

KEY_KINDS = (AdvertiseKeys, ShareKeys, Unmask)


@dataclass(frozen=True)
class KeyExchange:
    """The sites that exchanged keys in one attempt at a round, and what they sealed for others."""

    roster: MaskRoster
    sealed: Mapping[str, Weights]

    @property
    def names(self) -> tuple[str, ...]:
        return self.roster.names

    def quorum(self, quorum: Quorum) -> Quorum:
        """Return how many of these sites must go on: as the study says, and the threshold."""
        return _at_least(threshold_of(len(self.names)), quorum)

    def restoring(self, quorum: Quorum) -> Quorum:
        """Return how many must reveal shares: their updates are there, so the threshold is enough.

        A study that asks for every site has none that may be missing.
        """
        few = threshold_of(len(self.names))
        return quorum if quorum.least is None else replace(quorum, least=few)

    def unmasking(self, survivors: Sequence[str]) -> dict[str, Unmask]:
        """Return the requests to the survivors, each with what the others sealed for it."""
        return {
            name: Unmask(
                round=self.roster.round,
                survivors=tuple(survivors),
                weights={
                    f"{SHARES}{sender}": tensors[f"{SHARES}{name}"]
                    for sender, tensors in self.sealed.items()
                    if sender != name
                },
            )
            for name in survivors
        }


def exchange_keys(
    sites: Sites, names: Sequence[str], round: int, quorum: Quorum = EVERYONE
) -> KeyExchange:
    """Let sites advertise keys and share them; anew without a site that falls silent between.

    Raises `SiteFailed` where those who answer are too few.
    """
    while True:
        few = _at_least(FEWEST_MASKED, quorum)
        advertised = sites.ask({name: AdvertiseKeys(round=round) for name in names}, quorum=few)
        names = names_of(advertised)
        for reply in advertised:
            _check_complete(reply, {f"{PUBLIC}{reply.site}"})
        keys = {name: tensor for reply in advertised for name, tensor in reply.weights.items()}
        share = ShareKeys(round=round, weights=keys)
        shared = sites.ask(dict.fromkeys(names, share), quorum=few)
        for reply in shared:
            _check_complete(reply, {f"{SHARES}{name}" for name in names if name != reply.site})
        if len(shared) == len(names):
            members = keys_from_tensors(keys, sites.names)
            return KeyExchange(MaskRoster(members), {r.site: r.weights for r in shared})
        names = names_of(shared)


def _check_complete(reply: Reply, names: set[str]) -> None:
    """Refuse a reply of a site that has not answered for all that it must, or for others."""
    if set(reply.weights) != names:
        raise BadUpdate(
            f"site '{reply.site}' sent other keys for the secure sum of round {reply.round} than "
            "those of its own and for every other site"
        )


def _at_least(number: int, quorum: Quorum) -> Quorum:
    if quorum.least is None:
        return quorum
    return replace(quorum, least=max(number, quorum.least))


def train_masked(
    state: State, sites: Sites, method: Method, *, quorum: Quorum
) -> tuple[list[Reply], list[Reply]]:
    """Let sites train, and return their replies, and the one reply with the sum of their updates.

    A site that falls silent while it trains is left out: the masks that it shared are recovered
    from the others, or the round is repeated without it, with fresh keys, as the study says.
    """
    names: Sequence[str] = sites.names
    while True:
        exchange = exchange_keys(sites, names, state.round + 1, quorum)
        enough = exchange.quorum(quorum)
        replies = train_side_by_side(state, exchange.names, sites, method, quorum=enough)
        names = names_of(replies)
        if names == exchange.names or method.guards.on_dropout == "recover":
            break
    revealed = sites.ask(exchange.unmasking(names), quorum=exchange.restoring(quorum))
    return replies, [combine_masked(exchange.roster, replies, revealed)]


def combine_masked(roster: MaskRoster, masked: Sequence[Reply], revealed: Sequence[Reply]) -> Reply:
    """Return one reply that stands for all: the sum of their updates, without masks.

    Raises `BadUpdate` where the masks cannot be taken off.
    """
    from grandrounds.privacy.secure_sum.recovery import recover_sum

    total = recover_sum(
        roster,
        {reply.site: vector_of(reply.weights[SUM]) for reply in masked},
        {reply.site: tensors_to_bytes(REVEALED, reply.weights) for reply in revealed},
    )
    weight = sum(roster.of(reply.site).weight for reply in masked)
    if int(total[-1]) != weight:
        raise BadUpdate(
            "the masked updates do not add up to the weights of their sites: a site has masked "
            "for other sites or another attempt"
        )
    weights = {SUM: tensor_of(total), TOTAL: torch.tensor(roster.total)}
    return replace(masked[0], examples=sum(each.examples for each in masked), weights=weights)
