"""A site's mailbox: what peers delivered, until it is merged or adopted."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from grandrounds.errors import BadUpdate
from grandrounds.messages import Reply


@dataclass(frozen=True)
class Mailbox:
    """Updates of peers, and the model that a leader merged of them, by who sent them."""

    _updates: dict[str, Reply] = field(default_factory=dict[str, Reply])
    _merged: dict[str, Reply] = field(default_factory=dict[str, Reply])

    def put(self, update: Reply) -> None:
        """Take what came; a later one of the same sender takes the place of the one before."""
        box = self._merged if update.merged else self._updates
        box[update.site] = update

    def updates(self, peers: Sequence[str], round: int) -> list[Reply]:
        """Use up these peers' updates of a round, in their order. Raises `BadUpdate`."""
        found = {name: self._updates.get(name) for name in peers}
        missing = [n for n, update in found.items() if update is None or update.round != round]
        if missing:
            raise BadUpdate(f"no update of {', '.join(missing)} was delivered to this leader")
        return [self._updates.pop(name) for name in peers]

    def merged(self, leader: str, round: int) -> Reply:
        """Use up a leader's merged model, and all else. Raises `BadUpdate` where it is missing."""
        merged = self._merged.get(leader)
        if merged is None or merged.round != round:
            raise BadUpdate(f"no merged model of '{leader}' was delivered to this site")
        self._merged.clear()
        self._updates.clear()
        return merged
