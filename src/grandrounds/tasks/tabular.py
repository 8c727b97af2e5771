"""Tables: whether one variable of a patient is above a threshold is predicted from the others."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from grandrounds.data.case import Cohort, Split
from grandrounds.data.elements import Elements
from grandrounds.data.inspect import VARIABLES
from grandrounds.messages import CaseScore
from grandrounds.models.perceptron import HIDDEN, OUTPUT, Perceptron, build_perceptron
from grandrounds.seeds import seed_for
from grandrounds.tasks.binary import METRIC, BinaryTask, binary_summary
from grandrounds.tasks.checks import check_shares, require
from grandrounds.tasks.records import Rows, Variables, rows_of
from grandrounds.tasks.staged import PART
from grandrounds.tasks.task import NO_GUESTS, Batch, Labels, Picture
from grandrounds.weights import Filter, among, starting_with

NONE = among(frozenset())


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
        """The network has no norms."""
        return False

    def check(self, elements: Elements, sites: Mapping[str, Sequence[str]]) -> None:
        """Refuse what no network can be made of or trained on. Raises `BadStudy`."""
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

    def bind(self, elements: Elements, sites: Labels, guests: Labels = NO_GUESTS) -> "TabularTask":  # noqa: ARG002 - a guest's task is that of all
        """Make a consortium's task; `sites` maps each, in roster order, to its task labels."""
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
    """Predicts one variable of a patient."""

    options: Tabular
    variables: Variables

    @property
    def cases_at_once(self) -> int:
        """Score so many patients at a time."""
        return 256

    def build(self, seed: int) -> Perceptron:
        """Build the network; the same seed gives the same bits."""
        o, seed = self.options, seed_for(seed, "perceptron")
        return build_perceptron(self.variables.width, o.hidden, dropout=o.dropout, seed=seed)

    def blank(self, size: tuple[int, int]) -> Batch:
        """Give a batch of one patient without content."""
        del size
        return {"source": torch.zeros(1, self.variables.width), "target": torch.zeros(1, 1)}

    def summary(self, scores: Sequence[CaseScore]) -> dict[str, float]:
        """Summarise a site: means of the scores, AUC, balanced accuracy and a sensitivity."""
        return binary_summary(scores, whole=True, specificity=self.options.specificity)

    def picture(self, prediction: Tensor, batch: Batch) -> Picture:
        """Give none: a row is no image."""
        del prediction, batch
        return {}

    def groups(self, model: nn.Module) -> Mapping[str, Filter]:
        """Name the parameter groups: "hidden" and "output"; it has no norms."""
        del model
        output, last = f"{PART}.{OUTPUT}.", f"{PART}.{HIDDEN}{len(self.options.hidden) - 1}."
        return {
            "hidden": starting_with(f"{PART}.{HIDDEN}"),
            "output": starting_with(output),
            "norm": NONE,
            "head": starting_with(output),
            "upper": starting_with(last, output),
            "all": starting_with(f"{PART}."),
        }

    def training_examples(self, cohorts: Sequence[Cohort]) -> Rows:
        """Give each training patient."""
        return self.evaluation_examples(cohorts, "train")

    def evaluation_examples(self, cohorts: Sequence[Cohort], split: Split) -> Rows:
        """Give each patient of a split."""
        found = [rows_of(cohort, split, self.variables) for cohort in cohorts]
        return Rows(sum(found, ()))
