"""What tasks have in common whose model is one network of stages, the same for every site."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from torch import Tensor, nn

from grandrounds.models.staged import Staged
from grandrounds.tasks.task import Batch, TaskOptions
from grandrounds.weights import Filter, Weights, starting_with

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

    def judge(self, model: nn.Module, output: Tensor, batch: Batch) -> Iterator[tuple[str, Tensor]]:
        """Yield the loss of an output that stages made."""
        del model
        yield PART, self.loss(output, batch)

    @abstractmethod
    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Give the loss of an output of the network."""

    def stages(self, model: nn.Module) -> Mapping[str, Filter]:
        """Name the stages of the network."""
        assert isinstance(model, Staged)
        return {name: starting_with(prefix) for name, prefix in model.stages().items()}

    def inputs(self, batch: Batch) -> Weights:
        """Give the source."""
        return {"source": batch["source"]}

    def run(self, model: nn.Module, stages: Sequence[str], carried: Weights) -> Weights:
        """Run stages of the network."""
        assert isinstance(model, Staged)
        return model.run(stages, carried)

    def uses(self, site: str) -> Filter:
        """Select the whole network: all sites share its inputs and outputs."""
        del site
        return starting_with(f"{PART}.")

    @property
    def memory(self) -> Weights:
        """Remember nothing."""
        return {}

    def recalling(self, memory: Mapping[str, Tensor]) -> Self:  # noqa: ARG002
        """Give the task itself: it remembers nothing."""
        return self

    def seen_by(self, site: str) -> Self:  # noqa: ARG002
        """Give the task itself: its network is told no site."""
        return self
