"""FedMRI."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from grandrounds.algorithms.aggregation import Updates
from grandrounds.algorithms.method import (
    LocalRound,
    Method,
    Need,
    Update,
    remembered,
    require_at_least,
)
from grandrounds.algorithms.sharing import Sharing
from grandrounds.core.state import State
from grandrounds.core.weights import Weights, select, with_prefix, without_prefix

TINY = 1e-14  # keeps a ratio finite


@dataclass(frozen=True)
class FedMRI(Method):
    """Feng et al. 2023: the encoder travels, and is kept near the average and off the last uploads.

    `beta` weighs that term; "all" sends each site's last encoder to all others, "own" to none.

    site      w_k <- w_k - eta (g(w_k) + beta grad |w_k - w|_1 / sum_j |w_k - u_j|_1)
    server    as FedAvg, of the encoder; u_j are the encoders that were sent last
    """

    beta: float = 1000.0
    negatives: Literal["all", "own"] = "all"

    def sharing(self) -> Sharing:
        receives = ("upload",) if self._shows else ()
        return Sharing(("encoder",), receives=receives, shows_updates=self._shows)

    @property
    def _shows(self) -> bool:
        return self.beta > 0 and self.negatives == "all"

    def train(self, site: LocalRound) -> Update:
        others = by_site(site.kept("upload") | site.received("upload"))
        update = site.train(Contrast(self.beta, site.start, others))
        if self.beta and self.negatives == "own":
            return update.keeping(upload=select(update.model, site.start.__contains__))
        return update

    def combine(self, state: State, updates: Updates) -> State:
        averaged = super().combine(state, updates)
        if not self._shows:
            return averaged
        return remembered(
            averaged,
            upload={
                address: tensor
                for site, sent in updates.of_each().items()
                for address, tensor in with_prefix(f"{site}/", sent).items()
            },
        )

    def check(self) -> None:
        require_at_least(0, beta=self.beta)

    def needs(self) -> Mapping[Need, str]:
        if not self.beta:
            return {}
        return {
            "side by side": "its term compares what sites sent side by side, and here one model "
            "goes from site to site",
            "whole network": "its term compares whole encoders, and a site holds only a part of "
            "one",
            **self._needs_of_others,
        }

    @property
    def _needs_of_others(self) -> Mapping[Need, str]:
        return {"own updates": "each site is sent what the others sent"} if self._shows else {}

    def prefers(self) -> Mapping[str, str]:
        return {"generator": "unet"}


@dataclass(frozen=True)
class Contrast:
    """Adds the gradient of strength * |w - start|_1 / sum_j |w - other_j|_1.

    Norms are summed over the tensors of `start`; where w = start the gradient is 0.
    """

    strength: float
    start: Weights
    others: Sequence[Weights]

    def __call__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Add the gradient of the ratio, by the quotient rule."""
        if not self.strength or not self.others:
            return
        with torch.no_grad():
            moved = {n: p for n, p in parameters.items() if n in self.start and p.grad is not None}
            near = self._distance(moved, self.start)
            far = sum(self._distance(moved, other) for other in self.others) + TINY
            for name, parameter in moved.items():
                pull = _sign(parameter, self.start[name])
                push = torch.stack([_sign(parameter, other[name]) for other in self.others]).sum(0)
                assert parameter.grad is not None
                parameter.grad.add_(pull / far - push * (near / far**2), alpha=self.strength)

    def _distance(self, parameters: Mapping[str, nn.Parameter], other: Weights) -> float:
        return sum(float((p - other[n].to(p.device)).abs().sum()) for n, p in parameters.items())


def _sign(parameter: Tensor, other: Tensor) -> Tensor:
    return torch.sign(parameter - other.to(parameter.device))


def by_site(uploads: Weights) -> list[Weights]:
    """Return what each site sent last; what this one kept of its own has no site in its names."""
    sites = dict.fromkeys(name.rpartition("/")[0] for name in uploads)
    return [
        without_prefix(f"{site}/", uploads)
        if site
        else select(uploads, lambda name: "/" not in name)
        for site in sites
    ]
