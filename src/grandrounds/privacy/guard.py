"""A guard touches an update last, before it leaves a site, and undoes that where it is merged."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Size, Tensor, dtype

from grandrounds.core.messages import Reply
from grandrounds.core.state import State
from grandrounds.core.weights import Weights

GUARD = "guard/"  # before the names of what a guard sends, and of what it keeps at the site
Layout: TypeAlias = Mapping[str, tuple[Size, dtype]]
"""Shapes and types of tensors by their names."""
Demand: TypeAlias = Literal[
    "side by side",
    "one mean",
    "mean",
    "uniform shares",
    "rate of 1",
    "every site",
    "common start",
    "the mean alone",
    "all tensors",
    "no statistics",
    "no cosines",
    "counted shares",
    "full exchange",
    "three sites",
    "star or swarm",
]


class Masking(Protocol):
    """What a site and the others of its round agreed on, to mask one update."""

    @property
    def weight(self) -> int:
        """Return the site's weight in the mean."""
        ...

    @property
    def total(self) -> int:
        """Return the weights of all sites of the round."""
        ...

    def mask(self, vector: NDArray[np.uint32]) -> None:
        """Mask a vector of integers modulo 2^32, in place; once."""
        ...


@dataclass(frozen=True)
class Departure:
    """A site's update of a round, on its way out.

    `roster` are the sites whose updates are merged with it, in the study's order. `update` are the
    tensors that leave: of the model, and under "set/" those of sets that a method sends. `start`
    are the shared tensors from which the site trained. `kept` is what guards kept at the site after
    the round that this one follows, and, once they are done, what they keep for the next; each name
    starts with that of its guard. `seed` is the study's; a `simulated` site draws from it even what
    must be secret elsewhere, so that its numbers can be computed again. `secret` is that of the
    site's noise, the same in all runs on its data; without it a guard makes one of its own.
    `masking` is what the sites of the round agreed on, where the study masks updates.
    """

    site: str
    round: int
    roster: tuple[str, ...]
    examples: int
    update: Weights
    start: Weights
    kept: Weights = field(default_factory=dict[str, Tensor])
    seed: int = 0
    simulated: bool = False
    masking: Masking | None = None
    secret: bytes = field(default=b"", repr=False)


def layout_of(weights: Weights) -> Layout:
    """Return the shapes and types of tensors."""
    return {name: (tensor.shape, tensor.dtype) for name, tensor in weights.items()}


def bytes_of(layout: Layout) -> int:
    """Count the bytes of tensors of these shapes and types."""
    return sum(size.numel() * kind.itemsize for size, kind in layout.values())


class Guard(Protocol):
    """One step of what is done to an update, frozen, and the same at sites and where they merge."""

    @property
    def word(self) -> str:
        """Return what the study file says to have it, such as 'exchange.kind = "int8"'."""
        ...

    def told(self, sites: int) -> str:
        """Say what it does to an update of one of so many sites, and what that does not protect.

        A site signs this.
        """
        ...

    def needs(self) -> Mapping[Demand, str]:
        """Return what the rest of the study must offer, each with the reason."""
        ...

    def protect(self, departure: Departure) -> Departure:
        """Change what leaves a site, and what is kept there.

        It depends on the departure alone, so that a round that is repeated from the same start
        sends the same.
        """
        ...

    def admit(self, replies: Sequence[Reply], state: State) -> Sequence[Reply]:
        """Return the replies in the form in which a method combines them.

        `state` is what the sites started from. One reply may stand for all. Raises `BadUpdate`.
        """
        ...

    def layout(self, tensors: Layout) -> Layout:
        """Return what leaves a site in place of these tensors of its model."""
        ...

    def problem(self, weights: Weights, tensors: Layout) -> str:
        """Return what is wrong with the numbers of what came in place of these tensors.

        Names, shapes and types were held against `layout` before, and numbers are finite. Empty if
        nothing is wrong.
        """
        ...


@dataclass(frozen=True)
class Guards:
    """The guards of a study, in the order in which they touch an update; none by default.

    They clip and add noise, then compress, then mask. `joins` maps each site that trains, in roster
    order, to its first round. `on_dropout` says what becomes of a round whose updates are masked
    when a site falls silent; empty where they are not masked.
    """

    steps: tuple[Guard, ...] = ()
    joins: Mapping[str, int] = field(default_factory=dict[str, int])
    on_dropout: Literal["", "recover", "repeat"] = ""

    @property
    def masks(self) -> bool:
        """Tell whether updates leave masked, for which sites exchange keys first."""
        return bool(self.on_dropout)

    def __bool__(self) -> bool:
        return bool(self.steps)

    def roster(self, round: int) -> tuple[str, ...]:
        """Return the sites of a round."""
        return tuple(name for name, first in self.joins.items() if first <= max(round, 1))

    def protect(self, departure: Departure) -> Departure:
        """Let each guard change what leaves a site, and what is kept there."""
        for guard in self.steps:
            departure = guard.protect(departure)
        return departure

    def admit(self, replies: Sequence[Reply], state: State) -> Sequence[Reply]:
        """Let each guard undo its part, the last one first. Raises `BadUpdate`."""
        for guard in reversed(self.steps):
            replies = guard.admit(replies, state)
        return replies

    def layout(self, tensors: Layout) -> Layout:
        """Return what leaves a site in place of these tensors of its model."""
        for guard in self.steps:
            tensors = guard.layout(tensors)
        return tensors

    def problem(self, weights: Weights, tensors: Layout) -> str:
        """Return what the last guard finds wrong with the numbers that came; empty if nothing."""
        if not self.steps:
            return ""
        before = Guards(self.steps[:-1]).layout(tensors)
        return self.steps[-1].problem(weights, before)
