"""A site stores what its peers deliver until it merges or adopts it."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from grandrounds.algorithms.method import broadcast, merge_updates
from grandrounds.algorithms.secure_round import combine_masked
from grandrounds.core.errors import BadUpdate
from grandrounds.core.messages import Adopt, Merge, Reply, Train
from grandrounds.core.sentence import Name, Sentence, phrase
from grandrounds.core.state import State, from_tensors, to_tensors
from grandrounds.core.weights import num_bytes
from grandrounds.privacy.secure_sum.wire import REVEALED
from grandrounds.site.masking import SiteMasking
from grandrounds.site.model_state import SiteModel


@dataclass(frozen=True)
class Mailbox:
    """Updates of peers, what takes their masks off, and the model that a leader merged."""

    _updates: dict[str, Reply] = field(default_factory=dict[str, Reply])
    _merged: dict[str, Reply] = field(default_factory=dict[str, Reply])
    _revealed: dict[str, Reply] = field(default_factory=dict[str, Reply])

    def put(self, update: Reply) -> None:
        """Store an update; it replaces an earlier one of the same sender."""
        box = self._merged if update.merged else self._updates
        if reveals(update):
            box = self._revealed
        box[update.site] = update

    def updates(self, peers: Sequence[str], round: int) -> list[Reply]:
        """Remove and return these peers' updates of a round, in their order. Raises `BadUpdate`."""
        return _taken(self._updates, peers, round, phrase("update"))

    def revealed(self, peers: Sequence[str], round: int) -> list[Reply]:
        """Remove and return the shares of keys that these peers revealed. Raises `BadUpdate`."""
        return _taken(self._revealed, peers, round, phrase("share of a key"))

    def adopted(self, leader: str, round: int) -> Reply:
        """Empty the mailbox, and return a leader's merged model. Raises `BadUpdate` without one."""
        merged = self.merged(leader, round)
        self._merged.clear()
        self._updates.clear()
        self._revealed.clear()
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


def _taken(box: dict[str, Reply], peers: Sequence[str], round: int, what: Sentence) -> list[Reply]:
    """Remove and return what these peers delivered for a round. Raises `BadUpdate`."""
    updates = {name: box.get(name) for name in peers}
    missing = [n for n, update in updates.items() if update is None or update.round != round]
    if missing:
        raise BadUpdate(
            f"no {what} of {', '.join(missing)} was delivered to this leader",
            safe=phrase(
                "no {what} of {peers} was delivered to this leader",
                what=what,
                peers=tuple(Name(name) for name in missing),
            ),
        )
    return [box.pop(name) for name in peers]


def reveals(update: Reply) -> bool:
    """Tell whether a peer delivered shares of keys, and no update."""
    return any(name.startswith(REVEALED) for name in update.weights)


@dataclass(frozen=True)
class PeerExchange:
    """Merges what peers delivered to a site's mailbox, or adopts what a leader merged."""

    site_model: SiteModel
    mailbox: Mailbox
    masking: SiteMasking | None = None

    def merge(self, request: Merge) -> Reply:
        """Combine the updates of the peers. Raises `BadUpdate` where one is missing."""
        updates = self.mailbox.updates(request.peers, request.round)
        site = self.site_model.site
        merged = merge_updates(site.method, self._start(request), self._unmasked(request, updates))
        return Reply(
            site=site.name,
            round=request.round,
            merged=len(updates),
            received=sum(num_bytes(u.weights) for u in updates if u.site != site.name),
            shared=merged.fingerprint,
            weights=to_tensors(merged),
        )

    def _unmasked(self, request: Merge, updates: list[Reply]) -> Sequence[Reply]:
        """Return the updates, or where they are masked the one reply with their sum."""
        if self.masking is None:
            return updates
        roster = self.masking.session_of(request.round).roster
        revealed = self.mailbox.revealed(request.peers, request.round)
        return [combine_masked(roster, updates, revealed)]

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
