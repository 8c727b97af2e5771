"""A task knows models, losses and scores. It knows nothing of federations."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Generic, Protocol, Self, TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor, nn

from grandrounds.core.errors import BadStudy
from grandrounds.core.messages import CaseScore
from grandrounds.core.weights import Filter, Weights, name_starts
from grandrounds.data.availability import serves
from grandrounds.data.cohort import Cohort, Session, SplitName, pseudonyms_of, visits_of
from grandrounds.data.elements import Elements
from grandrounds.models.layers import StagedNetwork


def require(holds: bool, sentence: str) -> None:
    """Raise `BadStudy` with the sentence unless something holds."""
    if not holds:
        raise BadStudy(sentence)


def require_counts(options: object, least: Mapping[str, int]) -> None:
    """Refuse options of a task below their least value."""
    for name, low in least.items():
        value = getattr(options, name)
        require(value >= low, f"task.{name} is {value}; it must be {low} or more")


def check_shares(options: object, names: Sequence[str]) -> None:
    """Refuse options of a task that are no probability."""
    for name in names:
        value = getattr(options, name)
        require(0 <= value <= 1, f"task.{name} is {value}; it is a probability, from 0 to 1")


def check_size(elements: Elements, *, least: int, multiple: int) -> None:
    """Refuse slices that a network cannot halve and double as often as it does."""
    for pixels in elements.size:
        require(
            pixels >= least and pixels % multiple == 0,
            f"elements.size is {list(elements.size)}; "
            f"both numbers must be multiples of {multiple}, {least} or more",
        )


def check_contrasts(where: str, names: Sequence[str], elements: Elements) -> None:
    """Refuse contrasts of a task label that the study does not have."""
    known = ", ".join(elements.contrasts)
    for name in names:
        require(
            name in elements.contrasts,
            f"{where}: contrast '{name}' is not in elements.contrasts ({known})",
        )


Batch: TypeAlias = dict[str, Tensor]
Picture: TypeAlias = dict[str, NDArray[np.float32]]
Labels: TypeAlias = Mapping[str, Sequence[str]]  # site -> task labels
NO_GUESTS: Labels = {}


@dataclass(frozen=True)
class Case:
    """Names one case for score tables; `patient` and `case` are pseudonyms of its site."""

    site: str
    patient: str
    case: str
    task: str


class TaskLabel(Protocol):
    """What a site's task label in the study says, such as "T1w->T2w"."""

    @property
    def label(self) -> str:
        """Write the label."""
        ...


AnyLabel = TypeVar("AnyLabel", bound=TaskLabel)


def has_all(session: Session, label: TaskLabel) -> bool:
    """Tell whether a session has all that a task label names."""
    return serves(session, label.label)


@dataclass(frozen=True)
class Visit(Generic[AnyLabel]):
    """One session of a patient, and the task labels that it serves at its site.

    `patient` is a pseudonym and `number` counts the patient's sessions: what the site calls either
    says too much.
    """

    site: str
    patient: str
    number: int
    session: Session
    labels: tuple[AnyLabel, ...]

    def case(self) -> Case:
        """Name the session with the first of its labels as one case."""
        return Case(self.site, self.patient, str(self.number), self.labels[0].label)


@dataclass(frozen=True)
class Slice(Generic[AnyLabel]):
    """One slice of a visit, or the first one of a patch."""

    visit: Visit[AnyLabel]
    index: int

    def case(self) -> Case:
        """Name the slice as one case."""
        return replace(self.visit.case(), case=f"{self.visit.number}/{self.index:03d}")


