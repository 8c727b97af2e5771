"""LG-FedAvg."""

from dataclasses import dataclass

from grandrounds.algorithms.method import Method
from grandrounds.algorithms.sharing import Sharing


@dataclass(frozen=True)
class LGFedAvg(Method):
    """Liang et al. 2020: the lower layers stay at the site, the upper ones are averaged.

    site      as FedAvg
    server    as FedAvg, of the upper layers
    """

    @property
    def title(self) -> str:
        return "LG-FedAvg"

    def sharing(self) -> Sharing:
        return Sharing(shared=("upper",))
