"""Tasks with one planted fault each: the conformance kit must find it. Workers import them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from grandrounds.core.weights import Filter
from grandrounds.data.cohort import Cohort, SplitName
from grandrounds.data.elements import Elements
from grandrounds.models.classifiers import Classifier
from grandrounds.tasks.classification import Classification, ClassificationTask, LabelledImages
from grandrounds.tasks.task import NO_SITES, PART, Batch, Labels
from tests.helpers.own_tasks import Line

CALLS: list[int] = []


class Bound(ClassificationTask):
    """A classification without a fault; those below have one each."""


@dataclass(frozen=True)
class Faulty(Classification):
    """Classification at its smallest, bound as the task whose name is `fault`."""

    width: int = 4
    blocks: int = 2
    fault: str = "Bound"

    def bind(self, elements: Elements, sites: Labels, new_sites: Labels = NO_SITES) -> Bound:
        right = super().bind(elements, sites, new_sites)
        return globals()[self.fault](*(getattr(right, each.name) for each in fields(right)))


class Detached(Bound):
    """Trains its last layer alone."""

    def losses(self, model: nn.Module, batch: Batch) -> Iterator[tuple[str, Tensor]]:
        assert isinstance(model, Classifier)
        *first, last = model.stages()
        features = model.run(first, {"source": batch["source"]})
        output = model.run([last], {name: tensor.detach() for name, tensor in features.items()})
        yield PART, self.loss(output["output"], batch)


class Warming(Bound):
    """Weighs its loss by how often it was asked in this process."""

    def losses(self, model: nn.Module, batch: Batch) -> Iterator[tuple[str, Tensor]]:
        CALLS.append(1)
        for part, loss in super().losses(model, batch):
            yield part, loss * (1 + 0.1 * len(CALLS))


class Hashed(Bound):
    """Weighs its loss by a hash, which differs from process to process."""

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        return super().loss(output, batch) * (1 + hash("a word") % 1000 / 1000)


class Unseeded(Bound):
    """Draws its last layer from the global generator."""

    def build(self, seed: int) -> nn.Module:
        model = super().build(seed)
        for parameter in model.get_submodule("network.classifier").parameters():
            nn.init.normal_(parameter)
        return model


class Reseeding(Bound):
    """Seeds the global generator, and leaves it so."""

    def build(self, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return super().build(seed)


class Constant(Bound):
    """Has the same first weights for every seed."""

    def build(self, seed: int) -> nn.Module:
        return super().build(1)


class Relative(Bound):
    """Scores a case by the mean of its batch."""

    def score(self, prediction: Tensor, batch: Batch) -> dict[str, Tensor]:
        scores = super().score(prediction, batch)
        return {name: values - values.mean() for name, values in scores.items()}


class Averaged(Bound):
    """Scores a batch, and not a case."""

    def score(self, prediction: Tensor, batch: Batch) -> dict[str, Tensor]:
        return {n: values.mean()[None] for n, values in super().score(prediction, batch).items()}


class Training(Bound):
    """Predicts as in training, so that batch norm mixes the cases of a batch."""

    def predict(self, model: nn.Module, batch: Batch) -> Tensor:
        model.train()
        return self.to_prediction(model(batch["source"]))


class Ungrouped(Bound):
    """Has tensors in no group."""

    def groups(self, model: nn.Module) -> Mapping[str, Filter]:
        groups = super().groups(model)
        return {
            name: lambda tensor, holds=holds: holds(tensor) and not tensor.endswith("bias")
            for name, holds in groups.items()
        }


class Headless(Bound):
    """Lacks a group that every task has."""

    def groups(self, model: nn.Module) -> Mapping[str, Filter]:
        return {name: holds for name, holds in super().groups(model).items() if name != "head"}


class Cheating(Bound):
    """Trains on the patients that it is tested with."""

    def training_examples(self, cohorts: Sequence[Cohort]) -> LabelledImages:
        return super().training_examples([_all_trained(cohort) for cohort in cohorts])


def _all_trained(cohort: Cohort) -> Cohort:
    splits: dict[SplitName, tuple] = dict(cohort.splits)
    return replace(cohort, splits={**splits, "train": splits["train"] + splits["test"]})


class Nameless(Bound):
    """Gives all cases of a patient one name."""

    def evaluation_examples(self, cohorts: Sequence[Cohort], split: SplitName) -> LabelledImages:
        return OneName(*vars(super().evaluation_examples(cohorts, split)).values())


class OneName(LabelledImages):
    """Examples whose cases are called alike."""

    def case(self, index: int):
        return replace(super().case(index), case="1")


@dataclass(frozen=True)
class Mixing(Line):
    """Predicts less what all cases of a batch have in common."""

    cases_at_once: ClassVar[int] = 4

    def predict(self, model: nn.Module, batch: Batch) -> Tensor:
        output = super().predict(model, batch)
        return output - output.mean(0)
