"""The one local training loop, its options, its schedule; every task and method trains by it."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor

from grandrounds.bench import Bench
from grandrounds.messages import LocalPlan
from grandrounds.tasks.task import Examples, Task


@dataclass(frozen=True)
class Training:
    """How a site trains, the same at every site.

    `epochs` are local epochs a round; `betas` are Adam's; `threads` = 0 takes all cores;
    `first_broadcast` = false lets every site start from first weights of its own;
    `norm_buffers` says where running statistics of batch norms live ("follow": with their layer).
    """

    batch_size: int = 4
    learning_rate: float = 2e-4
    epochs: int = 1
    betas: tuple[float, float] = (0.5, 0.999)
    schedule: Literal["constant-linear", "constant", "reference"] = "constant-linear"
    precision: Literal["auto", "bf16", "fp32"] = "auto"
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


def train(
    bench: Bench, task: Task, examples: Examples, *, plan: LocalPlan, batch_size: int, seed: int
) -> Trained:
    """Train the bench's model for the plan's epochs.

    Each example comes once an epoch, in an order set by the seed. Raises `FloatingPointError` if a
    loss is not finite.
    """
    generator = torch.Generator().manual_seed(seed)
    totals: dict[str, list[Tensor]] = {}
    steps = 0
    bench.model.train()
    for _ in range(plan.epochs):
        for indices in _shuffled(len(examples), batch_size, generator):
            batch = bench.place(examples.batch(indices, generator))
            for part, loss in bench.under_autocast(task.losses(bench.model, batch)):
                _step(bench, part, loss)
                totals.setdefault(part, []).append(loss.detach())
            steps += 1
    return Trained(dict(_means(totals)), steps)


def _shuffled(count: int, size: int, generator: torch.Generator) -> list[list[int]]:
    order = torch.randperm(count, generator=generator)
    chunks = cast(tuple[Tensor, ...], order.split(size))  # pyright: ignore[reportUnknownMemberType]
    return [chunk.tolist() for chunk in chunks]  # pyright: ignore[reportUnknownMemberType]


def _step(bench: Bench, part: str, loss: Tensor) -> None:
    optimizer = bench.optimizer(part)
    optimizer.zero_grad()
    loss.backward()  # pyright: ignore[reportUnknownMemberType]
    optimizer.step()  # pyright: ignore[reportUnknownMemberType]


def _means(totals: Mapping[str, list[Tensor]]) -> Iterator[tuple[str, float]]:
    for part, losses in totals.items():
        mean = torch.stack(losses).mean().item()
        if not math.isfinite(mean):
            raise FloatingPointError(
                f"the loss of '{part}' is not finite; try a lower learning rate"
            )
        yield part, mean
