"""FedCycleGAN."""

from collections.abc import Mapping
from dataclasses import dataclass

from grandrounds.algorithms.method import Method


@dataclass(frozen=True)
class FedCycleGAN(Method):
    """Song and Ye 2021: one generator that a code switches between directions is averaged.

    site      as FedAvg
    server    as FedAvg
    """

    def prefers(self) -> Mapping[str, str]:
        return {"generator": "coded-unet"}
