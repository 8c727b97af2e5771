"""FedGAN."""

from collections.abc import Mapping
from dataclasses import dataclass

from grandrounds.algorithms.method import Method, Need
from grandrounds.algorithms.sharing import Sharing


@dataclass(frozen=True)
class FedGAN(Method):
    """Rasouli et al. 2020: generators are averaged, and each critic among the sites of its task.

    site      as FedAvg
    server    as FedAvg, of generators and critics
    """

    share_discriminator: bool = True

    def sharing(self) -> Sharing:
        return Sharing(shared=("all", "critic") if self.share_discriminator else ("all",))

    def needs(self) -> Mapping[Need, str]:
        if not self.share_discriminator:
            return {}
        return {
            "whole network": "critics stay beside the images that they judge, and are no part of "
            "what is cut"
        }
