"""A method is one class with both halves of an algorithm: what a site does, what a server does."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from typing import ClassVar, Literal, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from grandrounds.algorithms.aggregation import Averaging, Rate, Updates
from grandrounds.algorithms.sharing import Sharing
from grandrounds.core.errors import BadUpdate, require
from grandrounds.core.messages import Reply
from grandrounds.core.state import State, to_tensors
from grandrounds.core.weights import (
    OPTIMIZER,
    Filter,
    Weights,
    first_not_finite,
    name_starts,
    select,
    unaliased,
    with_prefix,
    without_prefix,
)
from grandrounds.privacy.guard import Guards

Need: TypeAlias = Literal[
    "side by side",
    "whole network",
    "every site",
    "mean",
    "rate of 1",
    "no aggregation",
    "common start",
    "own updates",
]


class GradientTerm(Protocol):
    """Changes the gradients of a part's parameters, in place, before the optimiser's step."""

    def __call__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Change the gradients; `parameters` have their names in the whole network."""
        ...


@dataclass(frozen=True)
class Pull:
    """Adds the gradient of strength / 2 |w - w0|^2, for every tensor that `towards` names.

    Li et al. 2020 (FedProx); Li et al. 2021 (Ditto).
    """

    strength: float
    towards: Weights

    def __call__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Add strength * (w - w0) to each gradient."""
        if not self.strength:
            return
        with torch.no_grad():
            for name, parameter in parameters.items():
                if parameter.grad is not None and name in self.towards:
                    moved = parameter - self.towards[name].to(parameter.device)
                    parameter.grad.add_(moved, alpha=self.strength)


@dataclass(frozen=True)
class Update:
    """The result of training: a snapshot of the model, mean losses by part, and steps.

    `model` holds every tensor of the network that the site uses, and the optimiser's state under
    names that begin with "optimizer/". The house selects what of it leaves the site.
    """

    model: Weights
    losses: Mapping[str, float]
    steps: int
    score: float | None = None
    sent: Mapping[str, Weights] = field(default_factory=dict[str, Weights])
    kept: Mapping[str, Weights] = field(default_factory=dict[str, Weights])

    def sending(self, **sets: Weights) -> "Update":
        """Return the update with sets of tensors that travel beside the model."""
        return replace(self, sent={**self.sent, **sets})

    def keeping(self, **sets: Weights) -> "Update":
        """Return the update with sets of tensors that the site keeps for its next round.

        A set named "personal" is a model of the site's own, with which the site is scored.
        """
        return replace(self, kept={**self.kept, **sets})


class LocalRound(Protocol):
    """One round of training at one site: all that a method sees of a site."""

    @property
    def start(self) -> Weights:
        """Return the tensors of the shared model, as they arrived."""
        ...

    @property
    def first(self) -> Weights:
        """Return the site's model before any training: every tensor of its network."""
        ...

    @property
    def travels(self) -> Filter:
        """Return the filter of the tensors that leave the site."""
        ...

    @property
    def network(self) -> nn.Module:
        """Return the network itself, with the model in memory."""
        ...

    def received(self, name: str) -> Weights:
        """Return a set that came beside the model; empty where none did."""
        ...

    def kept(self, name: str) -> Weights:
        """Return a set that this site kept in its last round; empty where it kept none."""
        ...

    def train(
        self,
        *terms: GradientTerm,
        only: Literal["all", "shared", "private"] = "all",
        epochs: int = 0,
    ) -> Update:
        """Train the model in memory: its part that is shared, that stays, or all.

        `epochs` = 0 takes the study's. Raises `FloatingPointError` if a loss is not finite.
        """
        ...

    def restart(self, model: Weights) -> None:
        """Load another model, and draw batches and random numbers from their start again."""
        ...

    def validate(self) -> float | None:
        """Score the model in memory on the site's validation cases; None without cases."""
        ...

    def batches(self, *, epochs: int = 0) -> Iterator[dict[str, Tensor]]:
        """Yield the round's batches, tensors (B, ...) on the device.

        `epochs` = 0 takes the study's.
        """
        ...

    def losses(self, batch: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Yield each trained part of the network with its loss on a batch, without axes."""
        ...

    def step(self, part: str, loss: Tensor, *terms: GradientTerm) -> None:
        """Take one optimiser step on a part of the network."""
        ...

    def update(self) -> Update:
        """Return what training since the last call came to.

        Raises `FloatingPointError` if a loss is not finite.
        """
        ...


@dataclass(frozen=True)
class Method:
    """FedAvg, and the base of all methods: what they do not say is as here.

    Fields are options of the study file. `averaging` and `guards` are none: a run fills them in, as
    the study says. McMahan et al. 2017.
    """

    averaging: Averaging = field(default_factory=Averaging, kw_only=True, repr=False)
    guards: Guards = field(default_factory=Guards, kw_only=True, repr=False)
    server_rate: ClassVar[Rate] = 1.0  # where the study says none and sites are averaged

    @property
    def title(self) -> str:
        """Return the method's name in tables."""
        return type(self).__name__

    @property
    def description(self) -> str:
        """Return the sentence that a report says of the method, with the options that it has."""
        return (type(self).__doc__ or "").partition("\n")[0]

    def sharing(self) -> Sharing:
        """Return what leaves a site, and what comes back."""
        return Sharing()

    def train(self, site: LocalRound) -> Update:
        """Train at a site for one round, and return what may leave it and what it keeps.

        What leaves is selected by the house: a set that `sharing` does not name ends the round.
        """
        return site.train()

    def combine(self, state: State, updates: Updates) -> State:
        """Combine the sites' updates, at the server or at who leads a swarm."""
        return replace(state, weights=updates.average())

    def check(self) -> None:
        """Refuse options that make no sense. Raises `BadStudy`."""

    def check_task(self, task: object) -> None:
        """Refuse a task's options with which the method can do nothing. Raises `BadStudy`."""

    def needs(self) -> Mapping[Need, str]:
        """Return what the rest of the study must offer, each with the reason.

        A method that does not say its needs is taken to need what it overrides.
        """
        needs: dict[Need, str] = {}
        if type(self).train is not Method.train:
            needs["whole network"] = "a site trains by a rule of the method, on its whole network"
        if type(self).combine is not Method.combine:
            needs["side by side"] = "it combines updates of sites that train side by side"
            needs["common start"] = "it combines updates of sites that start from one model"
            needs["rate of 1"] = "it combines updates by a rule of its own"
            needs["own updates"] = "it combines updates by a rule of its own"
        return needs

    def prefers(self) -> Mapping[str, str]:
        """Return values for options of the task that the study leaves at "auto"."""
        return {}

    def notes(self, optimizer: str) -> Sequence[str]:
        """Return sentences on options that are allowed but may surprise."""
        return ()

    def extra_work(self) -> str:
        """Say what a site computes beyond the local epochs; empty for nothing."""
        return ""

    def epochs_in_a_row(self, epochs: int) -> int:
        """Return how many epochs a site trains the tested model in a round of so many local ones.

        Whatever part of the model they train, they follow one another.
        """
        return epochs

    def epochs_at_site(self, epochs: int) -> int:
        """Return how many epochs a site computes in such a round, of all models that it trains."""
        return self.epochs_in_a_row(epochs)


def remembered(state: State, **sets: Weights) -> State:
    """Return the state with sets of tensors that the server remembers for the next round.

    A set lies in `state.memory`, its tensors under names that begin with the set's, such as
    "momentum/"; one that `sharing().receives` names is sent to the sites.
    """
    memory = dict(state.memory)
    for name, tensors in sets.items():
        memory |= with_prefix(f"{name}/", tensors)
    return replace(state, memory=memory)


def broadcast(method: Method, state: State, site: str, *, moments: bool = False) -> Weights:
    """Return what a site needs to train from a state: the weights, and the sets it receives.

    With `moments` the optimiser's state goes along.
    """
    sets: Iterable[str] = (f"{name}/" for name in method.sharing().receives)
    names = (*sets, OPTIMIZER) if moments else tuple(sets)
    weights = method.averaging.of_site(state.weights, site)
    return weights | select(state.memory, name_starts(*names))


def merge_updates(method: Method, state: State, replies: Sequence[Reply]) -> State:
    """Return the next round's state, from the sites' replies in the order given.

    What guards did to the updates is undone first. Raises `BadUpdate` where finite updates do not
    make a finite model.
    """
    updates = Updates(method.guards.admit(replies, state), state, method.averaging)
    combined = method.combine(state, updates)
    odd = first_not_finite(combined.weights)
    if odd:
        raise BadUpdate(f"round {state.round + 1}: '{odd}' is not finite once it is averaged")
    tensors = unaliased(to_tensors(combined))
    weights, memory = (without_prefix(prefix, tensors) for prefix in ("weights/", "memory/"))
    return replace(combined, weights=weights, memory=memory, round=state.round + 1)


def require_at_least(least: float, **options: float) -> None:
    """Refuse options of a method below their least value. Raises `BadStudy`."""
    for name, value in options.items():
        holds = least <= value < inf
        require(holds, f"method.{name} is {value:g}; it must be {least:g} or more")