def list_visits(
    cohort: Cohort,
    split: SplitName,
    labels: Sequence[AnyLabel],
    *,
    each: bool,
    served: Callable[[Session, AnyLabel], bool] = has_all,
) -> tuple[Visit[AnyLabel], ...]:
    """List a split's sessions that serve a label; `each` lists one once for every label."""
    pseudonyms, numbers = pseudonyms_of(cohort), visits_of(cohort)
    visits: list[Visit[AnyLabel]] = []
    for session in cohort.splits[split]:
        usable = tuple(label for label in labels if served(session, label))
        choices = [(label,) for label in usable] if each else [usable] if usable else []
        who = (cohort.site, pseudonyms[session.patient], numbers[session.label], session)
        visits += [Visit(*who, choice) for choice in choices]
    return tuple(visits)


def list_slices(visits: Sequence[Visit[AnyLabel]], *, step: int = 1) -> tuple[Slice[AnyLabel], ...]:
    """List every slice of some visits, or every `step`-th one."""
    return tuple(Slice(v, index) for v in visits for index in range(0, v.session.num_slices, step))


def draw_index(count: int, generator: Generator | None) -> int:
    """Draw one of `count` indices; it is the first without a generator, or where there is one."""
    if generator is None or count == 1:
        return 0
    return int(torch.randint(count, (), generator=generator))


class Examples(Protocol):
    """What a site trains on or is scored on; example i is the same at any time."""

    def __len__(self) -> int:
        """Count the examples."""
        ...

    def batch(self, indices: Sequence[int], generator: Generator | None) -> Batch:
        """Collate examples; a generator draws tasks and augmentation, without it all is fixed."""
        ...

    def case(self, index: int) -> Case:
        """Name an example."""
        ...


class TaskOptions(Protocol):
    """A task's part of the study file: a frozen dataclass, checked and then bound to a roster.

    `kind` is its word in the study; `sizes` maps a value of its option `model`, where it has one,
    to the defaults that come with it.
    """

    metric: ClassVar[str]
    sizes: ClassVar[Mapping[str, Mapping[str, object]]]

    @property
    def kind(self) -> str:
        """Say the task's word in the study file."""
        ...

    @property
    def has_statistics(self) -> bool:
        """Tell whether the network keeps running statistics (batch norm)."""
        ...

    def check(self, elements: Elements, sites: Mapping[str, Sequence[str]]) -> None:
        """Refuse options, elements or task labels that make no sense. Raises `BadStudy`."""
        ...

    def bind(self, elements: Elements, sites: Labels, guests: Labels = NO_GUESTS) -> "Task":
        """Make a consortium's task; `sites` maps each, in roster order, to its task labels.

        `guests` are sites that do not train: the network knows their tasks, and nothing of them.
        """
        ...


