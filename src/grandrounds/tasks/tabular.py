"""A perceptron predicts from a patient's variables whether one is above a threshold."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor, nn

from grandrounds.core.errors import require
from grandrounds.core.messages import CaseScore
from grandrounds.core.seeds import seed_for
from grandrounds.core.weights import Filter, name_in, name_starts
from grandrounds.data.availability import VARIABLES
from grandrounds.data.cohort import Cohort, Session, SplitName
from grandrounds.data.elements import Elements
from grandrounds.models.classifiers import HIDDEN, PERCEPTRON_OUTPUT, Perceptron, build_perceptron
from grandrounds.tasks.binary import METRIC, BinaryTask, binary_summary
from grandrounds.tasks.task import (
    NO_SITES,
    PART,
    Batch,
    Case,
    Labels,
    Picture,
    check_shares,
    list_visits,
)


@dataclass(frozen=True)
class Variables:
    """The variables that the network reads, and the target, positive above `threshold`."""

    inputs: tuple[str, ...]
    target: str
    threshold: float

    @property
    def label(self) -> str:
        return f"{VARIABLES}->{self.target}"

    @property
    def width(self) -> int:
        """Return the number of inputs: each variable, and whether it is missing."""
        return 2 * len(self.inputs)

    def values(self, sessions: Sequence[Session]) -> NDArray[np.float64]:
        """Return the inputs of sessions, (session, variable), nan where one is missing."""
        rows = [[session.values[name] for name in self.inputs] for session in sessions]
        return np.array(rows, np.float64).reshape(-1, len(self.inputs))


@dataclass(frozen=True)
class Scale:
    """Mean and standard deviation of each variable over a site's own training patients.

    They stay at the site. A variable without values has mean 0, and one that does not vary has
    deviation 1.
    """

    mean: NDArray[np.float64]
    deviation: NDArray[np.float64]

    @staticmethod
    def of(values: NDArray[np.float64]) -> "Scale":
        """Compute the scale of values (session, variable), without the missing ones."""
        known = ~np.isnan(values)
        count = known.sum(axis=0).clip(1)
        mean = np.where(known, values, 0).sum(axis=0) / count
        deviation = np.sqrt((np.where(known, values - mean, 0) ** 2).sum(axis=0) / count)
        return Scale(mean, np.where(deviation > 0, deviation, 1.0))

    def __call__(self, values: NDArray[np.float64]) -> NDArray[np.float32]:
        """Standardise; a missing value becomes the mean, 0, and a 1 in the second half marks it."""
        missing = np.isnan(values)
        standard = np.where(missing, 0.0, (values - self.mean) / self.deviation)
        return np.concatenate([standard, missing], axis=1).astype(np.float32)


@dataclass(frozen=True)
class TableRow:
    """One patient: what the network reads, (2 x variables,), and whether the target is positive."""

    case: Case
    source: NDArray[np.float32]
    positive: bool


@dataclass(frozen=True)
class TableRows:
    """The rows of a table as examples."""

    rows: tuple[TableRow, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: Sequence[int], generator: Generator | None) -> Batch:
        """Collate rows: source (B, 2 x variables) and target (B, 1), 0 or 1; nothing is drawn."""
        del generator
        chosen = [self.rows[index] for index in indices]
        source = np.stack([row.source for row in chosen])
        return {
            "source": torch.from_numpy(source),  # pyright: ignore[reportUnknownMemberType]
            "target": torch.tensor([[float(row.positive)] for row in chosen]),
        }

    def case(self, index: int) -> Case:
        return self.rows[index].case


def table_rows(cohort: Cohort, split: SplitName, variables: Variables) -> tuple[TableRow, ...]:
    """List the patients of a split whose target is known, on the site's own scale."""
    scale = Scale.of(variables.values(cohort.splits["train"]))
    visits = list_visits(cohort, split, (variables,), each=True)
    sources = scale(variables.values([visit.session for visit in visits]))
    return tuple(
        TableRow(v.case(), source, v.session.values[variables.target] > variables.threshold)
        for v, source in zip(visits, sources, strict=True)
    )


