"""A site trains so that each patient's part in its model is bounded and drowned in noise: DP-SGD.

The unit is a patient, with all of its slices, and not a slice. Abadi et al. 2016; that a record may
be all that one person gave is McMahan et al. 2018.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import ceil, inf, isfinite

import torch
from torch import Tensor, nn

from grandrounds.algorithms.method import GradientTerm
from grandrounds.core.errors import BadUpdate
from grandrounds.core.weights import Filter, digest, to_cpu
from grandrounds.privacy.clipping import gaussian
from grandrounds.privacy.noise import uniform
from grandrounds.site.releases import RoundReleases
from grandrounds.site.training import Trainer, TrainingResult
from grandrounds.tasks.task import Batch, Examples, Task

_DRAWN = "patients"  # the key of a lot, in place of a batch's tensors
_AT_ONCE = 16  # examples of one patient in memory


@dataclass(frozen=True)
class PatientLots:
    """Draws lots: each patient is in a lot with the same probability, independent of all others.

    `expected` patients are in a lot on average; where a site has fewer, all are in each one. One
    epoch has as many lots as it takes to see each patient once on average.
    """

    examples: Examples
    patients: tuple[tuple[int, ...], ...]
    size: int

    @staticmethod
    def of(examples: Examples, size: int) -> "PatientLots":
        """Group examples by patient."""
        groups = dict[tuple[str, str], list[int]]()
        for index in range(len(examples)):
            case = examples.case(index)
            groups.setdefault((case.site, case.patient), []).append(index)
        return PatientLots(examples, tuple(map(tuple, groups.values())), size)

    @property
    def expected(self) -> int:
        return min(self.size, len(self.patients))

    @property
    def sampling(self) -> float:
        """Return the probability with which a patient is in a lot."""
        return self.expected / len(self.patients)

    def num_lots(self, *, epochs: int) -> int:
        """Return how many lots so many epochs have."""
        return epochs * lots_per_epoch(len(self.patients), self.size)

    def draw(self, key: bytes) -> list[int]:
        """Draw a lot; it may be empty. Who is in it must stay secret, or sampling hides nobody."""
        drawn = uniform(key, len(self.patients))
        return [number for number, each in enumerate(drawn) if each < self.sampling]


def lots_per_epoch(patients: int, size: int) -> int:
    """Return how many lots see each of so many patients once on average."""
    return ceil(patients / size)


@dataclass
class PatientGradients:
    """The sum of patients' gradients, each clipped to an L2 norm over all parameters together."""

    parameters: dict[str, nn.Parameter]
    clip: float
    sums: dict[str, Tensor] = field(default_factory=dict[str, Tensor], init=False)

    def add(self) -> None:
        """Clip the gradient that the parameters have now, add it, and clear it.

        Raises `FloatingPointError` where it is not finite.
        """
        gradients = {n: p.grad for n, p in self.parameters.items() if p.grad is not None}
        squares = [gradient.double().square().sum() for gradient in gradients.values()]
        norm = float(torch.stack(squares).sum().sqrt()) if squares else 0.0
        if not isfinite(norm):
            raise FloatingPointError("a gradient is not finite; try a lower learning rate")
        scale = 1.0 if norm <= self.clip else self.clip / norm
        for name, gradient in gradients.items():
            self.sums.setdefault(name, torch.zeros_like(gradient)).add_(gradient, alpha=scale)
        self.clear()

    def clear(self) -> None:
        """Clear the gradients of the parameters."""
        for parameter in self.parameters.values():
            parameter.grad = None

    def noisy_mean(
        self, expected: int, noise: float, key: bytes
    ) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """Yield each parameter with its sum and noise, divided by the expected patients of a lot.

        The noise does not depend on who was drawn, and neither does the divisor.
        """
        deviation = noise * self.clip if noise else 0.0
        assert deviation < inf, "the study's checks refuse noise without a clip"
        for name, parameter in self.parameters.items():
            total = self.sums.get(name, torch.zeros_like(parameter))
            if deviation:
                drawn = gaussian(key, name, parameter).to(total)
                total = total + drawn * deviation
            yield parameter, total / expected