class Task(Protocol):
    """What is learned: model, losses, scores, and the named groups of its parameters.

    A model is cut into stages, run in their order, each from named tensors to named tensors; the
    last one gives {"output": ...}. Split learning cuts it between any two.
    """

    @property
    def metric(self) -> str:
        """Name the score that early stopping watches; higher is better."""
        ...

    @property
    def cases_at_once(self) -> int:
        """Say how many cases one batch of an evaluation holds."""
        ...

    @property
    def learning_rates(self) -> Mapping[str, float]:
        """Map parameter-name prefixes to multipliers of the learning rate."""
        ...

    def build(self, seed: int) -> nn.Module:
        """Build and initialise the model; the same seed gives the same bits."""
        ...

    def blank(self, size: tuple[int, int]) -> Batch:
        """Give a batch of one case without content, of this many pixels, to size a study up."""
        ...

    def losses(self, model: nn.Module, batch: Batch) -> Iterator[tuple[str, Tensor]]:
        """Yield (sub-module, loss), one optimiser step each, in order."""
        ...

    def predict(self, model: nn.Module, batch: Batch) -> Tensor:
        """Predict in evaluation mode."""
        ...

    def stages(self, model: nn.Module) -> Mapping[str, Filter]:
        """Name the model's stages in order, each with the filter of its parameters' names."""
        ...

    def inputs(self, batch: Batch) -> Weights:
        """Give the named tensors of a batch that enter the first stage."""
        ...

    def run(self, model: nn.Module, stages: Sequence[str], carried: Weights) -> Weights:
        """Run neighbouring stages on the tensors that the stage before them gave."""
        ...

    def losses_of_output(
        self, model: nn.Module, output: Tensor, batch: Batch
    ) -> Iterator[tuple[str, Tensor]]:
        """Yield the losses of an output that stages made, as `losses` does of the whole model."""
        ...

    def to_prediction(self, output: Tensor) -> Tensor:
        """Turn the last stage's output into a prediction, as `predict` gives it."""
        ...

    def score(self, prediction: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Score each case; nothing is averaged here."""
        ...

    def summary(self, scores: Sequence[CaseScore]) -> dict[str, float]:
        """Summarise one site's cases; empty without scores."""
        ...

    def picture(self, prediction: Tensor, batch: Batch) -> Picture:
        """Give the images that show the first case of a batch; none where no image tells."""
        ...

    def groups(self, model: nn.Module) -> Mapping[str, Filter]:
        """Name the parameter groups.

        Every task has "all", everything that sites can sensibly average; "norm", its batch norms;
        "head", the layers that make the output; and "upper", the later half of the network.
        """
        ...

    def uses(self, site: str) -> Filter:
        """Select the tensors that a site's own tasks need."""
        ...

    def viewed_by(self, site: str) -> Self:
        """Give the task as one site's model meets it, whatever site a case is from."""
        ...

    @property
    def memory(self) -> Weights:
        """Give what the losses left to remember; it never leaves the site."""
        ...

    def with_memory(self, memory: Mapping[str, Tensor]) -> Self:
        """Give the task for a round of training, with what the round before left to remember."""
        ...

    def training_examples(self, cohorts: Sequence[Cohort]) -> Examples:
        """Give the training examples of one site, or of several pooled."""
        ...

    def evaluation_examples(self, cohorts: Sequence[Cohort], split: SplitName) -> Examples:
        """Give every case of a split with every task that it can serve."""
        ...


PART = "network"


@dataclass(frozen=True)
class StagedTask(ABC):
    """A task of a network that reads the source alone, and is trained on one loss of its output."""

    options: TaskOptions

    @property
    def metric(self) -> str:
        """Watch the score that the options name."""
        return self.options.metric

    @property
    def learning_rates(self) -> Mapping[str, float]:
        """Train all parts at one rate."""
        return {}

    def losses(self, model: nn.Module, batch: Batch) -> Iterator[tuple[str, Tensor]]:
        """Yield the loss of what the network makes of the source."""
        yield PART, self.loss(model(batch["source"]), batch)

    def losses_of_output(
        self, model: nn.Module, output: Tensor, batch: Batch
    ) -> Iterator[tuple[str, Tensor]]:
        """Yield the loss of an output that stages made."""
        del model
        yield PART, self.loss(output, batch)

    @abstractmethod
    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Give the loss of an output of the network."""

    def stages(self, model: nn.Module) -> Mapping[str, Filter]:
        """Name the stages of the network."""
        assert isinstance(model, StagedNetwork)
        return {name: name_starts(prefix) for name, prefix in model.stages().items()}

    def inputs(self, batch: Batch) -> Weights:
        """Give the source."""
        return {"source": batch["source"]}

    def run(self, model: nn.Module, stages: Sequence[str], carried: Weights) -> Weights:
        """Run stages of the network."""
        assert isinstance(model, StagedNetwork)
        return model.run(stages, carried)

    def uses(self, site: str) -> Filter:
        """Select the whole network: all sites share its inputs and outputs."""
        del site
        return name_starts(f"{PART}.")

    @property
    def memory(self) -> Weights:
        """Remember nothing."""
        return {}

    def with_memory(self, memory: Mapping[str, Tensor]) -> Self:  # noqa: ARG002
        """Give the task itself: it remembers nothing."""
        return self

    def viewed_by(self, site: str) -> Self:  # noqa: ARG002
        """Give the task itself: its network is told no site."""
        return self
