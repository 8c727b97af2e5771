"""A site's model becomes a function of images alone: its codes of site and task are built in.

Where the code is of how a volume was scanned, it is that of how the site usually scans.
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from grandrounds.core.errors import BadInput, BadStudy
from grandrounds.core.seeds import seed_for
from grandrounds.inference.trained_model import TrainedModel
from grandrounds.tasks.classification import ClassificationLabel, ClassificationTask
from grandrounds.tasks.segmentation import SegmentationLabel, SegmentationTask
from grandrounds.tasks.supervised import BoundTask
from grandrounds.tasks.synthesis.examples import ContrastPair
from grandrounds.tasks.synthesis.networks import (
    ABSENT,
    CONTRASTS,
    SynthesisNetwork,
    Translator,
    TwoWay,
)
from grandrounds.tasks.synthesis.task import SynthesisTask
from grandrounds.tasks.task import Batch, Task

UNTOLD = ("plain", "unet")  # the generators that use neither site nor task


class Module(Protocol):
    """Makes a prediction of images, (B, C, H, W) in [0, 1]."""

    def batch(self, images: Tensor) -> Batch:
        """Return the batch that the task would make of these images."""
        ...

    def __call__(self, images: Tensor) -> Tensor:
        """Return the task's prediction."""
        ...


@dataclass(frozen=True)
class Predictor:
    """A module to be exported, with its inputs and outputs.

    `contrasts` are the input's channels, `outputs` the prediction's; `labels` the tasks that it is
    for: several only where the network does not use the task.
    """

    trained: TrainedModel
    labels: tuple[str, ...]
    contrasts: tuple[str, ...]
    outputs: tuple[str, ...]
    module: Module

    @property
    def network(self) -> nn.Module:
        """Return the module in evaluation mode, as PyTorch's exporters take it."""
        return cast(nn.Module, self.module).eval()

    def example(self, count: int) -> Tensor:
        """Return random images to test the module on; the same for the same count."""
        generator = torch.Generator().manual_seed(seed_for(count, "example"))
        size = self.trained.study.elements.size
        return torch.rand(count, len(self.contrasts), *size, generator=generator)

    @torch.no_grad()
    def predict_float64(self, images: Tensor) -> Tensor:
        """Return the trained model's predictions, computed in float64.

        Two computations in float32 may differ more from each other than each from this.
        """
        batch = self.module.batch(images).items()
        exact = {name: t.double() if t.is_floating_point() else t for name, t in batch}
        return self.trained.task.predict(self._exact_model, exact)

    @cached_property
    def _exact_model(self) -> nn.Module:
        return deepcopy(self.trained.model).double()


def predicts_slices(task: Task) -> bool:
    """Tell whether a task's model predicts slices, so that there is a predictor of it."""
    if isinstance(task, SegmentationTask):
        return task.options.dims == 2
    return isinstance(task, SynthesisTask | ClassificationTask)


def predictor_for(trained: TrainedModel, label: str = "") -> Predictor:
    """Return a site's model for a task as a predictor; `label` may be left out for a single task.

    Raises `BadInput` where the task is not the site's, or must be named; `BadStudy` where the task
    does not predict slices.
    """
    labels = (trained.asked(label),) if label else trained.labels
    match trained.task:
        case SynthesisTask() as task:
            return _synthesis(trained, task, labels)
        case SegmentationTask() as task if task.options.dims == 2:
            contrasts = SegmentationLabel.parse(_one(labels, trained)).sources
            reader = _Reader(task, trained.model, contrasts, task.channels.contrasts)
            return Predictor(trained, labels, contrasts, task.channels.structures, reader)
        case ClassificationTask() as task:
            finding = ClassificationLabel.parse(_one(labels, trained))
            reader = _Reader(task, trained.model, finding.sources, task.reading.contrasts)
            return Predictor(trained, labels, finding.sources, (finding.target,), reader)
        case BoundTask():
            reason = f"only {trained.study.task.kind} itself knows how its batches are made"
        case SegmentationTask():
            reason = "a network of 3-D patches slides over volumes, which no exported file does"
        case _:
            reason = (
                "a table's variables are on a scale of the site's own data, not kept in the run"
            )
    raise BadStudy(f"study '{trained.study.name}': {reason}; export is for slices")


