"""A task of one's own is four functions and a dataset; the house does all the rest.

Shapes: B batch. A case is what is scored by itself.
"""

from abc import ABC, abstractmethod
from collections.abc import Generator as Yields
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, fields
from functools import cached_property
from inspect import isabstract
from pathlib import Path
from typing import ClassVar, TypeVar, cast

import torch
from torch import Generator, Tensor, nn

from grandrounds.core.errors import BadInput, BadSite, BadStudy, require
from grandrounds.core.extensions import word_of
from grandrounds.core.messages import CaseScore
from grandrounds.core.seeds import seed_for
from grandrounds.core.sentence import phrase
from grandrounds.core.weights import Filter, Weights, name_starts
from grandrounds.data.cohort import Cohort, SplitName
from grandrounds.data.dataset import DatasetCohort, DatasetItem, ItemFailed, PatientDataset
from grandrounds.data.elements import Elements
from grandrounds.models.layer_groups import NamedNetwork, layer_groups
from grandrounds.models.layers import isolated_seed
from grandrounds.tasks.metrics import mean_where_scored
from grandrounds.tasks.task import (
    NO_SITES,
    PART,
    Batch,
    Case,
    Labels,
    Picture,
    StagedTask,
    Visit,
    list_visits,
)

PROBED = 2  # blank cases with which functions are tried: a batch norm may need more than one
_VOLUME = 5  # axes of a batch of volumes


