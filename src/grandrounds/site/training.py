"""One training loop serves all tasks and methods; the sites of a process share one model."""

import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count, islice
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from grandrounds.algorithms.method import GradientTerm
from grandrounds.core.device import Machine, Precision, autocast, machine_for, weights_dtype
from grandrounds.core.weights import OPTIMIZER, Filter, Weights, select, to_cpu
from grandrounds.tasks.task import Batch, Examples, Task


@dataclass
class Trainer:
    """A model, an optimiser for each trained part, and where and how precisely they compute.

    `rates` multiplies the learning rate for parameters whose name starts with a prefix.
    """

    model: nn.Module
    device: torch.device
    precision: torch.dtype
    kind: Literal["adam", "sgd"] = "adam"
    betas: tuple[float, float] = (0.9, 0.999)
    momentum: float = 0.0
    rates: Mapping[str, float] = field(default_factory=dict[str, float])
    _optimizers: dict[str, Optimizer] = field(default_factory=dict[str, Optimizer], init=False)
    _named: dict[str, dict[str, nn.Parameter]] = field(
        default_factory=dict[str, dict[str, nn.Parameter]], init=False
    )
    _rate: float = field(default=0.0, init=False)

    def to_device(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Move a batch to the device, in the type of the weights."""
        dtype = weights_dtype(self.precision)
        return {
            n: t.to(self.device, dtype) if t.is_floating_point() else t.to(self.device)
            for n, t in batch.items()
        }

    def set_rate(self, rate: float) -> None:
        """Set the learning rate of all optimisers, present and to come."""
        self._rate = rate
        for optimizer in self._optimizers.values():
            self._apply_rate(optimizer)

    def _apply_rate(self, optimizer: Optimizer) -> None:
        for group in optimizer.param_groups:
            group["lr"] = self._rate * group["factor"]

    def optimizer(self, part: str) -> Optimizer:
        """Return the optimiser of a sub-module, made at the first call."""
        if part not in self._optimizers:
            self._optimizers[part] = self._new_optimizer(part)
        return self._optimizers[part]

    def _new_optimizer(self, part: str) -> Optimizer:
        by_factor: dict[float, list[nn.Parameter]] = {}
        for name, parameter in self.parameters(part).items():
            factors = [f for prefix, f in self.rates.items() if name.startswith(prefix)]
            by_factor.setdefault(factors[0] if factors else 1.0, []).append(parameter)
        groups = [{"params": params, "factor": factor} for factor, params in by_factor.items()]
        optimizer = (
            Adam(groups, lr=self._rate, betas=self.betas, fused=True)
            if self.kind == "adam"
            else SGD(groups, lr=self._rate, momentum=self.momentum)
        )
        self._apply_rate(optimizer)
        return optimizer

    def parameters(self, part: str) -> dict[str, nn.Parameter]:
        """Return a part's parameters by their names in the whole model; "" is the whole model."""
        if part not in self._named:
            module, prefix = self.model.get_submodule(part), f"{part}." if part else ""
            self._named[part] = dict(module.named_parameters(prefix=prefix.removesuffix(".")))
        return self._named[part]

    @contextmanager
    def train_only(self, trained: Filter) -> Generator[None, None, None]:
        """Let only the parameters whose names pass the filter be trained."""
        changed = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        try:
            for name, parameter in changed.items():
                parameter.requires_grad_(trained(name))
            yield
        finally:
            for parameter in changed.values():
                parameter.requires_grad_(True)

    def under_autocast(self, losses: Iterator[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """Yield a task's losses, computed in the chosen precision; the caller's code is outside."""
        while True:
            with autocast(self.device, self.precision):
                item = next(losses, None)
            if item is None:
                return
            yield item

    def weights(self, keep: Filter) -> Weights:
        """Return a copy of the model's tensors whose names pass the filter."""
        return to_cpu(select(self.model.state_dict(), keep))

    def optimizer_state(self, keep: Filter) -> Weights:
        """Return a copy of the optimisers' tensors of parameters whose names pass the filter.

        They are named `optimizer/PART/PARAMETER/KEY`.
        """
        return {
            f"{OPTIMIZER}{part}/{name.removeprefix(f'{part}.')}/{key}": tensor.detach().to(
                "cpu", copy=True
            )
            for part, optimizer in self._optimizers.items()
            for name, parameter in self.parameters(part).items()
            if parameter in optimizer.state and keep(name)
            for key, tensor in optimizer.state[parameter].items()
            if tensor is not None
        }

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Overwrite the model's tensors of these names; the others stay as they are."""
        tensors = self.model.state_dict()
        with torch.no_grad():
            for name, tensor in weights.items():
                tensors[name].copy_(tensor)

    def load_optimizer_state(self, state: Mapping[str, Tensor]) -> None:
        """Replace all optimiser state; what `state` does not name is reset."""
        for optimizer in self._optimizers.values():
            optimizer.state.clear()
        for address, tensor in state.items():
            part, _, key = address.removeprefix(OPTIMIZER).split("/")
            parameter = self.parameters(part)[parameter_of(address)]
            self.optimizer(part).state[parameter][key] = tensor.to(self.device, copy=True)


def parameter_of(address: str) -> str:
    """Return the whole name of the parameter to which a tensor of an optimiser's state belongs."""
    part, name, _ = address.removeprefix(OPTIMIZER).split("/")
    return f"{part}.{name}" if part else name


@dataclass(frozen=True)
class Training:
    """How a site trains, the same at every site.

    `epochs` are local epochs a round, `fine_tune` those for each site alone after the last round;
    `betas` are Adam's, `momentum` is SGD's; `threads` = 0 takes all cores;
    `first_broadcast` = false lets every site start from first weights of its own; `seed` takes the
    place of the study's for first weights and for the order of examples, on the same data;
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
    seed: int | None = None

    def rate(self, round: int, rounds: int) -> float:
        """Return the learning rate of a round, counted from 1."""
        return self.learning_rate * rate_factor(self.schedule, round, rounds)

    def machine(self, *, processes: int = 1, volumes: bool = False) -> Machine:
        """Return what is computed on here. Raises `BadStudy` for an absent device."""
        return machine_for(
            self.device, self.precision, self.threads, processes=processes, volumes=volumes
        )


def rate_factor(schedule: str, round: int, rounds: int) -> float:
    """Return the schedule's factor in a round, counted from 1.

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
class TrainingResult:
    """The result of local training: the mean loss of each part, and the number of batches."""

    losses: Mapping[str, float]
    steps: int


@dataclass(frozen=True)
class BatchSource:
    """Draws the examples that a site trains on in batches, in an order from the generator."""

    task: Task
    examples: Examples
    batch_size: int
    generator: torch.Generator

    def batches(self, *, epochs: int, steps: int = 0) -> Iterator[Batch]:
        """Yield each example once an epoch; with `steps` yield that many batches instead."""
        passes = count() if steps else range(epochs)
        shuffled = (indices for _ in passes for indices in self._shuffled())
        for indices in islice(shuffled, steps or None):
            yield self.examples.batch(indices, self.generator)

    def num_batches(self, *, epochs: int) -> int:
        """Return how many batches `batches` yields."""
        return epochs * -(-len(self.examples) // self.batch_size)

    def _shuffled(self) -> list[list[int]]:
        order = torch.randperm(len(self.examples), generator=self.generator)
        chunks = cast(tuple[Tensor, ...], order.split(self.batch_size))  # pyright: ignore[reportUnknownMemberType]
        return [chunk.tolist() for chunk in chunks]  # pyright: ignore[reportUnknownMemberType]


@dataclass
class TrainingLoop:
    """Trains a model on a site's examples, with one optimiser step for each loss of the task."""

    trainer: Trainer
    source: BatchSource
    _totals: dict[str, list[Tensor]] = field(default_factory=dict[str, list[Tensor]], init=False)
    _steps: int = field(default=0, init=False)

    def train(
        self, *, epochs: int, steps: int = 0, terms: Sequence[GradientTerm] = ()
    ) -> TrainingResult:
        """Train for some epochs or steps. Raises `FloatingPointError` if a loss is not finite."""
        for batch in self.batches(epochs=epochs, steps=steps):
            for part, loss in self.losses(batch):
                self.step(part, loss, terms)
        return self.result()

    def batches(self, *, epochs: int, steps: int = 0) -> Iterator[Batch]:
        """Yield batches on the device."""
        self.trainer.model.train()
        for batch in self.source.batches(epochs=epochs, steps=steps):
            self._steps += 1
            yield self.trainer.to_device(batch)

    def losses(self, batch: Batch) -> Iterator[tuple[str, Tensor]]:
        """Yield each trained part with its loss, computed in the trainer's precision."""
        losses = self.source.task.losses(self.trainer.model, batch)
        return self.trainer.under_autocast(losses)

    def step(self, part: str, loss: Tensor, terms: Sequence[GradientTerm] = ()) -> None:
        """Take one optimiser step on a part, and remember its loss."""
        step(self.trainer, part, loss, terms)
        self._totals.setdefault(part, []).append(loss.detach())

    def result(self) -> TrainingResult:
        """Return what training since the last call came to.

        Raises `FloatingPointError` if a loss is not finite.
        """
        totals, steps = self._totals, self._steps
        self._totals, self._steps = {}, 0
        return TrainingResult(means(totals), steps)


def step(trainer: Trainer, part: str, loss: Tensor, terms: Sequence[GradientTerm] = ()) -> None:
    """Take one optimiser step, unless the loss depends on no parameter that is trained."""
    optimizer = trainer.optimizer(part)
    optimizer.zero_grad()
    if not loss.requires_grad:
        return
    loss.backward()  # pyright: ignore[reportUnknownMemberType]
    for term in terms:
        term(trainer.parameters(part))
    optimizer.step()


def means(totals: Mapping[str, list[Tensor]]) -> dict[str, float]:
    """Return the mean of each part's losses. Raises `FloatingPointError` if one is not finite."""
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
def isolated_rng(seed: int) -> Generator[None, None, None]:
    """Seed what cannot be given a generator (dropout), and put the global state back afterwards."""
    with torch.random.fork_rng():  # pyright: ignore[reportUnknownMemberType]
        torch.manual_seed(seed)  # pyright: ignore[reportUnknownMemberType]
        yield