@dataclass
class RecordLoop:
    """Takes the place of the training loop: one optimiser step a lot, on noisy gradients.

    `trains` selects the parameters that the site uses. Losses are not told, as they would reveal
    patients without noise; nor may a method change one. Terms of a method are added to the noisy
    gradient: they know no more than it.
    """

    trainer: Trainer
    task: Task
    lots: PatientLots
    releases: RoundReleases
    trains: Filter
    _release: str = field(default="", init=False)
    _gradients: PatientGradients | None = field(default=None, init=False)
    _loss: Tensor | None = field(default=None, init=False)
    _step: int = field(default=0, init=False)
    _steps: int = field(default=0, init=False)

    def batches(self, *, epochs: int, steps: int = 0) -> Iterator[Batch]:
        """Yield lots, without their data; all are charged before the first. Raises `BudgetUsedUp`.

        What is charged is what may be drawn, even if a caller stops earlier.
        """
        count = steps or self.lots.num_lots(epochs=epochs)
        sampling = self.lots.sampling
        self._release = self.releases.begin(count, sampling=sampling, model=self._start())
        self.trainer.model.train()
        for self._step in range(count):
            self._steps += 1
            drawn = self.lots.draw(self._key("lot"))
            yield {_DRAWN: torch.tensor(drawn, dtype=torch.int64)}

    def _start(self) -> str:
        moments = self.trainer.optimizer_state(lambda _: True)
        return digest(to_cpu(self.trainer.model.state_dict()) | moments)

    def _key(self, purpose: str) -> bytes:
        return self.releases.privacy.source.key(self._release, purpose, self._step)

    def losses(self, batch: Batch) -> Iterator[tuple[str, Tensor]]:
        """Compute the gradient of every patient of a lot, then yield the trained part.

        The loss that comes with it is empty. Raises `BadUpdate` for a task with several parts.
        """
        drawn = [self.lots.patients[int(number)] for number in batch[_DRAWN]]
        part = self._part()
        self._gradients = PatientGradients(self._trained(part), self.releases.privacy.clip)
        self._gradients.clear()
        source = self.releases.privacy.source
        generator = source.generator(self._release, "augmentation", self._step)
        for examples in drawn:
            self._backward(part, examples, generator)
            self._gradients.add()
        self._loss = torch.zeros(())
        yield part, self._loss

    def _part(self) -> str:
        """Return the only part of the network that the task trains, known without data."""
        parts = [name for name, _ in self.trainer.model.named_children()]
        trained = [name for name in parts if self._trained(name)]
        if len(trained) != 1:
            raise BadUpdate(
                f"record-level privacy trains one part of a network, and this has {len(trained)}"
            )
        return trained[0]

    def _trained(self, part: str) -> dict[str, nn.Parameter]:
        named = self.trainer.parameters(part).items()
        return {name: p for name, p in named if p.requires_grad and self.trains(name)}

    def _backward(self, part: str, examples: Sequence[int], generator: torch.Generator) -> None:
        """Add up the gradient of the mean loss of one patient's examples."""
        for first in range(0, len(examples), _AT_ONCE):
            some = examples[first : first + _AT_ONCE]
            batch = self.trainer.to_device(self.lots.examples.batch(some, generator))
            losses = self.trainer.under_autocast(self.task.losses(self.trainer.model, batch))
            for of, loss in losses:
                if of != part:
                    raise BadUpdate(f"record-level privacy trains '{part}' alone, and not '{of}'")
                share = loss * (len(some) / len(examples))
                share.backward()  # pyright: ignore[reportUnknownMemberType]

    def step(self, part: str, loss: Tensor, terms: Sequence[GradientTerm] = ()) -> None:
        """Take the optimiser's step of a lot, with noise. Raises `BadUpdate` for another loss."""
        if loss is not self._loss or self._gradients is None:
            raise BadUpdate(
                "record-level privacy: a method may add terms to gradients, and not change losses"
            )
        privacy, gradients = self.releases.privacy, self._gradients
        self._loss = self._gradients = None
        optimizer = self.trainer.optimizer(part)
        optimizer.zero_grad()
        means = gradients.noisy_mean(self.lots.expected, privacy.noise, self._key("noise"))
        for parameter, mean in means:
            parameter.grad = mean
        for term in terms:
            term(self.trainer.parameters(part))
        optimizer.step()

    def result(self) -> TrainingResult:
        """Return the number of steps since the last call."""
        steps, self._steps = self._steps, 0
        return TrainingResult({}, steps)
