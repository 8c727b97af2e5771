"""A network from outside is wrapped and built here, and some of its layers are adapted.

Shapes: B batch, C channel, then the image's axes; R rank.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from grandrounds.core.device import to_float32
from grandrounds.core.weights import Filter, name_starts
from grandrounds.models.layer_groups import OWN, NamedNetwork
from grandrounds.models.layers import isolated_seed, modules_by_name

ADAPTERS, FIXED = "adapters", "fixed"  # groups that only a network with adapters has
_ADAPTER = (".adapter_down", ".adapter_up")
_ROOT = 5**0.5  # the slope with which PyTorch itself draws the weights of a linear layer


class Imported(NamedNetwork):
    """A network from outside, (B, C, ...) to one tensor in float32 or wider.

    `frozen` are the starts of the names of layers whose own weights never change; their batch norms
    stay in evaluation mode.
    """

    def __init__(self, network: nn.Module, frozen: Sequence[str] = ()) -> None:
        super().__init__(network)
        self.frozen = tuple(f"{OWN}{start}" for start in frozen)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return the network's output for the first input; a code of site and task is not read."""
        return to_float32(self.network(inputs[0]))

    def is_fixed(self, name: str) -> bool:
        """Tell whether a tensor of this module never changes and never travels."""
        return name.startswith(self.frozen) and not is_adapter(name) if self.frozen else False

    def train(self, mode: bool = True) -> "Imported":
        """Set the mode; batch norms of frozen layers do not count statistics."""
        super().train(mode)
        for name, module in modules_by_name(self).items():
            counts = "running_mean" in dict(module.named_buffers(recurse=False))
            if counts and self.is_fixed(f"{name}.running_mean"):
                module.train(False)
        return self


def is_adapter(name: str) -> bool:
    """Tell whether a tensor is part of a low-rank adapter."""
    return name.endswith(_ADAPTER)


def build_imported(
    make: Callable[[], nn.Module],
    frozen: Sequence[str],
    *,
    seed: int,
    rank: int = 0,
    scale: float = 1.0,
    load: Callable[[nn.Module], None] | None = None,
) -> Imported:
    """Build a network, whose own code initialises it; equal seeds give equal bits.

    Constructors may compute with numbers, so it is built on the CPU, then moved to the default
    device. `load` overwrites first weights. With a `rank` the layers whose names start with one of
    `frozen` get adapters. The global RNG is restored.
    """
    with torch.device("cpu"), isolated_seed(seed):
        network = make()
        if load:
            load(network)
        if rank:
            add_adapters(network, frozen, rank=rank, scale=scale)
        model = Imported(network, frozen if rank else ())
    return model.to(torch.get_default_device())


class LowRank(nn.Module):
    """Adds scale * up down to a weight, of `rank` or of the weight's own rank where that is lower.

    `up` starts at 0, so that the network starts as it was. Hu et al. 2022 (LoRA).
    """

    adapter_down: nn.Parameter
    adapter_up: nn.Parameter

    def __init__(self, weight: Tensor, rank: int, scale: float) -> None:
        super().__init__()
        rows, columns = weight.flatten(1).shape
        rank = min(rank, rows, columns)
        self.scale = scale
        self.adapter_down = nn.Parameter(torch.empty(rank, columns))
        self.adapter_up = nn.Parameter(torch.zeros(rows, rank))
        nn.init.kaiming_uniform_(self.adapter_down, a=_ROOT)

    def forward(self, weight: Tensor) -> Tensor:
        """Return the adapted weight; same shape."""
        added = self.adapter_up @ self.adapter_down
        return weight + self.scale * added.view_as(weight)


def add_adapters(network: nn.Module, starts: Sequence[str], *, rank: int, scale: float) -> None:
    """Freeze the layers of these names, and give each linear layer and convolution an adapter."""
    chosen = name_starts(*starts)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(not chosen(name))
    for name in adaptable(network, starts):
        layer = network.get_submodule(name)
        low_rank = LowRank(layer.get_parameter("weight"), rank, scale)
        parametrize.register_parametrization(layer, "weight", low_rank)


def adaptable(network: nn.Module, starts: Sequence[str]) -> list[str]:
    """List the layers of these names that can have an adapter."""
    chosen = name_starts(*starts)
    return [
        name
        for name, layer in modules_by_name(network).items()
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.Conv3d) and chosen(f"{name}.weight")
    ]


def adapted_groups(
    model: Imported, groups: Mapping[str, Filter], *, prefix: str
) -> dict[str, Filter]:
    """Return the parameter groups of a network that stands under a prefix, with its adapters.

    No group but "fixed" holds what is fixed.
    """
    if not model.frozen:
        return {name: _below(prefix, holds) for name, holds in groups.items()}
    kept = {**groups, ADAPTERS: is_adapter}
    trained = {name: _below(prefix, _unless(model.is_fixed, holds)) for name, holds in kept.items()}
    return {**trained, FIXED: _below(prefix, model.is_fixed)}


def _unless(excluded: Filter, holds: Filter) -> Filter:
    return lambda name: holds(name) and not excluded(name)


def _below(prefix: str, holds: Filter) -> Filter:
    """Return a filter of the names that are a filter's own after a prefix."""
    return lambda name: name.startswith(prefix) and holds(name.removeprefix(prefix))
