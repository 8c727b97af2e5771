"""FedPer."""

from dataclasses import dataclass

from grandrounds.algorithms.method import Method
from grandrounds.algorithms.sharing import Sharing


@dataclass(frozen=True)
class FedPer(Method):
    """Arivazhagan et al. 2019: the head stays at the site, all below it is averaged.

    site      as FedAvg
    server    as FedAvg, of all but the head
    """

    def sharing(self) -> Sharing:
        return Sharing(private=("head",))
