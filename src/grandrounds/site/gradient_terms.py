"""A method changes gradients between the backward pass and the optimiser's step."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from grandrounds.core.weights import Filter, Weights

TINY = 1e-14  # keeps a ratio finite


class GradientTerm(Protocol):
    """Changes the gradients of a part's parameters, in place."""

    def __call__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Change the gradients; `parameters` have their names in the whole model."""
        ...


@dataclass(frozen=True)
class ProximalTerm:
    """Adds the gradient of strength / 2 |w - w0|^2, for every tensor that `towards` names.

    Li et al. 2020 (FedProx); Li et al. 2021 (Ditto).
    """

    strength: float
    towards: Weights

    def __call__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Add strength * (w - w0) to each gradient."""
        with torch.no_grad():
            for name, parameter in parameters.items():
                if parameter.grad is not None and name in self.towards:
                    moved = parameter - self.towards[name].to(parameter.device)
                    parameter.grad.add_(moved, alpha=self.strength)


@dataclass(frozen=True)
class ControlVariate:
    """Adds c - c_i to the gradients of what is shared, and finds the next c_i.

    The next c_i is the mean of the uncorrected gradients, which is option II of Karimireddy et al.
    2020 (SCAFFOLD), (x - y) / (K rate) - c + c_i, where steps are plain SGD.
    """

    shared: Filter
    local: Weights
    server: Weights
    _sums: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    _steps: dict[str, int] = field(default_factory=dict[str, int])

    def __call__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Add the gradient to the sum for the next c_i, then correct it."""
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
        """Return the next c_i; a tensor that was not trained keeps the present one."""
        means = {n: (total / self._steps[n]).cpu() for n, total in self._sums.items()}
        return {**self.local, **means}


@dataclass(frozen=True)
class ContrastiveTerm:
    """Adds the gradient of strength * |w - start|_1 / sum_j |w - other_j|_1.

    Norms are summed over the tensors of `start`; where w = start the gradient is 0. Feng et al.
    2023 (FedMRI).
    """

    strength: float
    start: Weights
    others: Sequence[Weights]

    def __call__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Add the gradient of the ratio, by the quotient rule."""
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


def apply_terms(terms: Sequence[GradientTerm], parameters: Mapping[str, nn.Parameter]) -> None:
    """Apply all terms in order."""
    for term in terms:
        term(parameters)
