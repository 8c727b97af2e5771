"""A task builds a model, trains it by losses and scores cases; all tasks share these parts."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Generic, Protocol, Self, TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor, nn

from grandrounds.core.errors import require
from grandrounds.core.messages import CaseScore
from grandrounds.core.weights import Filter, Weights, name_starts
from grandrounds.data.availability import serves
from grandrounds.data.cohort import Cohort, Session, SplitName, pseudonyms_of, visits_of
from grandrounds.data.elements import Elements
from grandrounds.models.layers import StagedNetwork

PART = "network"  # the name of a staged task's only part


def require_counts(options: object, least: Mapping[str, int]) -> None:
    """Refuse options of a task below their least value."""
    for name, low in least.items():
        value = getattr(options, name)
        require(value >= low, f"task.{name} is {value}; it must be {low} or more")


def check_shares(options: object, names: Sequence[str]) -> None:
    """Refuse options of a task that are not probabilities."""
    for name in names:
        value = getattr(options, name)
        require(0 <= value <= 1, f"task.{name} is {value}; it is a probability, from 0 to 1")


def check_size(elements: Elements, *, least: int, multiple: int) -> None:
    """Refuse slice sizes that a network cannot halve and double as often as its levels need."""
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
NO_SITES: Labels = {}


@dataclass(frozen=True)
class Case:
    """The name of a case in score tables; `patient` and `case` are pseudonyms at its site."""

    site: str
    patient: str
    case: str
    task: str


class TaskLabel(Protocol):
    """The parsed form of a site's task label in the study, such as "T1w->T2w"."""

    @property
    def label(self) -> str: ...


AnyLabel = TypeVar("AnyLabel", bound=TaskLabel)


def has_all(session: Session, label: TaskLabel) -> bool:
    """Tell whether a session has all data that a task label names."""
    return serves(session, label.label)


@dataclass(frozen=True)
class Visit(Generic[AnyLabel]):
    """One session of a patient, and the task labels that it serves at its site.

    `patient` is a pseudonym and `number` counts the patient's sessions: the site's own names for
    them could identify the patient.
    """

    site: str
    patient: str
    number: int
    session: Session
    labels: tuple[AnyLabel, ...]

    def case(self) -> Case:
        """Return the name of the session as one case, with the first of its labels."""
        return Case(self.site, self.patient, str(self.number), self.labels[0].label)


@dataclass(frozen=True)
class Slice(Generic[AnyLabel]):
    """One slice of a visit, or the first one of a patch."""

    visit: Visit[AnyLabel]
    index: int

    def case(self) -> Case:
        """Return the name of the slice as one case."""
        return replace(self.visit.case(), case=f"{self.visit.number}/{self.index:03d}")


def one_by_one(batch: Batch) -> Iterator[Batch]:
    """Yield the rows of a batch, each as a batch of its own."""
    for row in range(len(next(iter(batch.values())))):
        yield {name: tensor[row : row + 1] for name, tensor in batch.items()}


def list_visits(
    cohort: Cohort,
    split: SplitName,
    labels: Sequence[AnyLabel],
    *,
    each: bool,
    served: Callable[[Session, AnyLabel], bool] = has_all,
) -> tuple[Visit[AnyLabel], ...]:
    """List a split's sessions that serve a label; `each` repeats a session for every label."""
    pseudonyms, numbers = pseudonyms_of(cohort), visits_of(cohort)
    visits: list[Visit[AnyLabel]] = []
    for session in cohort.splits[split]:
        usable = tuple(label for label in labels if served(session, label))
        label_sets = [(label,) for label in usable] if each else [usable] if usable else []
        identity = (cohort.site, pseudonyms[session.patient], numbers[session.label], session)
        visits += [Visit(*identity, chosen) for chosen in label_sets]
    return tuple(visits)


def list_slices(visits: Sequence[Visit[AnyLabel]], *, step: int = 1) -> tuple[Slice[AnyLabel], ...]:
    """List every slice of some visits, or every `step`-th one."""
    return tuple(Slice(v, index) for v in visits for index in range(0, v.session.num_slices, step))


def draw_index(count: int, generator: Generator | None) -> int:
    """Draw one of `count` indices; without a generator return the first, 0."""
    if generator is None or count == 1:
        return 0
    return int(torch.randint(count, (), generator=generator))


class Examples(Protocol):
    """The examples that a site trains or is scored on; example i is always the same."""

    def __len__(self) -> int: ...

    def batch(self, indices: Sequence[int], generator: Generator | None) -> Batch:
        """Collate examples; a generator draws tasks and augmentation, else both are fixed."""
        ...

    def case(self, index: int) -> Case:
        """Return the name of an example."""
        ...


class TaskOptions(Protocol):
    """A task's part of the study file: a frozen dataclass, checked and then bound to a roster.

    `kind` is its name in the study; `sizes` maps a value of its option `model`, where it has one,
    to the defaults that come with it.
    """

    metric: ClassVar[str]
    sizes: ClassVar[Mapping[str, Mapping[str, object]]]

    @property
    def kind(self) -> str:
        """Return the task's name in the study file."""
        ...

    @property
    def has_statistics(self) -> bool:
        """Tell whether the network keeps running statistics (batch norm)."""
        ...

    def check(self, elements: Elements, sites: Mapping[str, Sequence[str]]) -> None:
        """Refuse invalid options, elements or task labels. Raises `BadStudy`."""
        ...

    def bind(self, elements: Elements, sites: Labels, new_sites: Labels = NO_SITES) -> "Task":
        """Make a consortium's task; `sites` maps each site, in roster order, to its task labels.

        `new_sites` do not train: the network depends on their tasks, not on the sites.
        """
        ...