def _synthesis(trained: TrainedModel, task: SynthesisTask, labels: Sequence[str]) -> Predictor:
    o = task.options
    uses_task = o.generator not in UNTOLD or o.pairing == "unpaired"
    chosen = [_one(labels, trained)] if uses_task else labels
    pairs = [ContrastPair.parse(label) for label in chosen]
    sources = "/".join(dict.fromkeys(pair.source for pair in pairs))
    targets = "/".join(dict.fromkeys(pair.target for pair in pairs))
    assert isinstance(trained.model, Translator)
    code = task.coding.code(trained.site, pairs[0], trained.protocols)
    module = _Synthesiser(task, trained.model.generator, code[None], pairs[0])
    return Predictor(trained, tuple(labels), (sources,), (targets,), module)


def only_label(trained: TrainedModel) -> str:
    """Return the label of a site with one task. Raises `BadInput` where it has several."""
    return _one(trained.labels, trained)


def _one(labels: Sequence[str], trained: TrainedModel) -> str:
    if len(labels) > 1:
        raise BadInput(
            f"site '{trained.site}' has the tasks {', '.join(labels)}, and its model must be told "
            "which; choose one with --task"
        )
    return labels[0]


class _Synthesiser(nn.Module):
    """Makes slices of one contrast from those of another; it holds the code of site and task."""

    code_of_pair: Tensor
    contrasts: Tensor

    def __init__(
        self, task: SynthesisTask, generator: SynthesisNetwork, code: Tensor, pair: ContrastPair
    ) -> None:
        super().__init__()
        self.task = task
        names = task.coding.contrasts
        places = names.index(pair.source), names.index(pair.target)
        self.register_buffer("code_of_pair", code)
        self.register_buffer("contrasts", torch.tensor([places]))
        if task.options.generator == CONTRASTS:
            self.generator = _OneOfMany(generator, len(names), *places)
        else:
            self.generator = _one_way(generator, code)

    def batch(self, images: Tensor) -> Batch:
        """Return the images in [-1, 1], with the code of site and task."""
        count = images.shape[0]
        return {
            "source": images * 2 - 1,
            "code": self.code_of_pair.expand(count, -1),
            "pair": self.contrasts.expand(count, -1),
        }

    def forward(self, images: Tensor) -> Tensor:
        """Return the target, (B, 1, H, W) in [0, 1]."""
        batch = self.batch(images)
        return self.task.to_prediction(self.generator(batch["source"], batch["code"]))


def _one_way(generator: SynthesisNetwork, code: Tensor) -> SynthesisNetwork:
    """Return the network of the direction, where each has one."""
    if not isinstance(generator, TwoWay):
        return generator
    return generator.there if bool(code[0, 0] > 0) else generator.back


class _OneOfMany(nn.Module):
    """Feeds one contrast to a network of all contrasts, and selects another one of its output."""

    shown: Tensor

    def __init__(self, generator: nn.Module, contrasts: int, source: int, target: int) -> None:
        super().__init__()
        self.generator, self.target = generator, target
        shown = torch.arange(contrasts) == source
        self.register_buffer("shown", shown[:, None, None])

    def forward(self, source: Tensor, code: Tensor) -> Tensor:
        """Return the target, (B, 1, H, W) in [-1, 1]."""
        images = torch.where(self.shown, source, ABSENT)
        return self.generator(images, code)[:, self.target : self.target + 1]


class _Reader(nn.Module):
    """Predicts from a task's own contrasts; the network's other channels are 0."""

    places: Tensor

    def __init__(
        self,
        task: SegmentationTask | ClassificationTask,
        model: nn.Module,
        own: Sequence[str],
        known: Sequence[str],
    ) -> None:
        super().__init__()
        self.task, self.model = task, model
        places = torch.tensor([[float(name == other) for other in own] for name in known])
        self.register_buffer("places", places)

    def batch(self, images: Tensor) -> Batch:
        """Return the images with each contrast in its channel of the network."""
        return {"source": torch.einsum("nc,bchw->bnhw", self.places, images)}

    def forward(self, images: Tensor) -> Tensor:
        """Return probabilities: (B, structures, H, W), or (B, 1)."""
        return self.task.to_prediction(self.model(self.batch(images)["source"]))
