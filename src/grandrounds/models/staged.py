"""A network laid out flat in named stages, so that it can be cut between any two of them."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

from torch import Tensor, nn


class Staged(nn.Module, ABC):
    """Runs its stages in order, each from named tensors to named tensors.

    The first takes "source", the last gives "output".
    """

    network: nn.ModuleDict

    def __init__(self, stages: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.network = nn.ModuleDict(stages)

    def forward(self, source: Tensor) -> Tensor:
        """Give the output of all stages."""
        return self.run(tuple(self.network), {"source": source})["output"]

    def stages(self) -> dict[str, str]:
        """Name the stages in order, each with how the names of its parameters start."""
        return {name: f"network.{name}." for name in self.network}

    def run(self, stages: Sequence[str], carried: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run neighbouring stages on what the stage before them gave."""
        tensors = dict(carried)
        for stage in stages:
            tensors = self.run_one(stage, tensors)
        return tensors

    @abstractmethod
    def run_one(self, stage: str, carried: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run one stage."""
