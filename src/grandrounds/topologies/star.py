"""The star: a server sends the model to every site, and combines what comes back."""

from dataclasses import dataclass

from grandrounds.checkpoints import State
from grandrounds.messages import Train
from grandrounds.methods.method import Method
from grandrounds.topologies.topology import Outcome, Sites


@dataclass(frozen=True)
class Star:
    """Server and clients, synchronous, all sites in every round. McMahan et al. 2017."""

    def round(self, state: State, sites: Sites, method: Method) -> Outcome:
        """Broadcast, let every site train, combine in roster order."""
        order = Train(
            round=state.round + 1,
            plan=method.plan,
            keep=state.best_round,
            weights=state.weights,
        )
        replies = sites.ask(dict.fromkeys(sites.names, order))
        return Outcome(method.combine(state, replies), replies)
