"""A site stores what its peers deliver until it merges or adopts it."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from grandrounds.algorithms.method import broadcast, merge_updates
from grandrounds.core.errors import BadUpdate
from grandrounds.core.messages import Adopt, Merge, Reply, Train
from grandrounds.core.sentence import Name, phrase
from grandrounds.core.state import State, from_tensors, to_tensors
from grandrounds.core.weights import num_bytes
from grandrounds.site.model_state import SiteModel


@dataclass(frozen=True)
class Mailbox:
    """Updates of peers, and the model that a leader merged from them, by sender."""

    _updates: dict[str, Reply] = field(default_factory=dict[str, Reply])
    _merged: dict[str, Reply] = field(default_factory=dict[str, Reply])

    def put(self, update: Reply) -> None:
        """Store an update; it replaces an earlier one of the same sender."""
        box = self._merged if update.merged else self._updates
        box[update.site] = update

    def updates(self, peers: Sequence[str], round: int) -> list[Reply]:
        """Remove and return these peers' updates of a round, in their order. Raises `BadUpdate`."""
        updates = {name: self._updates.get(name) for name in peers}
        missing = [n for n, update in updates.items() if update is None or update.round != round]
        if missing:
            raise BadUpdate(
                f"no update of {', '.join(missing)} was delivered to this leader",
                safe=phrase(
                    "no update of {peers} was delivered to this leader",
                    peers=tuple(Name(name) for name in missing),
                ),
            )
        return [self._updates.pop(name) for name in peers]

    def adopted(self, leader: str, round: int) -> Reply:
        """Empty the mailbox, and return a leader's merged model. Raises `BadUpdate` without one."""
        merged = self.merged(leader, round)
        self._merged.clear()
        self._updates.clear()
        return merged

    def merged(self, leader: str, round: int) -> Reply:
        """Return the merged model that a leader delivered. Raises `BadUpdate` without one."""
        merged = self._merged.get(leader)
        if merged is None or merged.round != round:
            raise BadUpdate(
                f"no merged model of '{leader}' was delivered to this site",
                safe=phrase(
                    "no merged model of '{leader}' was delivered to this site", leader=Name(leader)
                ),
            )
        return merged


@dataclass(frozen=True)
class PeerExchange:
    """Merges what peers delivered to a site's mailbox, or adopts what a leader merged."""

    site_model: SiteModel
    mailbox: Mailbox

    def merge(self, request: Merge) -> Reply:
        """Combine the updates of the peers. Raises `BadUpdate` where one is missing."""
        updates = self.mailbox.updates(request.peers, request.round)
        site = self.site_model.site
        merged = merge_updates(site.method, self._start(request), updates)
        return Reply(
            site=site.name,
            round=request.round,
            merged=len(updates),
            received=sum(num_bytes(u.weights) for u in updates if u.site != site.name),
            shared=merged.fingerprint,
            weights=to_tensors(merged),
        )

    def handed_on(self, request: Train) -> Train:
        """Return a request with the model that a leader delivered. Raises `BadUpdate`."""
        site = self.site_model.site
        return replace(request, weights=broadcast(site.method, self._start(request), site.name))

    def _start(self, request: Train | Merge) -> State:
        """Return the model from which a group of sites trained, or will train."""
        if not request.after:
            return self.site_model.merged(request.since)
        delivered = self.mailbox.merged(request.after, request.round)
        return from_tensors(delivered.weights, request.since)

    def adopt(self, request: Adopt) -> Reply:
        """Save the leader's merged model; all else that was delivered is dropped."""
        merged = self.mailbox.adopted(request.leader, request.round)
        state = replace(from_tensors(merged.weights, request.round), best_round=request.keep)
        self.site_model.store.save_merged(state)
        site = self.site_model.site.name
        received = 0 if request.leader == site else num_bytes(merged.weights)
        shared = state.fingerprint
        return Reply(site=site, round=request.round, shared=shared, received=received)
