"""A multilayer perceptron with one output, laid out flat so that it can be cut anywhere.

Shapes: B batch, F feature.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise

from torch import Tensor, nn

from grandrounds.models.initialise import seeded
from grandrounds.precision import full

HIDDEN, OUTPUT = "hidden_", "output"


class Perceptron(nn.Module):
    """Gives one logit for a row of numbers; without hidden layers it is logistic regression."""

    network: nn.ModuleDict

    def __init__(self, inputs: int, hidden: Sequence[int], dropout: float) -> None:
        super().__init__()
        layers = {
            f"{HIDDEN}{level}": _layer(above, below, dropout)
            for level, (above, below) in enumerate(pairwise([inputs, *hidden]))
        }
        last = nn.Linear([inputs, *hidden][-1], 1)
        self.network = nn.ModuleDict({**layers, OUTPUT: last})

    def forward(self, source_BF: Tensor) -> Tensor:
        """Give the logits, (B, 1), float32 or wider."""
        return self.run(tuple(self.network), {"source": source_BF})["output"]

    def stages(self) -> dict[str, str]:
        """Name the stages in order, each with how the names of its parameters start."""
        return {name: f"network.{name}." for name in self.network}

    def run(self, stages: Sequence[str], carried: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run neighbouring stages: the first takes "source", the last gives "output", the logits.

        Between stages go "features".
        """
        tensors = dict(carried)
        for stage in stages:
            (entering,) = tensors.values()
            found = self.network[stage](entering)
            tensors = {"output": full(found)} if stage == OUTPUT else {"features": found}
        return tensors


def build_perceptron(
    inputs: int, hidden: Sequence[int], *, dropout: float, seed: int
) -> Perceptron:
    """Build a perceptron: equal seeds give equal bits, global draws are untouched."""
    with seeded(seed):
        return Perceptron(inputs, hidden, dropout)


def _layer(inputs: int, outputs: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, outputs), nn.ReLU(), nn.Dropout(dropout))
