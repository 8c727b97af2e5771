"""A guard masks a site's update, so that only the sum over the sites can be read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Size

from grandrounds.core.errors import BadUpdate
from grandrounds.core.messages import Reply
from grandrounds.core.state import State
from grandrounds.core.weights import Weights
from grandrounds.privacy.guard import GUARD, Demand, Departure, Layout
from grandrounds.privacy.secure_sum.fixed_point import FixedPoint, tensor_of, vector_of
from grandrounds.privacy.secure_sum.secret_sharing import threshold_of

SUM, TOTAL = f"{GUARD}sum", f"{GUARD}total"  # a vector of integers; the weights of all who masked


@dataclass(frozen=True)
class SecureSum:
    """The last guard: an update leaves in fixed point, masked. Bonawitz et al. 2017.

    Between sites and merging the topology takes the masks off the sum, so that `admit` is given one
    reply that stands for all.
    """

    @property
    def word(self) -> str:
        return "privacy.secure_sum"

    def told(self, sites: int) -> str:
        return (
            "privacy: a site's update leaves masked, in fixed point; whoever merges the updates "
            f"reads their sum alone; {threshold_of(sites)} of {sites} sites together can take the "
            "masks off it; losses, scores and counts are not masked"
        )

    def needs(self) -> Mapping[Demand, str]:
        alone = "masks cancel in one sum of all sites' updates, and here there is none"
        own = "it reads the sites' own updates, and only their sum is there"
        return {
            "side by side": alone,
            "one mean": alone,
            "star or swarm": "sites exchange keys with a server or a leader that waits for all",
            "mean": own,
            "counted shares": "it adds up updates times whole numbers of examples",
            "rate of 1": own,
            "common start": "the step of its fixed point is that of the model from which all "
            "sites started",
            "the mean alone": own,
            "all tensors": "every site must send every tensor, or its masks would be missing",
            "no cosines": own,
            "full exchange": "numbers that are compressed at each site have no sum",
            "three sites": "of two, each gets the other's update by taking its own off the sum",
        }

    def protect(self, departure: Departure) -> Departure:
        """Encode and mask the update. Raises `BadUpdate` for numbers beyond the fixed point."""
        masking = departure.masking
        if masking is None:
            raise BadUpdate("no keys were exchanged for this round, so no update can be masked")
        encoding = FixedPoint.of(departure.start)
        vector = encoding.encode(departure.update, masking.weight, masking.total)
        masking.mask(vector)
        return replace(departure, update={SUM: tensor_of(vector)})

    def admit(self, replies: Sequence[Reply], state: State) -> Sequence[Reply]:
        """Return the mean for which the sum stands, as the one update that there is."""
        if len(replies) != 1 or TOTAL not in replies[0].weights:
            raise BadUpdate("masked updates came to be merged before the masks were off their sum")
        return [replace(replies[0], weights=decoded(replies[0].weights, state.weights))]

    def layout(self, tensors: Layout) -> Layout:
        numbers = sum(size.numel() for size, _ in tensors.values())
        return {SUM: (Size((numbers + 1,)), torch.int32)}

    def problem(self, weights: Weights, tensors: Layout) -> str:  # noqa: ARG002
        return ""


def decoded(weights: Weights, start: Weights) -> Weights:
    """Return the weighted mean that a sum without masks stands for. Raises `BadUpdate`."""
    mean, _ = FixedPoint.of(start).decode(vector_of(weights[SUM]), int(weights[TOTAL]))
    return mean
