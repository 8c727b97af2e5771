"""FedMM-GAN."""

from collections.abc import Mapping
from dataclasses import dataclass

from grandrounds.algorithms.method import Method


@dataclass(frozen=True)
class FedMMGAN(Method):
    """MM-GAN (Sharma and Hamarneh 2020) under FedAvg: one network with a channel per contrast.

    site      as FedAvg
    server    as FedAvg
    """

    @property
    def title(self) -> str:
        return "FedMM-GAN"

    def prefers(self) -> Mapping[str, str]:
        return {"generator": "contrasts-unet"}
