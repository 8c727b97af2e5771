"""The one local training loop, its options, its schedule; every task and method trains by it."""

import math
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count, islice
from typing import Literal, cast

import torch
from torch import Tensor

from grandrounds.bench import Bench
from grandrounds.nudges import Nudge, nudged
from grandrounds.precision import Precision
from grandrounds.tasks.task import Batch, Examples, Task


@dataclass(frozen=True)
class Training:
    """How a site trains, the same at every site.

    `epochs` are local epochs a round, `fine_tune` those for each site alone after the last round;
    `betas` are Adam's, `momentum` is SGD's; `threads` = 0 takes all cores;
    `first_broadcast` = false lets every site start from first weights of its own;
    `norm_buffers` says where running statistics of batch norms live ("follow": with their layer).
    """

    batch_size: int = 4
    learning_rate: float = 2e-4
    epochs: int = 1
    fine_tune: int = 0
    optimizer: Literal["adam", "sgd"] = "adam"
    betas: tuple[float, float] = (0.5, 0.999)
    momentum: float = 0.0
    schedule: Literal["constant-linear", "constant", "reference"] = "constant-linear"
    precision: Precision = "auto"
    device: str = "auto"
    threads: int = 0
    compile: bool = False
    reset_optimizer: bool = False
    first_broadcast: bool = True
    norm_buffers: Literal["follow", "shared", "private", "reset"] = "follow"

    def rate(self, round: int, rounds: int) -> float:
        """Give the learning rate of a round, counted from 1."""
        return self.learning_rate * rate_factor(self.schedule, round, rounds)


def rate_factor(schedule: str, round: int, rounds: int) -> float:
    """Give the schedule's factor in a round, counted from 1.

    `constant-linear`: 1 for the first half, then linear, above 0 in the last round. `reference`:
    the released pFLSynth code, whose decay starts a round early and whose last round trains with 0.
    Dalmaz et al. 2024.
    """
    half = rounds // 2
    match schedule:
        case "constant":
            return 1.0
        case "reference":
            return 1.0 - max(0, round + 1 - half) / (rounds - half + 1)
        case _:
            return min(1.0, (rounds - round + 1) / (rounds - half + 1))


@dataclass(frozen=True)
class Trained:
    """What local training came to: the mean loss of each part, and the batches."""

    losses: Mapping[str, float]
    steps: int


@dataclass(frozen=True)
class Lesson:
    """What a site trains on: its examples, in batches, in an order that the generator draws."""

    task: Task
    examples: Examples
    batch_size: int
    generator: torch.Generator

    def batches(self, *, epochs: int, steps: int = 0) -> Iterator[Batch]:
        """Give each example once an epoch; with `steps` as many batches as that instead."""
        passes = count() if steps else range(epochs)
        drawn = (indices for _ in passes for indices in self._shuffled())
        for indices in islice(drawn, steps or None):
            yield self.examples.batch(indices, self.generator)

    def num_batches(self, *, epochs: int, steps: int = 0) -> int:
        """Count the batches that `batches` will give."""
        return steps or epochs * -(-len(self.examples) // self.batch_size)

    def _shuffled(self) -> list[list[int]]:
        order = torch.randperm(len(self.examples), generator=self.generator)
        chunks = cast(tuple[Tensor, ...], order.split(self.batch_size))  # pyright: ignore[reportUnknownMemberType]
        return [chunk.tolist() for chunk in chunks]  # pyright: ignore[reportUnknownMemberType]


def train(
    bench: Bench, lesson: Lesson, batches: Iterable[Batch], *, nudges: Sequence[Nudge] = ()
) -> Trained:
    """Train the bench's model on batches, one optimiser step for each loss of the task.

    Raises `FloatingPointError` if a loss is not finite.
    """
    totals: dict[str, list[Tensor]] = {}
    steps = 0
    bench.model.train()
    for batch in batches:
        losses = lesson.task.losses(bench.model, bench.place(batch))
        for part, loss in bench.under_autocast(losses):
            step(bench, part, loss, nudges)
            totals.setdefault(part, []).append(loss.detach())
        steps += 1
    return Trained(means(totals), steps)


def step(bench: Bench, part: str, loss: Tensor, nudges: Sequence[Nudge] = ()) -> None:
    """Take one optimiser step; a loss that no trained parameter moves takes none."""
    optimizer = bench.optimizer(part)
    optimizer.zero_grad()
    if not loss.requires_grad:
        return
    loss.backward()  # pyright: ignore[reportUnknownMemberType]
    if nudges:
        nudged(nudges, bench.parameters(part))
    optimizer.step()


def means(totals: Mapping[str, list[Tensor]]) -> dict[str, float]:
    """Average each part's losses. Raises `FloatingPointError` if one is not finite."""
    return dict(_means(totals))


def _means(totals: Mapping[str, list[Tensor]]) -> Iterator[tuple[str, float]]:
    for part, losses in totals.items():
        mean = torch.stack(losses).mean().item()
        if not math.isfinite(mean):
            raise FloatingPointError(
                f"the loss of '{part}' is not finite; try a lower learning rate"
            )
        yield part, mean


@contextmanager
def own_randomness(seed: int) -> Generator[None, None, None]:
    """Seed what cannot be given a generator (dropout), and put the global state back afterwards."""
    with torch.random.fork_rng():  # pyright: ignore[reportUnknownMemberType]
        torch.manual_seed(seed)  # pyright: ignore[reportUnknownMemberType]
        yield
