"""A multilayer perceptron with one output, laid out flat so that it can be cut anywhere."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

from torch import Tensor, nn

from grandrounds.models.initialise import seeded
from grandrounds.models.staged import Staged
from grandrounds.precision import full

HIDDEN, OUTPUT = "hidden_", "output"


class Perceptron(Staged):
    """Gives one logit for a row of numbers, (B, F) to (B, 1), float32 or wider.

    Without hidden layers it is logistic regression. Between stages go "features".
    """

    def __init__(self, inputs: int, hidden: Sequence[int], dropout: float) -> None:
        layers = {
            f"{HIDDEN}{level}": _layer(above, below, dropout)
            for level, (above, below) in enumerate(pairwise([inputs, *hidden]))
        }
        last = nn.Linear([inputs, *hidden][-1], 1)
        super().__init__({**layers, OUTPUT: last})

    def run_one(self, stage: str, carried: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run one stage."""
        (entering,) = carried.values()
        found = self.network[stage](entering)
        return {"output": full(found)} if stage == OUTPUT else {"features": found}


def build_perceptron(
    inputs: int, hidden: Sequence[int], *, dropout: float, seed: int
) -> Perceptron:
    """Build a perceptron: equal seeds give equal bits, global draws are untouched."""
    with seeded(seed):
        return Perceptron(inputs, hidden, dropout)


def _layer(inputs: int, outputs: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, outputs), nn.ReLU(), nn.Dropout(dropout))
