"""FedBN."""

from collections.abc import Mapping
from dataclasses import dataclass

from grandrounds.algorithms.method import Method
from grandrounds.algorithms.sharing import Sharing


@dataclass(frozen=True)
class FedBN(Method):
    """Li et al. 2021: FedAvg, but batch-norm parameters and statistics stay at the site.

    site      as FedAvg
    server    as FedAvg, of all but the batch norms
    """

    def sharing(self) -> Sharing:
        return Sharing(private=("norm",))

    def prefers(self) -> Mapping[str, str]:
        return {"norm": "batch"}
