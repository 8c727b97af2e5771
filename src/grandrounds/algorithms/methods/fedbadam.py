"""FedBAdam."""

from collections.abc import Mapping
from dataclasses import dataclass

from grandrounds.algorithms.aggregation import ServerStep, Updates
from grandrounds.algorithms.method import Method, Need
from grandrounds.algorithms.methods.fedopt import STEPS
from grandrounds.algorithms.sharing import Sharing
from grandrounds.core.state import State


@dataclass(frozen=True)
class FedBAdam(Method):
    """FedBAdam: Adam at the server, batch norms stay at the site (10.1016/j.bspc.2026.109649).

    site      as FedAvg
    server    as FedOpt with Adam, of all but the batch norms, whose second moment starts at 0
    """

    rate: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3

    def sharing(self) -> Sharing:
        return Sharing(private=("norm",))

    @property
    def step(self) -> ServerStep:
        """Return the server's step with these options."""
        return ServerStep("adam", self.rate, self.beta1, self.beta2, self.tau)

    def combine(self, state: State, updates: Updates) -> State:
        return self.step(state, updates.average())

    def check(self) -> None:
        self.step.check()

    def needs(self) -> Mapping[Need, str]:
        return STEPS

    def prefers(self) -> Mapping[str, str]:
        return {"norm": "batch"}
