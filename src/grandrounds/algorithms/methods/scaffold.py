"""SCAFFOLD."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from grandrounds.algorithms.aggregation import ServerStep, Updates, require_above_zero
from grandrounds.algorithms.method import (
    LocalRound,
    Method,
    Need,
    Update,
    remembered,
)
from grandrounds.algorithms.sharing import Sharing
from grandrounds.core.state import State
from grandrounds.core.weights import Filter, Weights


@dataclass(frozen=True)
class Scaffold(Method):
    """Karimireddy et al. 2020: control variates correct each gradient for the site's drift.

    `rate` is the server's.

    site      w_k <- w_k - eta (g(w_k) + c - c_k);  c_k <- the mean of the round's g(w_k)
    server    w <- w + rate (sum_k n_k / n w_k - w);  c <- sum_k n_k / n c_k
    """

    rate: float = 1.0

    @property
    def title(self) -> str:
        return "SCAFFOLD"

    def sharing(self) -> Sharing:
        return Sharing(sends=("control",), receives=("control",))

    def train(self, site: LocalRound) -> Update:
        control = Control(site.travels, site.kept("control"), site.received("control"))
        update = site.train(control)
        return update.sending(control=control.learned()).keeping(control=control.learned())

    def combine(self, state: State, updates: Updates) -> State:
        """Step, and average the control variates.

        As all sites take part, their mean is c + mean(c_k+ - c_k) of the paper.
        """
        stepped = ServerStep("replace", self.rate)(state, updates.average())
        return remembered(stepped, control=updates.average("control"))

    def check(self) -> None:
        require_above_zero(rate=self.rate)

    def needs(self) -> Mapping[Need, str]:
        needs: dict[Need, str] = {
            "side by side": "control variates are means over sites that train side by side, and "
            "here each starts where the last one ended",
            "whole network": "the server's part is trained in one place, where there is no drift "
            "to correct",
            "every site": "its control variates must hold every site's drift",
            "mean": "its control variates are means over the sites",
            "rate of 1": "its server steps by method.rate",
        }
        if self.rate != 1:
            needs["common start"] = "its server steps from where all sites started"
        return needs

    def notes(self, optimizer: str) -> Sequence[str]:
        if optimizer == "sgd":
            return ()
        return ("scaffold was analysed for plain SGD; with Adam its correction is a heuristic",)


@dataclass(frozen=True)
class Control:
    """Adds c - c_k to the gradients of what is shared, and finds the next c_k.

    The next c_k is the mean of the uncorrected gradients, which is option II of the paper,
    (w - w_k) / (K eta) - c + c_k, where steps are plain SGD.
    """

    shared: Filter
    local: Weights
    server: Weights
    _sums: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    _steps: dict[str, int] = field(default_factory=dict[str, int])

    def __call__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Add the gradient to the sum for the next c_k, then correct it."""
        for name, parameter in parameters.items():
            if parameter.grad is None or not self.shared(name):
                continue
            if name not in self._sums:
                self._sums[name] = torch.zeros_like(parameter.grad)
            self._sums[name] += parameter.grad
            self._steps[name] = self._steps.get(name, 0) + 1
            if name in self.local:
                drift = self.server[name] - self.local[name]
                parameter.grad.add_(drift.to(parameter.device))

    def learned(self) -> Weights:
        """Return the next c_k; a tensor that was not trained keeps the present one."""
        means = {n: (total / self._steps[n]).cpu() for n, total in self._sums.items()}
        return {**self.local, **means}
