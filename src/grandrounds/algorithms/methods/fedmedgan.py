"""FedMed-GAN."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from grandrounds.algorithms.aggregation import Updates
from grandrounds.algorithms.method import LocalRound, Method, Need, Update
from grandrounds.algorithms.sharing import Sharing
from grandrounds.core.state import State


@dataclass(frozen=True)
class FedMedGAN(Method):
    """Wang et al. 2023 (FedMed-GAN): the generators are averaged, critics stay.

    With "best" all sites go on from the generator of the one whose own validates best.

    site      as FedAvg
    server    as FedAvg; with "best" w <- w_k of the best k
    """

    broadcast: Literal["mean", "best"] = "mean"

    @property
    def title(self) -> str:
        return "FedMed-GAN, best site's" if self._best else "FedMed-GAN"

    @property
    def _best(self) -> bool:
        return self.broadcast == "best"

    def sharing(self) -> Sharing:
        return Sharing(shows_updates=self._best)

    def train(self, site: LocalRound) -> Update:
        update = site.train()
        return replace(update, score=site.validate()) if self._best else update

    def combine(self, state: State, updates: Updates) -> State:
        if self._best:
            return replace(state, weights=updates.best())
        return super().combine(state, updates)

    def needs(self) -> Mapping[Need, str]:
        if not self._best:
            return {}
        return {
            "side by side": 'with broadcast = "best" one of several models is chosen, and here '
            "there is one model",
            "whole network": "a site cannot validate by itself what it trained, as it holds only a "
            "part of it",
            "own updates": 'with broadcast = "best" one site\'s update is taken as it is',
            "no aggregation": 'with method.broadcast = "best" one site\'s update is taken as it '
            'is. Remove [aggregation], or set method.broadcast = "mean".',
        }

    def prefers(self) -> Mapping[str, str]:
        return {"generator": "unet"}
