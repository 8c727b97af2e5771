"""APFL."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from grandrounds.algorithms.method import LocalRound, Method, Need, Update
from grandrounds.core.errors import require
from grandrounds.core.weights import Weights


@dataclass(frozen=True)
class APFL(Method):
    """Deng et al. 2020: each site mixes a model of its own into the shared one.

    site      w_k <- w - eta g(w_k);  v_k <- v_k - eta alpha g(m_k),
              m_k = alpha v_k + (1 - alpha) w_k
    server    as FedAvg, of w_k; each site is scored with its m_k

    As w_k stands still while v_k learns, m_k itself is trained: m_k <- m_k - eta alpha^2 g(m_k).
    """

    alpha: float = 0.5

    def train(self, site: LocalRound) -> Update:
        shared = site.train()
        own = site.kept("own") or site.first
        moments = {n: t for n, t in site.kept("personal").items() if "/" in n}
        site.restart(mixed(shared.model, own, self.alpha) | moments)
        mixture = site.train(Multiply(self.alpha**2))
        own = mixed(shared.model, mixture.model, 1 / self.alpha)
        return shared.keeping(own=own, personal=mixture.model)

    def check(self) -> None:
        require(
            0 < self.alpha <= 1,
            f"method.alpha is {self.alpha:g}; it must be above 0 and at most 1",
        )

    def needs(self) -> Mapping[Need, str]:
        return {
            "whole network": "a site cannot train a whole model of its own, as it holds only a "
            "part of one"
        }

    def extra_work(self) -> str:
        return "each site trains two models, so twice the steps"

    def epochs_at_site(self, epochs: int) -> int:
        return 2 * epochs


@dataclass(frozen=True)
class Multiply:
    """Multiplies the gradients by a factor."""

    factor: float

    def __call__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        for parameter in parameters.values():
            if parameter.grad is not None:
                parameter.grad.mul_(self.factor)


def mixed(one: Weights, other: Weights, share: float) -> Weights:
    """Return the weights at a share of the way from one model to another."""
    return {
        name: torch.lerp(one[name], tensor, share) if tensor.is_floating_point() else tensor
        for name, tensor in other.items()
        if "/" not in name  # the optimiser's state is no weight
    }
