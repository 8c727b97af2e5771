"""First weights that depend on a seed and on nothing else."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import nn

from grandrounds.models.norm import InstanceNorm

_SPREAD = 0.02

Network = TypeVar("Network", bound=nn.Module)


@contextmanager
def seeded(seed: int) -> Generator[None]:
    """Draw from the CPU's global generator as if it had just been seeded, then put it back."""
    state = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(state)


def initialise(network: Network) -> Network:
    """Draw convolution weights from N(0, 0.02^2) and norm weights from N(1, 0.02^2), in place.

    Linear layers keep what they drew for themselves: at spread 0.02 a mapper would stay dead.
    """
    for part in network.modules():
        if isinstance(part, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(part.weight, std=_SPREAD)
        elif isinstance(part, InstanceNorm | nn.BatchNorm2d):
            nn.init.normal_(part.weight, mean=1.0, std=_SPREAD)
    return network
