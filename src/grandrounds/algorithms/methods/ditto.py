"""Ditto."""

from collections.abc import Mapping, Sequence
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
class Ditto(Method):
    """Li et al. 2021: FedAvg, and beside it each site's own model, pulled towards the shared.

    site      w_k as FedAvg;  v_k <- v_k - eta (g(v_k) + strength (v_k - w))
    server    as FedAvg, of w_k; each site is scored with its v_k
    """

    strength: float = 0.1

    def train(self, site: LocalRound) -> Update:
        update = site.train()
        site.restart(site.kept("personal") or site.first)
        own = site.train(Pull(self.strength, towards=site.start))
        return update.keeping(personal=own.model)

    def check(self) -> None:
        require_at_least(0, strength=self.strength)

    def needs(self) -> Mapping[Need, str]:
        return {
            "whole network": "a site cannot train a whole model of its own, as it holds only a "
            "part of one"
        }

    def notes(self, optimizer: str) -> Sequence[str]:
        if self.strength:
            return ()
        return ("ditto with strength = 0 tests models that never see the federation",)

    def extra_work(self) -> str:
        return "each site trains two models, so twice the steps"

    def epochs_at_site(self, epochs: int) -> int:
        return 2 * epochs