@dataclass(frozen=True)
class Tabular:
    """Options of the tabular task: a perceptron with `hidden` layers of these widths.

    Without hidden layers it is logistic regression. A patient is positive where the target is above
    `threshold`. `positive_weight` makes positive patients count more in the loss; `specificity` is
    where the sensitivity is reported.
    """

    metric: ClassVar[str] = METRIC
    sizes: ClassVar[Mapping[str, Mapping[str, object]]] = {}

    kind: Literal["tabular"] = "tabular"
    hidden: tuple[int, ...] = (16,)
    dropout: float = 0.0
    threshold: float = 0.0
    positive_weight: float = 1.0
    specificity: float = 0.9

    @property
    def has_statistics(self) -> bool:
        return False

    def check(self, elements: Elements, sites: Mapping[str, Sequence[str]]) -> None:
        """Refuse options that no network can be built or trained with. Raises `BadStudy`."""
        require(
            all(width >= 1 for width in self.hidden),
            f"task.hidden is {list(self.hidden)}; each layer must have a width of 1 or more",
        )
        check_shares(self, ("dropout", "specificity"))
        require(
            self.positive_weight > 0,
            f"task.positive_weight is {self.positive_weight:g}; it must be above 0",
        )
        known = ", ".join(elements.variables) or "none"
        require(
            len(elements.variables) >= 2,
            f"elements.variables has {known}; a table needs a target and one input or more",
        )
        _check_labels(sites, elements)

    def bind(
        self,
        elements: Elements,
        sites: Labels,
        new_sites: Labels = NO_SITES,  # noqa: ARG002 - all sites have one task
    ) -> "TabularTask":
        """Make a consortium's task; `sites` maps each site, in roster order, to its task labels."""
        target = next(_target(label) for labels in sites.values() for label in labels)
        inputs = tuple(name for name in elements.variables if name != target)
        return TabularTask(self, Variables(inputs, target, self.threshold))


def _target(label: str) -> str:
    return label.partition("->")[2].strip()


def _check_labels(sites: Mapping[str, Sequence[str]], elements: Elements) -> None:
    known = ", ".join(elements.variables)
    for site, labels in sites.items():
        for label in labels:
            require(
                label.partition("->")[0].strip() == VARIABLES
                and _target(label) in elements.variables,
                f"site '{site}', task '{label}': write it as \"{VARIABLES}->TARGET\", with a "
                f"target of elements.variables ({known})",
            )
    targets = {_target(label) for labels in sites.values() for label in labels}
    require(
        len(targets) <= 1,
        f"the sites' tasks have the targets {', '.join(sorted(targets))}; "
        "a table has one, the same for all",
    )


@dataclass(frozen=True)
class TabularTask(BinaryTask):
    """A task that predicts one variable of a patient."""

    options: Tabular
    variables: Variables

    @property
    def cases_at_once(self) -> int:
        return 256

    def build(self, seed: int) -> Perceptron:
        o, seed = self.options, seed_for(seed, "perceptron")
        return build_perceptron(self.variables.width, o.hidden, dropout=o.dropout, seed=seed)

    def blank(self, size: tuple[int, int]) -> Batch:
        """Return a batch of one patient without content."""
        del size
        return {"source": torch.zeros(1, self.variables.width), "target": torch.zeros(1, 1)}

    def summary(self, scores: Sequence[CaseScore]) -> dict[str, float]:
        """Summarise a site: means of the scores, AUC, balanced accuracy and a sensitivity."""
        return binary_summary(scores, whole=True, specificity=self.options.specificity)

    def picture(self, prediction: Tensor, batch: Batch) -> Picture:
        """Return no image: a row of a table has none."""
        del prediction, batch
        return {}

    def groups(self, model: nn.Module) -> Mapping[str, Filter]:
        """Return the parameter groups, also "hidden" and "output"; "norm" is empty."""
        del model
        output, last = (
            f"{PART}.{PERCEPTRON_OUTPUT}.",
            f"{PART}.{HIDDEN}{len(self.options.hidden) - 1}.",
        )
        return {
            "hidden": name_starts(f"{PART}.{HIDDEN}"),
            "output": name_starts(output),
            "norm": name_in(frozenset()),
            "head": name_starts(output),
            "upper": name_starts(last, output),
            "all": name_starts(f"{PART}."),
        }

    def training_examples(self, cohorts: Sequence[Cohort]) -> TableRows:
        """Return each training patient."""
        return self.evaluation_examples(cohorts, "train")

    def evaluation_examples(self, cohorts: Sequence[Cohort], split: SplitName) -> TableRows:
        """Return each patient of a split."""
        rows = [table_rows(cohort, split, self.variables) for cohort in cohorts]
        return TableRows(sum(rows, ()))
