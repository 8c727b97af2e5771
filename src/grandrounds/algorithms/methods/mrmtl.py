"""MR-MTL."""

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
class MRMTL(Method):
    """Liu et al. 2022: each site trains a model of its own, pulled towards the mean of all.

    site      w_k <- w_k - eta (g(w_k) + strength (w_k - w)), from the site's own w_k
    server    w <- sum_k n_k / n w_k; each site is scored with its w_k
    """

    strength: float = 0.1

    @property
    def title(self) -> str:
        return "MR-MTL"

    def train(self, site: LocalRound) -> Update:
        site.restart(site.kept("personal") or site.first)
        update = site.train(Pull(self.strength, towards=site.start))
        return update.keeping(personal=update.model)

    def check(self) -> None:
        require_at_least(0, strength=self.strength)

    def needs(self) -> Mapping[Need, str]:
        return {
            "side by side": "each site is pulled towards the mean of models that were trained side "
            "by side",
            "whole network": "a site cannot train a whole model of its own, as it holds only a "
            "part of one",
        }