class Task(Protocol):
    """What a study learns: model, losses, scores, and the named groups of its parameters.

    A model is cut into stages, run in their order, each from named tensors to named tensors; the
    last one returns {"output": ...}. Split learning cuts it between any two.
    """

    @property
    def metric(self) -> str:
        """Return the name of the score that early stopping watches; higher is better."""
        ...

    @property
    def cases_at_once(self) -> int:
        """Return the number of cases in one batch of an evaluation."""
        ...

    @property
    def learning_rates(self) -> Mapping[str, float]:
        """Return a multiplier of the learning rate for prefixes of parameters' names."""
        ...

    def build(self, seed: int) -> nn.Module:
        """Build and initialise the model; the same seed gives the same bits."""
        ...

    def blank(self, size: tuple[int, int]) -> Batch:
        """Return a batch of one empty case of this many pixels, to measure what a study needs."""
        ...

    def losses(self, model: nn.Module, batch: Batch) -> Iterator[tuple[str, Tensor]]:
        """Yield (sub-module, loss), one optimiser step each, in order."""
        ...

    def predict(self, model: nn.Module, batch: Batch) -> Tensor:
        """Predict in evaluation mode."""
        ...

    def stages(self, model: nn.Module) -> Mapping[str, Filter]:
        """Return the model's stages in order, each with the filter of its parameters' names."""
        ...

    def inputs(self, batch: Batch) -> Weights:
        """Return the named tensors of a batch that enter the first stage."""
        ...

    def run(self, model: nn.Module, stages: Sequence[str], carried: Weights) -> Weights:
        """Run consecutive stages on the tensors that the stage before them returned."""
        ...

    def losses_of_output(
        self, model: nn.Module, output: Tensor, batch: Batch
    ) -> Iterator[tuple[str, Tensor]]:
        """Yield the losses of an output of the stages, as `losses` does for the whole model."""
        ...

    def to_prediction(self, output: Tensor) -> Tensor:
        """Turn the last stage's output into a prediction, as `predict` returns it."""
        ...

    def score(self, prediction: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Score each case; no average is taken here."""
        ...

    def summary(self, scores: Sequence[CaseScore]) -> dict[str, float]:
        """Summarise one site's cases; without scores the summary is empty."""
        ...

    def picture(self, prediction: Tensor, batch: Batch) -> Picture:
        """Return images that show the first case of a batch; none where a case has no image."""
        ...

    def groups(self, model: nn.Module) -> Mapping[str, Filter]:
        """Return the filters of the parameter groups.

        Every task has "all", everything that sites can sensibly average; "norm", its batch norms;
        "head", the layers that make the output; and "upper", the later half of the network.
        """
        ...

    def uses(self, site: str) -> Filter:
        """Return the filter of the tensors that a site's tasks need."""
        ...

    def viewed_by(self, site: str) -> Self:
        """Return the task with this site's input to the model for cases of any site."""
        ...

    @property
    def memory(self) -> Weights:
        """Return the state that the losses keep between rounds; it never leaves the site."""
        ...

    def with_memory(self, memory: Mapping[str, Tensor]) -> Self:
        """Return the task for a round of training, with the memory of the round before."""
        ...

    def training_examples(self, cohorts: Sequence[Cohort]) -> Examples:
        """Return the training examples of one site, or of several pooled."""
        ...

    def evaluation_examples(self, cohorts: Sequence[Cohort], split: SplitName) -> Examples:
        """Return every case of a split with every task that it can serve."""
        ...


@dataclass(frozen=True)
class StagedTask(ABC):
    """A task whose network reads only the source and is trained on one loss of its output."""

    options: TaskOptions

    @property
    def metric(self) -> str:
        return self.options.metric

    @property
    def learning_rates(self) -> Mapping[str, float]:
        """Return no multipliers: all parts train at one rate."""
        return {}

    def losses(self, model: nn.Module, batch: Batch) -> Iterator[tuple[str, Tensor]]:
        """Yield the loss of the network's output for the source."""
        yield PART, self.loss(model(batch["source"]), batch)

    def losses_of_output(
        self, model: nn.Module, output: Tensor, batch: Batch
    ) -> Iterator[tuple[str, Tensor]]:
        del model
        yield PART, self.loss(output, batch)

    @abstractmethod
    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Return the loss of an output of the network."""

    def stages(self, model: nn.Module) -> Mapping[str, Filter]:
        assert isinstance(model, StagedNetwork)
        return {name: name_starts(prefix) for name, prefix in model.stages().items()}

    def inputs(self, batch: Batch) -> Weights:
        return {"source": batch["source"]}

    def run(self, model: nn.Module, stages: Sequence[str], carried: Weights) -> Weights:
        assert isinstance(model, StagedNetwork)
        return model.run(stages, carried)

    def uses(self, site: str) -> Filter:
        """Return the filter of the whole network: all sites share its inputs and outputs."""
        del site
        return name_starts(f"{PART}.")

    @property
    def memory(self) -> Weights:
        return {}

    def with_memory(self, memory: Mapping[str, Tensor]) -> Self:  # noqa: ARG002
        """Return the task itself: it has no memory."""
        return self

    def viewed_by(self, site: str) -> Self:  # noqa: ARG002
        """Return the task itself: its network does not read the site."""
        return self
