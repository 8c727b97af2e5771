"""The sites' updates are combined into one, and the server steps towards it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import itemgetter
from typing import Literal

import torch
from torch import Tensor

from grandrounds.core.errors import RunFailed
from grandrounds.core.messages import Reply
from grandrounds.core.state import State
from grandrounds.core.weights import (
    Filter,
    Weights,
    mean,
    median,
    select,
    trimmed_mean,
    with_prefix,
    without_prefix,
)

CONTROL = "control/"
UPLOAD = "upload/"  # before the names of what sites sent in the last round
STATISTICS = (".running_mean", ".running_var")


@dataclass(frozen=True)
class Aggregation:
    """How updates become one.

    `kind`: the mean, or coordinate by coordinate the "median" or the mean "trimmed" by the share
    `trim` at both ends, in which every site counts alike. `shares` of the mean: by training
    "cases" (n_k / n), "uniform", or "given" with each site.
    """

    kind: Literal["mean", "median", "trimmed"] = "mean"
    trim: float = 0.1
    shares: Literal["cases", "uniform", "given"] = "cases"

    def dropped(self, sites: int) -> int:
        """Return how many values trimming takes from each end."""
        return int(self.trim * sites)


@dataclass(frozen=True)
class ServerStep:
    """The server's optimiser, which takes the sites' mean change as its gradient.

    `replace` with rate 1 is plain averaging. Momentum: m = beta1 m + d. Adam, Yogi, Adagrad:
    m = beta1 m + (1 - beta1) d, divided by sqrt(v) + tau, with v starting at `start`.
    Reddi et al. 2021, algorithm 2.
    """

    kind: Literal["replace", "momentum", "adam", "yogi", "adagrad"] = "replace"
    rate: float = 1.0
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3
    start: float = 0.0

    def __call__(self, state: State, average: Weights) -> State:
        """Return the state after a step from its weights towards the sites' average."""
        if self.kind == "replace" and self.rate == 1.0:
            return replace(state, weights=average)
        weights, memory = dict(average), dict(state.memory)
        for name, target in average.items():
            if name.endswith(STATISTICS):
                continue  # running statistics are not parameters: a step could make them negative
            old = state.weights[name].double()
            move = self._move(name, target.double() - old, memory)
            weights[name] = (old + self.rate * move).to(target.dtype)
        return replace(state, weights=weights, memory=memory)

    def _move(self, name: str, delta: Tensor, memory: Weights) -> Tensor:
        if self.kind == "replace":
            return delta
        nothing = torch.zeros_like(delta)
        old = memory.get(f"m/{name}", nothing)
        fresh = 1.0 if self.kind == "momentum" else 1 - self.beta1
        memory[f"m/{name}"] = direction = self.beta1 * old + fresh * delta
        if self.kind == "momentum":
            return direction
        spread = memory.get(f"v/{name}", nothing + self.start)
        memory[f"v/{name}"] = spread = SPREADS[self.kind](spread, delta.square(), self.beta2)
        return direction / (spread.sqrt() + self.tau)


SPREADS: Mapping[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "adam": lambda v, square, beta: beta * v + (1 - beta) * square,
    "yogi": lambda v, square, beta: v - (1 - beta) * square * torch.sign(v - square),
    "adagrad": lambda v, square, _: v + square,
}


@dataclass(frozen=True)
class Combine:
    """Combines the sites' replies into the next state; `given` holds the shares in the study.

    `best` takes the update of the site whose model has the best validation score, in place of an
    average. `uploads` saves in the state what each site sent. `uses` selects the tensors that a
    site uses, where not every site uses all: each is then averaged over the sites that use it.
    """

    aggregation: Aggregation = field(default_factory=Aggregation)
    step: ServerStep = field(default_factory=ServerStep)
    given: Mapping[str, float] = field(default_factory=dict[str, float])
    best: bool = False
    uploads: bool = False
    uses: Callable[[str], Filter] | None = None

    def __call__(self, state: State, replies: Sequence[Reply]) -> State:
        """Return the next round's state, from the replies in the order given.

        The server's control variate is the mean of the sites': as all of them take part, this is
        c + mean(c_i+ - c_i) of Karimireddy et al. 2020.
        """
        average = self._average(replies) if self.uses is None else self._among_users(state, replies)
        controls = without_prefix(CONTROL, average)
        state = self.step(state, select(average, lambda name: not name.startswith(CONTROL)))
        memory = {**state.memory, **with_prefix(CONTROL, controls)}
        if self.uploads:
            for reply in replies:
                memory |= with_prefix(f"{UPLOAD}{reply.site}/", reply.weights)
        return replace(state, memory=memory, round=state.round + 1)

    def of_site(self, weights: Weights, site: str) -> Weights:
        """Return the tensors that a site uses."""
        return weights if self.uses is None else select(weights, self.uses(site))

    def _among_users(self, state: State, replies: Sequence[Reply]) -> Weights:
        """Average each tensor over the sites that use it; what nobody uses stays as it is."""
        names = state.weights or {name: t for reply in replies for name, t in reply.weights.items()}
        by_users: dict[tuple[int, ...], set[str]] = {}
        for name in names:
            users = tuple(i for i, r in enumerate(replies) if name in self.of_site(names, r.site))
            by_users.setdefault(users, set()).add(name)
        average = dict(state.weights)
        for users, used in by_users.items():
            if users:
                chosen = [replies[i] for i in users]
                parts = [replace(r, weights=select(r.weights, used.__contains__)) for r in chosen]
                average |= self._average(parts)
        return average

    def _average(self, replies: Sequence[Reply]) -> Weights:
        if self.best:
            return _best(replies).weights
        updates = [reply.weights for reply in replies]
        match self.aggregation.kind:
            case "mean":
                return mean(updates, [self._share(reply) for reply in replies])
            case "median":
                return median(updates)
            case "trimmed":
                return trimmed_mean(updates, self.aggregation.dropped(len(updates)))

    def _share(self, reply: Reply) -> float:
        match self.aggregation.shares:
            case "cases":
                return reply.examples
            case "uniform":
                return 1.0
            case "given":
                return self.given[reply.site]


def _best(replies: Sequence[Reply]) -> Reply:
    """Return the reply with the highest score, the first of equal ones. Raises `RunFailed`."""
    validated = [(reply.score, reply) for reply in replies if reply.score is not None]
    if not validated:
        raise RunFailed(
            f"round {replies[0].round}: no site has cases to validate its model with, so none is "
            'the best; give a site some, or set method.broadcast = "mean"'
        )
    return max(validated, key=itemgetter(0))[1]
