"""The one model in memory, with its optimisers.

Sites take turns at it, each with its own private state.
"""

from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from grandrounds.precision import autocast, weights_dtype
from grandrounds.weights import OPTIMIZER, Filter, Weights, copied, select


@dataclass
class Bench:
    """A model, an optimiser for each trained part, and where and how precisely they compute.

    `rates` multiplies the learning rate for parameters whose name starts with a prefix.
    """

    model: nn.Module
    device: torch.device
    precision: torch.dtype
    kind: Literal["adam", "sgd"] = "adam"
    betas: tuple[float, float] = (0.9, 0.999)
    momentum: float = 0.0
    rates: Mapping[str, float] = field(default_factory=dict[str, float])
    _optimizers: dict[str, Optimizer] = field(default_factory=dict[str, Optimizer], init=False)
    _named: dict[str, dict[str, nn.Parameter]] = field(
        default_factory=dict[str, dict[str, nn.Parameter]], init=False
    )
    _rate: float = field(default=0.0, init=False)

    def place(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Move a batch to the device, in the type of the weights."""
        dtype = weights_dtype(self.precision)
        return {
            n: t.to(self.device, dtype) if t.is_floating_point() else t.to(self.device)
            for n, t in batch.items()
        }

    def set_rate(self, rate: float) -> None:
        """Set the learning rate of all optimisers, present and to come."""
        self._rate = rate
        for optimizer in self._optimizers.values():
            self._apply_rate(optimizer)

    def _apply_rate(self, optimizer: Optimizer) -> None:
        for group in optimizer.param_groups:
            group["lr"] = self._rate * group["factor"]

    def optimizer(self, part: str) -> Optimizer:
        """Give the optimiser of a sub-module, made when it is first asked for."""
        if part not in self._optimizers:
            self._optimizers[part] = self._new_optimizer(part)
        return self._optimizers[part]

    def _new_optimizer(self, part: str) -> Optimizer:
        by_factor: dict[float, list[nn.Parameter]] = {}
        for name, parameter in self.parameters(part).items():
            factors = [f for prefix, f in self.rates.items() if name.startswith(prefix)]
            by_factor.setdefault(factors[0] if factors else 1.0, []).append(parameter)
        groups = [{"params": params, "factor": factor} for factor, params in by_factor.items()]
        optimizer = (
            Adam(groups, lr=self._rate, betas=self.betas, fused=True)
            if self.kind == "adam"
            else SGD(groups, lr=self._rate, momentum=self.momentum)
        )
        self._apply_rate(optimizer)
        return optimizer

    def parameters(self, part: str) -> dict[str, nn.Parameter]:
        """Give a part's parameters by their names in the whole model; "" is the whole model."""
        if part not in self._named:
            module, prefix = self.model.get_submodule(part), f"{part}." if part else ""
            self._named[part] = dict(module.named_parameters(prefix=prefix.removesuffix(".")))
        return self._named[part]

    @contextmanager
    def training_only(self, trained: Filter) -> Generator[None, None, None]:
        """Let only the parameters whose names pass the filter be trained."""
        changed = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        try:
            for name, parameter in changed.items():
                parameter.requires_grad_(trained(name))
            yield
        finally:
            for parameter in changed.values():
                parameter.requires_grad_(True)

    def under_autocast(self, losses: Iterator[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """Run a task's losses in the chosen precision; what the caller does between is outside."""
        while True:
            with autocast(self.device, self.precision):
                item = next(losses, None)
            if item is None:
                return
            yield item

    def weights(self, keep: Filter) -> Weights:
        """Copy the model's tensors whose names pass the filter."""
        return copied(select(self.model.state_dict(), keep))

    def optimizer_state(self, keep: Filter) -> Weights:
        """Copy the optimisers' tensors of the parameters whose names pass the filter.

        They are named `optimizer/PART/PARAMETER/KEY`.
        """
        return {
            f"{OPTIMIZER}{part}/{name.removeprefix(f'{part}.')}/{key}": tensor.detach().to(
                "cpu", copy=True
            )
            for part, optimizer in self._optimizers.items()
            for name, parameter in self.parameters(part).items()
            if parameter in optimizer.state and keep(name)
            for key, tensor in optimizer.state[parameter].items()
            if tensor is not None
        }

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Overwrite the model's tensors of these names; the others stay as they are."""
        own = self.model.state_dict()
        with torch.no_grad():
            for name, tensor in weights.items():
                own[name].copy_(tensor)

    def load_optimizer_state(self, state: Mapping[str, Tensor]) -> None:
        """Replace all optimiser state: what `state` does not name starts anew."""
        for optimizer in self._optimizers.values():
            optimizer.state.clear()
        for address, tensor in state.items():
            part, name, key = address.removeprefix(OPTIMIZER).split("/")
            whole = f"{part}.{name}" if part else name
            state_of = self.optimizer(part).state[self.parameters(part)[whole]]
            state_of[key] = tensor.to(self.device, copy=True)