@dataclass(frozen=True)
class SupervisedTask(ABC):
    """A task of one's own: one network, trained on one loss of its output.

    A subclass is a frozen dataclass whose fields are its options in the study file. It writes
    `network`, `blank`, `loss`, `score` and `dataset`, and names in `metric` the score that
    validation watches, higher for better. A batch maps names to tensors (B, ...).
    """

    metric: ClassVar[str]
    sizes: ClassVar[Mapping[str, Mapping[str, object]]] = {}
    cases_at_once: ClassVar[int] = 1  # in an evaluation; more where all cases have one shape

    @abstractmethod
    def network(self) -> nn.Module:
        """Build the network; what it draws is drawn under the study's seed."""

    @abstractmethod
    def blank(self, size: tuple[int, int]) -> Batch:
        """Return a batch of one case without content, as training has it.

        `size` is elements.size, which a task may ignore.
        """

    @abstractmethod
    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Return the loss of the network's output, a tensor without axes."""

    @abstractmethod
    def score(self, prediction: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Score each case, (B,), never a mean; "probability" and "label" also give an AUC.

        A score that a case does not have is left out, but for `metric`.
        """

    def dataset(self, folder: Path) -> PatientDataset:
        """Open the data that a site file names."""
        raise BadSite(
            f"{folder}: {self.kind} has no dataset(folder), which opens a site's data; write it, "
            "or give the site's dataset from Python.",
            safe=phrase("the study's task does not open folders"),
        )

    def forward(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the network's output for a batch; by default that for its "image"."""
        return model(batch["image"])

    def predict(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return what is scored, of a model in evaluation mode; by default its output."""
        return self.forward(model, batch)

    def augment(self, batch: Batch, generator: Generator) -> Batch:  # noqa: ARG002
        """Change a batch of one case for training, by draws from the generator alone."""
        return batch

    def check(self, elements: Elements, sites: Mapping[str, Sequence[str]]) -> None:  # noqa: B027
        """Refuse options or labels of sites that make no sense. Raises `BadStudy`."""

    def groups_of_layers(self) -> Mapping[str, Sequence[str]]:
        """Return parameter groups by how the names of the network's layers start."""
        return {}

    @property
    def kind(self) -> str:
        """Return the address of the task's class, its name in the study file."""
        return word_of(type(self), {})

    @property
    def has_statistics(self) -> bool:
        """Tell whether the network keeps running statistics (batch norm)."""
        return self._has_statistics

    @cached_property
    def _has_statistics(self) -> bool:
        bound = BoundTask(self, {})
        model = bound.build(0)
        norm = bound.groups(model)["norm"]
        return any(norm(name) and t.is_floating_point() for name, t in model.named_buffers())

    @property
    def has_volumes(self) -> bool:
        """Tell whether some tensor of a batch is of volumes."""
        blank = BoundTask(self, {}).blank(Elements().size)
        return any(tensor.ndim == _VOLUME for tensor in blank.values())

    def bind(self, elements: Elements, sites: Labels, new_sites: Labels = NO_SITES) -> "BoundTask":
        """Make a consortium's task; `sites` maps each site, in roster order, to its task labels."""
        del elements
        return BoundTask(self, {**sites, **new_sites})


_Own = TypeVar("_Own", bound=SupervisedTask)


def checked_class(path: str, kind: type[_Own]) -> type[_Own]:
    """Return a class that is a whole task. Raises `BadStudy`, which names what it lacks."""
    word = f'{path} = "{word_of(kind, {})}"'
    lacking = ", ".join(sorted(cast(frozenset[str], getattr(kind, "__abstractmethods__", ()))))
    require(not isabstract(kind), f"{word}: it lacks {lacking}; a task of one's own writes them")
    require(
        "__dataclass_fields__" in vars(kind),
        f"{word}: it is no dataclass; write @dataclass(frozen=True) above the class",
    )
    require(
        isinstance(getattr(kind, "metric", None), str),
        f'{word}: it names no metric; for example metric: ClassVar[str] = "dice"',
    )
    taken = [each.name for each in fields(kind) if hasattr(SupervisedTask, each.name)]
    require(not taken, f"{word}: no option may be named {', '.join(taken)}, as the house uses it")
    return kind


@contextmanager
def _of_task(task: SupervisedTask, what: str) -> Yields[None, None, None]:
    """Say of which task an error is, and when it came."""
    try:
        yield
    except BadInput:
        raise
    except Exception as error:
        first = str(error).partition("\n")[0]
        raise BadStudy(
            f'task.kind = "{task.kind}": {what} ({type(error).__name__}: {first})'
        ) from error


@dataclass(frozen=True)
class FreeLabel:
    """A site's task label, which is any word."""

    label: str


@dataclass(frozen=True)
class Items:
    """Items of one or several sites' datasets, each augmented where a generator draws."""

    task: SupervisedTask
    visits: tuple[tuple[DatasetCohort, Visit[FreeLabel]], ...]

    def __len__(self) -> int:
        return len(self.visits)

    def batch(self, indices: Sequence[int], generator: Generator | None) -> Batch:
        """Read items, augment each, and put them together. Raises `ItemFailed`."""
        cases = [self._one(index, generator) for index in indices]
        if problem := _apart(cases):
            numbers = ", ".join(str(self._item(index).index) for index in indices)
            raise ItemFailed(
                f"items {numbers} cannot be one batch: {problem}",
                safe=phrase("items of its dataset differ in shape within a batch"),
            )
        return {name: torch.cat([case[name] for case in cases]) for name in cases[0]}

    def _one(self, index: int, generator: Generator | None) -> Batch:
        cohort, _ = self.visits[index]
        case = {n: t[None] for n, t in cohort.read(self._item(index)).items()}
        return case if generator is None else self.task.augment(case, generator)

    def _item(self, index: int) -> DatasetItem:
        item = self.visits[index][1].session
        assert isinstance(item, DatasetItem)
        return item

    def case(self, index: int) -> Case:
        """Return the name of an item as one case."""
        return self.visits[index][1].case()

    def check_shapes(self, at_once: int, *, training: bool) -> None:
        """Refuse items that cannot be in one batch, before anything trains. Raises `BadSite`."""
        first = dict[tuple[tuple[int, ...], ...], int]()
        for index in range(len(self)):
            first.setdefault(self._item(index).shapes, index)
        cases = [self._tried(index, training=training) for index in first.values()]
        problem = _apart(cases) if min(at_once, len(self)) > 1 else ""
        if problem:
            numbers = ", ".join(str(self._item(index).index) for index in first.values())
            remedy = (
                "augment() must bring them to one"
                if training
                else f"cases_at_once is {at_once}, and must be 1 for cases of several shapes"
            )
            raise BadSite(
                f"site '{self.visits[0][0].site}', items {numbers}: {problem}; {remedy}.",
                safe=phrase("items of its dataset differ in shape within a batch"),
            )

    def _tried(self, index: int, *, training: bool) -> Batch:
        generator = torch.Generator().manual_seed(0) if training else None
        try:
            return self._one(index, generator)
        except Exception as error:
            raise BadSite(
                f"site '{self.visits[index][0].site}', item {self._item(index).index}: augment() "
                f"cannot take it ({type(error).__name__}: {error})",
                safe=phrase("the study's task cannot augment an item of its dataset"),
            ) from error


def _apart(cases: Sequence[Batch]) -> str:
    """Say how the first case differs from another one in names or shapes; empty if in nothing."""
    first = cases[0]
    for case in cases[1:]:
        if case.keys() != first.keys():
            return f"they have {', '.join(first)} and {', '.join(case)}"
        for name, tensor in first.items():
            if case[name].shape != tensor.shape:
                one, other = tuple(tensor.shape[1:]), tuple(case[name].shape[1:])
                return f"{name} has the shapes {one} and {other}"
    return ""


@dataclass(frozen=True)
class BoundTask(StagedTask):
    """A task of one's own with the labels of its sites; its network is one stage."""

    options: SupervisedTask
    labels: Labels

    @property
    def cases_at_once(self) -> int:
        return self.options.cases_at_once

    def build(self, seed: int) -> NamedNetwork:
        """Build the network under a seed. Raises `BadStudy` where it is none that can travel."""
        with _of_task(self.options, "network() failed"), isolated_seed(seed_for(seed, PART)):
            network = self.options.network()
        word = f'task.kind = "{self.options.kind}": network()'
        require(
            isinstance(cast(object, network), nn.Module),
            f"{word} gives a {type(network).__name__}; it must give a torch.nn.Module",
        )
        parameters = dict(network.named_parameters())
        require(bool(parameters), f"{word} has no parameter, so there is nothing to train")
        for name, parameter in parameters.items():
            require(
                not nn.parameter.is_lazy(parameter),
                f"{word} has a layer without a shape yet ({name}); say its sizes",
            )
            require("/" not in name, f"{word} has a layer named {name}; leave out the '/'")
        return NamedNetwork(network)

    def blank(self, size: tuple[int, int]) -> Batch:
        with _of_task(self.options, "blank() failed"):
            batch = self.options.blank(size)
        whole = isinstance(cast(object, batch), dict) and batch
        require(
            bool(whole) and all(map(_is_one_case, batch.values())),
            f'task.kind = "{self.options.kind}": blank() must give a dictionary of tensors with a '
            "first axis of 1, a batch of one case",
        )
        return batch

    def probe(self, size: tuple[int, int]) -> Batch:
        """Return a batch of `PROBED` cases without content."""
        return _repeated(self.blank(size), PROBED)

    def check_works(self, model: NamedNetwork, size: tuple[int, int]) -> None:
        """Refuse functions that do not fit: a pass without data, in training and in evaluation.

        The model is left as it is. Raises `BadStudy`.
        """
        probe, tried = self.probe(size), deepcopy(model)
        word = f'task.kind = "{self.options.kind}"'
        with isolated_seed(0), _of_task(self.options, "training on two blank cases failed"):
            [(_, loss)] = self.losses(tried.train(), probe)
        is_loss = isinstance(cast(object, loss), Tensor) and loss.ndim == 0
        require(is_loss, f"{word}: loss() gives {_shown(loss)}; it must be a tensor without axes")
        require(loss.requires_grad, f"{word}: loss() depends on no parameter of the network")
        cases = _repeated(self.blank(size), min(PROBED, self.cases_at_once))
        with (
            isolated_seed(0),
            torch.no_grad(),
            _of_task(self.options, "the evaluation of blank cases failed"),
        ):
            self._checked_scores(self.predict(tried, cases), cases)

    def forward(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the network's output for a batch."""
        assert isinstance(model, NamedNetwork)
        return self.options.forward(model.network, batch)

    def losses(self, model: nn.Module, batch: Batch) -> Yields[tuple[str, Tensor], None, None]:
        yield PART, self.loss(self.forward(model, batch), batch)

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        return self.options.loss(output, batch)

    def stages(self, model: nn.Module) -> Mapping[str, Filter]:
        """Return the whole network as one stage: nobody knows where it could be cut."""
        del model
        return {PART: name_starts(f"{PART}.")}

    def inputs(self, batch: Batch) -> Weights:
        return batch

    def run(self, model: nn.Module, stages: Sequence[str], carried: Weights) -> Weights:
        return {"output": self.forward(model, carried)} if stages else carried

    def predict(self, model: nn.Module, batch: Batch) -> Tensor:
        assert isinstance(model, NamedNetwork)
        model.eval()
        return self.options.predict(model.network, batch)

    def to_prediction(self, output: Tensor) -> Tensor:
        return output

    def score(self, prediction: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Score each case, the watched metric first.

        Raises `FloatingPointError` where a score is not finite.
        """
        scores = self._checked_scores(prediction, batch)
        for name, values in scores.items():
            if not bool(values.isfinite().all()):
                raise FloatingPointError(
                    f"score '{name}' is {values.tolist()}; leave it out where a case has none"  # pyright: ignore[reportUnknownMemberType]
                )
        return scores

    def _checked_scores(self, prediction: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Score each case. Raises `BadStudy` where that is not one value for each."""
        scores, word = self.options.score(prediction, batch), f'task.kind = "{self.options.kind}"'
        metric, cases = self.metric, len(next(iter(batch.values())))
        require(
            metric in scores,
            f"{word}: score() gives {', '.join(scores) or 'nothing'}, and not its metric {metric}",
        )
        for name, values in scores.items():
            require(
                isinstance(cast(object, values), Tensor) and values.shape == (cases,),
                f"{word}: score() gives {_shown(values)} as {name} for {cases} "
                f"{'case' if cases == 1 else 'cases'}; it must be a tensor ({cases},), one value "
                "for each",
            )
        columns = {metric: scores[metric], **scores}
        return {name: values.detach().cpu().double() for name, values in columns.items()}

    def summary(self, scores: Sequence[CaseScore]) -> dict[str, float]:
        """Average each score over patients, tasks and sites, among the cases that have it."""
        return mean_where_scored(scores)

    def picture(self, prediction: Tensor, batch: Batch) -> Picture:
        """Return no image: what a batch shows is not known."""
        del prediction, batch
        return {}

    def groups(self, model: nn.Module) -> Mapping[str, Filter]:
        assert isinstance(model, NamedNetwork)
        where = f'task.kind = "{self.options.kind}": groups_of_layers()'
        return layer_groups(model, self.options.groups_of_layers(), where)

    def training_examples(self, cohorts: Sequence[Cohort]) -> Items:
        return self._items(cohorts, "train")

    def evaluation_examples(self, cohorts: Sequence[Cohort], split: SplitName) -> Items:
        return self._items(cohorts, split)

    def _items(self, cohorts: Sequence[Cohort], split: SplitName) -> Items:
        found = list[tuple[DatasetCohort, Visit[FreeLabel]]]()
        for cohort in cohorts:
            assert isinstance(cohort, DatasetCohort)
            labels = tuple(map(FreeLabel, self.labels[cohort.site]))
            found += [(cohort, visit) for visit in list_visits(cohort, split, labels, each=True)]
        return Items(self.options, tuple(found))


def _is_one_case(tensor: object) -> bool:
    return isinstance(tensor, Tensor) and tensor.ndim > 0 and len(tensor) == 1


def _repeated(batch: Batch, times: int) -> Batch:
    return {name: torch.cat([tensor] * times) for name, tensor in batch.items()}


def _shown(value: object) -> str:
    """Write what was given in place of a tensor of another shape."""
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)}"
    return f"a {type(value).__name__}"
