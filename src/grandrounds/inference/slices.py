"""A site's network predicts slices of one contrast from another, batch by batch."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from grandrounds.core.device import choose_device
from grandrounds.core.errors import BadStudy
from grandrounds.data.acquisition import ScanProtocol
from grandrounds.data.cohort import Cohort, Session
from grandrounds.data.protocol import protocol_of
from grandrounds.inference.trained_model import TrainedModel
from grandrounds.site.evaluation import evaluation_batches
from grandrounds.tasks.synthesis.examples import ContrastPair, Slices
from grandrounds.tasks.synthesis.task import SynthesisTask

Told = Callable[[int, int], None]  # slices predicted, and all of them


def nobody_listens(done: int, total: int) -> None:
    """Tell nobody how many slices are predicted."""


@dataclass(frozen=True)
class SlicePredictor:
    """Predicts the target of a pair from prepared slices, as the site's own test does.

    With `drops` the network's dropout stays on, so that each call is a random draw. `scanned` says
    how the source was, where the network reads that; else it was as the site usually scans.
    """

    trained: TrainedModel
    pair: ContrastPair
    drops: bool = False
    scanned: ScanProtocol | None = None

    @staticmethod
    def of(trained: TrainedModel, pair: ContrastPair) -> "SlicePredictor":
        """Return the predictor of a site's pair. Raises `BadStudy` or `BadSite`."""
        if not isinstance(trained.task, SynthesisTask):
            raise BadStudy(
                f"study '{trained.study.name}' is of {trained.study.task.kind}; only a model of "
                "synthesis makes a contrast"
            )
        return SlicePredictor(trained, ContrastPair.parse(trained.asked(pair.label)))

    def reading(self, volume: Path) -> "SlicePredictor":
        """Return the predictor that knows how this volume was scanned. Raises `BadImage`."""
        usual = self.trained.protocols.get(self.pair.source)
        return replace(self, scanned=protocol_of(volume, usual))

    @cached_property
    def task(self) -> SynthesisTask:
        """Return the task with this pair alone."""
        task, site = self.trained.task, self.trained.site
        assert isinstance(task, SynthesisTask), "`of` refuses others"
        options = replace(task.options, dropout_at_evaluation=True) if self.drops else task.options
        return replace(task, options=options, pairs={**task.pairs, site: (self.pair,)})

    @cached_property
    def device(self) -> torch.device:
        return choose_device()

    @cached_property
    def model(self) -> nn.Module:
        return self.trained.model.to(self.device)

    @property
    def dropout(self) -> float:
        """Return the largest rate of the network's dropout; 0 where it has none."""
        parts = self.trained.model.modules()
        return max((part.p for part in parts if isinstance(part, nn.Dropout)), default=0.0)

    @torch.no_grad()
    def __call__(
        self, images: NDArray[np.float32], told: Told = nobody_listens
    ) -> NDArray[np.float32]:
        """Predict slices, (slice, height, width) in [0, 1]; of an empty one nothing is made.

        Only one batch at a time is on the device; a slice does not depend on those beside it.
        """
        made = np.zeros_like(images)
        shown = np.flatnonzero(images.any(axis=(1, 2)))
        if not len(shown):
            return made
        examples = self._examples(images[shown])
        for chunk in evaluation_batches(self.task, examples):
            batch = examples.batch(chunk, None)
            on_device = {name: tensor.to(self.device) for name, tensor in batch.items()}
            predicted = self.task.predict(self.model, on_device)
            made[shown[chunk.start : chunk.stop]] = predicted[:, 0].cpu().numpy()
            told(chunk.stop, len(shown))
        return made

    def _examples(self, images: NDArray[np.float32]) -> Slices:
        count, *size = images.shape
        both = np.broadcast_to(images[:, None], (count, 2, *size))  # nothing reads the target
        scanned = {self.pair.source: self.scanned} if self.scanned else {}
        protocols = {**self.trained.protocols, **scanned}
        names = (self.pair.source, self.pair.target)
        session = Session("input", "", names, both, protocols=protocols)
        cohort = Cohort(self.trained.site, {"train": (), "validation": (), "test": (session,)})
        return self.task.evaluation_examples([cohort], "test")
