"""FedRep."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from grandrounds.algorithms.method import LocalRound, Method, Need, Update, require_at_least
from grandrounds.algorithms.sharing import Sharing


@dataclass(frozen=True)
class FedRep(Method):
    """Collins et al. 2021: as FedPer, but each round trains first the head alone, then the rest.

    site      h_k <- h_k - eta g(h_k; w), for head_epochs;  then w_k <- w_k - eta g(w_k; h_k)
    server    as FedAvg, of all but the head
    """

    head_epochs: int = 1

    def sharing(self) -> Sharing:
        return Sharing(private=("head",))

    def train(self, site: LocalRound) -> Update:
        head = site.train(only="private", epochs=self.head_epochs)
        rest = site.train(only="shared")
        return replace(rest, steps=head.steps + rest.steps)  # one after the other, of one model

    def check(self) -> None:
        require_at_least(1, head_epochs=self.head_epochs)

    def needs(self) -> Mapping[Need, str]:
        return {
            "whole network": "the server's part takes a step with every batch, and cannot wait for "
            "the head"
        }

    def extra_work(self) -> str:
        more = "1 more epoch" if self.head_epochs == 1 else f"{self.head_epochs} more epochs"
        return f"{more} in each round, of what stays alone"

    def epochs_in_a_row(self, epochs: int) -> int:
        return epochs + self.head_epochs
