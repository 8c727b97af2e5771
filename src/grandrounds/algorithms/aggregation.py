"""The sites' updates are combined into one, and the server steps towards it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import inf
from operator import itemgetter
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from grandrounds.algorithms.robustness import krum_chosen
from grandrounds.algorithms.server_rate import extended
from grandrounds.core.errors import RunFailed, require
from grandrounds.core.messages import Reply
from grandrounds.core.state import State
from grandrounds.core.weights import (
    Filter,
    Weights,
    mean,
    median,
    select,
    trimmed_mean,
    without_prefix,
)

Rate: TypeAlias = float | Literal["measured"]
MEASURED = "measured"
STATISTICS = (".running_mean", ".running_var")


@dataclass(frozen=True)
class Aggregation:
    """How updates become one.

    `kind`: the mean, or coordinate by coordinate the "median" or the mean "trimmed" by the share
    `trim` at both ends, in which every site counts alike; "krum" is the mean, in which every site
    counts alike, of all but the `faulty` updates (1 where it is not said) that are farthest from
    the others (multi-Krum, Blanchard et al. 2017). `shares` of the mean: by training
    "cases" (n_k / n), "uniform", or "given" with each site. `rate`: how far the model goes along
    the mean move of the sites; 1.0 is the mean itself, "measured" gives back, by parameter group,
    what averaging took from moves that point apart (`server_rate`). Where it is not said, it is
    the method's. After every `cosines_every` rounds and the last one, the coordinator computes the
    cosines between the sites' updates; None for never.
    """

    kind: Literal["mean", "median", "trimmed", "krum"] = "mean"
    trim: float = 0.1
    shares: Literal["cases", "uniform", "given"] = "cases"
    rate: Rate | None = None
    cosines_every: int | None = None
    faulty: int | None = None

    @property
    def num_faulty(self) -> int:
        """Return how many updates multi-Krum leaves out of each round."""
        return 1 if self.faulty is None else self.faulty

    @property
    def is_plain(self) -> bool:
        """Tell whether updates become their mean by cases, whatever is measured of them."""
        return (self.kind, self.shares) == ("mean", "cases") and self.rate != MEASURED

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

    def check(self) -> None:
        """Refuse numbers with which an optimiser cannot step. Raises `BadStudy`."""
        require_above_zero(rate=self.rate, tau=self.tau)
        require_below_one(beta1=self.beta1, beta2=self.beta2)

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
class Averaging:
    """How the study averages: its [aggregation], and the shares `given` in it by site.

    `uses` selects the tensors that a site uses, where not every site uses all: each is then
    averaged over the sites that use it. `groups` maps each parameter to its group, where the rate
    of the server is measured.
    """

    aggregation: Aggregation = field(default_factory=Aggregation)
    given: Mapping[str, float] = field(default_factory=dict[str, float])
    uses: Callable[[str], Filter] | None = None
    groups: Mapping[str, str] | None = None

    def of_site(self, weights: Weights, site: str) -> Weights:
        """Return the tensors that a site uses."""
        return weights if self.uses is None else select(weights, self.uses(site))

    def __call__(
        self, updates: Sequence[Weights], replies: Sequence[Reply], old: Weights | None = None
    ) -> Weights:
        """Average the sites' tensors, whose counts of examples stand in their replies.

        From `old`, where all sites started, a measured rate goes further than the mean.
        """
        match self.aggregation.kind:
            case "mean":
                shares = [self._share(reply) for reply in replies]
                middle = mean(updates, shares)
                if self.groups is None or old is None:
                    return middle
                return extended(old, middle, updates, shares, self.groups)
            case "median":
                return median(updates)
            case "trimmed":
                return trimmed_mean(updates, self.aggregation.dropped(len(updates)))
            case "krum":  # of those that count: `Updates.counted`
                return mean(updates, [1.0] * len(updates))

    def _share(self, reply: Reply) -> float:
        match self.aggregation.shares:
            case "cases":
                return reply.examples
            case "uniform":
                return 1.0
            case "given":
                return self.given[reply.site]


@dataclass(frozen=True)
class Updates:
    """What all sites sent in a round, in roster order, and how the study averages.

    A set that travels beside the model is asked for by its name, the model itself by "".
    """

    replies: Sequence[Reply]
    state: State
    averaging: Averaging = field(default_factory=Averaging)

    def of_each(self, name: str = "") -> dict[str, Weights]:
        """Map each site, in roster order, to its tensors of a set; empty where it sent none."""
        return {reply.site: _set(name, reply.weights) for reply in self.replies}

    @cached_property
    def counted(self) -> Sequence[Reply]:
        """Return the replies that are averaged: all, or those that multi-Krum chooses.

        It chooses by the model, and for every set that travels beside it. Raises `RunFailed`.
        """
        aggregation = self.averaging.aggregation
        if aggregation.kind != "krum":
            return self.replies
        models = [_set("", reply.weights) for reply in self.replies]
        return [self.replies[chosen] for chosen in krum_chosen(models, aggregation.num_faulty)]

    @property
    def left_out(self) -> tuple[str, ...]:
        """Return the sites whose updates are not averaged."""
        counted = {reply.site for reply in self.counted}
        return tuple(reply.site for reply in self.replies if reply.site not in counted)

    def average(self, name: str = "") -> Weights:
        """Average a set over the sites, each tensor over those that use it.

        What nobody uses stays as it was in the last round.
        """
        sets = [_set(name, reply.weights) for reply in self.counted]
        old = {} if name else self.state.weights
        start = None if name else self.state.weights
        if self.averaging.uses is None:
            return self.averaging(sets, self.counted, start)
        names = old or {n: t for tensors in sets for n, t in tensors.items()}
        average = dict(old)
        for users, used in self._by_users(names).items():
            chosen = [(r, s) for r, s in zip(self.counted, sets, strict=True) if r.site in users]
            parts = [select(tensors, used.__contains__) for _, tensors in chosen]
            replies = [reply for reply, _ in chosen]
            average |= self.averaging(parts, replies, start) if parts else {}
        return average

    def _by_users(self, names: Weights) -> dict[frozenset[str], set[str]]:
        """Group the names of tensors by the sites that use them."""
        used = {r.site: set(self.averaging.of_site(names, r.site)) for r in self.counted}
        by_users: dict[frozenset[str], set[str]] = {}
        for name in names:
            users = frozenset(site for site, own in used.items() if name in own)
            by_users.setdefault(users, set()).add(name)
        return by_users

    def best(self) -> Weights:
        """Return the model of the site that validates best, the first of equals.

        Raises `RunFailed` where no site has cases to validate with.
        """
        scored = [(reply.score, reply) for reply in self.replies if reply.score is not None]
        if not scored:
            raise RunFailed(
                f"round {self.replies[0].round}: no site has cases to validate its model with, so "
                'none is the best; give a site some, or set method.broadcast = "mean"'
            )
        return _set("", max(scored, key=itemgetter(0))[1].weights)


def _set(name: str, weights: Weights) -> Weights:
    """Return the tensors of a set without its name; those of the model have no set's name."""
    if name:
        return without_prefix(f"{name}/", weights)
    return select(weights, lambda tensor: "/" not in tensor)


def require_above_zero(**options: float) -> None:
    """Refuse options of a method that are zero or below. Raises `BadStudy`."""
    for name, value in options.items():
        require(0 < value < inf, f"method.{name} is {value:g}; it must be above 0")


def require_below_one(**options: float) -> None:
    """Refuse options of a method that are no decay rate. Raises `BadStudy`."""
    for name, value in options.items():
        require(0 <= value < 1, f"method.{name} is {value:g}; it must be from 0 to below 1")
