"""A task knows models, losses and scores. It knows nothing of federations."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from grandrounds.data.case import Cohort, Split
from grandrounds.weights import Filter

Batch: TypeAlias = dict[str, Tensor]
Picture: TypeAlias = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Case:
    """Names one case for score tables; `patient` and `case` are pseudonyms of its site."""

    site: str
    patient: str
    case: str
    task: str


class Examples(Protocol):
    """What a site trains on or is scored on; example i is the same at any time."""

    def __len__(self) -> int:
        """Count the examples."""
        ...

    def batch(self, indices: Sequence[int], generator: torch.Generator | None) -> Batch:
        """Collate examples; a generator draws tasks and augmentation, without it all is fixed."""
        ...

    def case(self, index: int) -> Case:
        """Name an example."""
        ...


class Task(Protocol):
    """What is learned: model, losses, scores, and the named groups of its parameters."""

    @property
    def metric(self) -> str:
        """Name the score that early stopping watches; higher is better."""
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

    def score(self, prediction: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Score each case; nothing is averaged here."""
        ...

    def picture(self, prediction: Tensor, batch: Batch) -> Picture:
        """Give the images that show the first case of a batch."""
        ...

    def groups(self, model: nn.Module) -> Mapping[str, Filter]:
        """Name the parameter groups; "all" is everything that sites can sensibly average."""
        ...

    def uses(self, site: str) -> Filter:
        """Select the tensors that a site's own tasks need."""
        ...

    def training_examples(self, cohorts: Sequence[Cohort]) -> Examples:
        """Give the training examples of one site, or of several pooled."""
        ...

    def evaluation_examples(self, cohorts: Sequence[Cohort], split: Split) -> Examples:
        """Give every case of a split with every task that it can serve."""
        ...
