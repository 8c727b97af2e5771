"""Methods with one planted fault each: the conformance kit must find it. Workers import them."""

import random
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn

from grandrounds.algorithms.aggregation import Updates
from grandrounds.algorithms.method import LocalRound, Method, Pull, Update, remembered
from grandrounds.algorithms.sharing import Sharing
from grandrounds.core.state import NO_SCORE, State

CALLS: list[int] = []


@dataclass(frozen=True)
class Scaled:
    """Multiplies gradients by a factor."""

    factor: float

    def __call__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        for parameter in parameters.values():
            if parameter.grad is not None:
                parameter.grad.mul_(self.factor)


@dataclass(frozen=True)
class Still(Method):
    """Trains nothing."""

    def train(self, site: LocalRound) -> Update:
        return site.update()


@dataclass(frozen=True)
class HalfStill(Method):
    """Trains the decoder alone."""

    def train(self, site: LocalRound) -> Update:
        for batch in site.batches():
            for part, loss in site.losses(batch):
                site.step(part, loss, _only_decoder)
        return site.update()


def _only_decoder(parameters: Mapping[str, nn.Parameter]) -> None:
    for name, parameter in parameters.items():
        if "encoder" in name:
            parameter.grad = None


@dataclass(frozen=True)
class Infinite(Method):
    """Keeps a number that is none."""

    def train(self, site: LocalRound) -> Update:
        return site.train().keeping(norms={"gradient": torch.tensor(torch.nan)})


@dataclass(frozen=True)
class Counting(Method):
    """Trains less with each call in this process, which no state remembers."""

    def train(self, site: LocalRound) -> Update:
        CALLS.append(1)
        return site.train(Pull(0.01 * len(CALLS), towards=site.first))


@dataclass(frozen=True)
class Drawing(Method):
    """Draws from Python's global generator, which nobody seeds."""

    def train(self, site: LocalRound) -> Update:
        return site.train(Pull(random.random(), towards=site.first))


@dataclass(frozen=True)
class Hashing(Method):
    """Pulls by a hash, which differs from process to process."""

    def train(self, site: LocalRound) -> Update:
        return site.train(Pull(hash("a word") % 1000 / 1000, towards=site.first))


@dataclass(frozen=True)
class InPlace(Method):
    """Changes the shared model in place, which the next site of this process starts from."""

    def train(self, site: LocalRound) -> Update:
        update = site.train()
        for tensor in site.start.values():
            tensor.mul_(0.5)
        return update


@dataclass(frozen=True)
class Scored(Method):
    """Combines by the validation score, which a leader of a swarm does not have."""

    def combine(self, state: State, updates: Updates) -> State:
        average, share = updates.average(), 0.5 if state.best_score > NO_SCORE else 1.0
        old = state.weights
        return replace(state, weights={n: torch.lerp(old[n], t, share) for n, t in average.items()})


@dataclass(frozen=True)
class Untold(Method):
    """Sends a set that its sharing does not name."""

    def train(self, site: LocalRound) -> Update:
        return site.train().sending(more={"loss": torch.ones(1)})


@dataclass(frozen=True)
class Promising(Method):
    """Names sets that never travel."""

    def sharing(self) -> Sharing:
        return Sharing(sends=("control",))


@dataclass(frozen=True)
class Expecting(Method):
    """Names a set that no site is ever sent."""

    def sharing(self) -> Sharing:
        return Sharing(receives=("control",))


@dataclass(frozen=True)
class Whole(Method):
    """Sends a set of whole numbers, which sites of a real federation refuse."""

    def sharing(self) -> Sharing:
        return Sharing(sends=("counts",))

    def train(self, site: LocalRound) -> Update:
        return site.train().sending(counts={"cases": torch.ones(1, dtype=torch.int64)})


@dataclass(frozen=True)
class Damped(Method):
    """Trains with half of each gradient: with nothing shared it is not local training."""

    def train(self, site: LocalRound) -> Update:
        return site.train(Scaled(0.5))


@dataclass(frozen=True)
class Doubling(Method):
    """Is another one each time that it is made from its options."""

    strength: float = 0.1

    def __post_init__(self) -> None:
        object.__setattr__(self, "strength", 2 * self.strength)


@dataclass(frozen=True)
class Transposed(Method):
    """Sends, keeps and remembers tensors whose memory is not in order. It is no fault."""

    def sharing(self) -> Sharing:
        return Sharing(sends=("turned",), receives=("turned",))

    def train(self, site: LocalRound) -> Update:
        turned = {"square": torch.arange(6.0).reshape(2, 3).T}
        return site.train().sending(turned=turned).keeping(turned=turned)

    def combine(self, state: State, updates: Updates) -> State:
        turned = {n: t.T.contiguous().T for n, t in updates.average("turned").items()}
        return remembered(super().combine(state, updates), turned=turned)


@dataclass(frozen=True)
class Twice(Method):
    """Remembers the model that it makes, under a name of its own. It is no fault."""

    def sharing(self) -> Sharing:
        return Sharing(receives=("last",))

    def combine(self, state: State, updates: Updates) -> State:
        combined = super().combine(state, updates)
        return remembered(combined, last=combined.weights)


@dataclass(frozen=True)
class Tripping(Method):
    """Cannot train at all."""

    def train(self, site: LocalRound) -> Update:
        return site.train(Scaled(1 / 0))
