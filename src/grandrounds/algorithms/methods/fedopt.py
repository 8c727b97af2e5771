"""FedOpt: FedAvgM, FedAdam, FedYogi and FedAdagrad."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from grandrounds.algorithms.aggregation import ServerStep, Updates
from grandrounds.algorithms.method import Method, Need
from grandrounds.core.state import State

STEPS: Mapping[Need, str] = {  # what a step of the server's needs
    "side by side": "its server steps by the mean of all sites' updates, and here no mean is of "
    "sites that all train side by side",
    "whole network": "the server's part steps with every batch, and leaves no mean move to step by",
    "rate of 1": "its server takes a step of its own",
    "common start": "its server steps from where all sites started",
}


@dataclass(frozen=True)
class FedOpt(Method):
    """Reddi et al. 2021: the server takes the sites' mean move as the gradient of its optimiser.

    site      as FedAvg
    server    d = sum_k n_k / n w_k - w;  m <- beta1 m + (1 - beta1) d;  w <- w + rate m / sqrt(v)
    """

    server: Literal["momentum", "adam", "yogi", "adagrad"] = "adam"
    rate: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3

    @property
    def title(self) -> str:
        return f"Fed{self.server.capitalize()}"

    @property
    def step(self) -> ServerStep:
        """Return the server's step with these options."""
        return ServerStep(
            self.server, self.rate, self.beta1, self.beta2, self.tau, start=self.tau**2
        )

    def combine(self, state: State, updates: Updates) -> State:
        return self.step(state, updates.average())

    def check(self) -> None:
        self.step.check()

    def needs(self) -> Mapping[Need, str]:
        return STEPS
