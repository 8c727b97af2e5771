"""FedProx."""

from collections.abc import Mapping
from dataclasses import dataclass

from grandrounds.algorithms.method import (
    LocalRound,
    Method,
    Need,
    Pull,
    Update,
    require_at_least,
)


@dataclass(frozen=True)
class FedProx(Method):
    """Li et al. 2020: FedAvg with a proximal pull of strength mu towards the round's start.

    site      w_k <- w_k - eta (g(w_k) + mu (w_k - w))
    server    as FedAvg
    """

    mu: float = 0.01

    def train(self, site: LocalRound) -> Update:
        return site.train(Pull(self.mu, towards=site.start))

    def check(self) -> None:
        require_at_least(0, mu=self.mu)

    def needs(self) -> Mapping[Need, str]:
        if not self.mu:
            return {}
        return {
            "whole network": "the server's part has no round's start of one site's to be pulled "
            "towards"
        }
