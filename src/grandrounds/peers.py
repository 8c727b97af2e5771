"""What a site does among peers: lead a merge, and adopt what a leader merged."""

from dataclasses import dataclass

from grandrounds.checkpoints import flattened, unflattened
from grandrounds.desk import Desk
from grandrounds.mailbox import Mailbox
from grandrounds.messages import Adopt, Merge, Reply
from grandrounds.weights import num_bytes


@dataclass(frozen=True)
class Peers:
    """One site among its peers: its mailbox, and the desk that it merges at."""

    site: str
    desk: Desk
    mailbox: Mailbox

    def merge(self, request: Merge) -> Reply:
        """Lead: combine what the peers delivered. Raises `BadUpdate` where one is missing."""
        updates = self.mailbox.updates(request.peers, request.round)
        merged = self.desk.method.combine(self.desk.merged(request.since), updates)
        return Reply(
            site=self.site,
            round=request.round,
            merged=len(updates),
            received=sum(num_bytes(u.weights) for u in updates if u.site != self.site),
            shared=merged.fingerprint,
            weights=flattened(merged),
        )

    def adopt(self, request: Adopt) -> Reply:
        """Keep the leader's merged model; what else was delivered is of no use any more."""
        merged = self.mailbox.merged(request.leader, request.round)
        state = unflattened(merged.weights, request.round)
        self.desk.kept.keep_merged(state, request.keep)
        received = 0 if request.leader == self.site else num_bytes(merged.weights)
        shared = state.fingerprint
        return Reply(site=self.site, round=request.round, shared=shared, received=received)
