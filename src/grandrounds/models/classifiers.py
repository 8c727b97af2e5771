"""Two small networks classify images and tables, and can be cut between any two layers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

from torch import Tensor, nn

from grandrounds.core.device import to_float32
from grandrounds.models.layers import StagedNetwork, isolated_seed
from grandrounds.models.norms import Norm

_Layer: TypeAlias = tuple[str, Mapping[str, bool]]
_ACTIVATION: _Layer = ("relu", {"inplace": True})
STEM, FEATURES, CLASSIFIER = "stem", "features_", "classifier"
HIDDEN, PERCEPTRON_OUTPUT = "hidden_", "output"


@dataclass(frozen=True)
class ClassifierShape:
    """The size of a classifier: `width` channels after the stem, twice as many after each block."""

    inputs: int
    width: int
    blocks: int
    norm: Norm = "instance"
    dropout: float = 0.0


class Classifier(StagedNetwork):
    """A residual network with one logit for an image, (B, C, H, W) to (B, 1), float32 or wider.

    Stem and blocks each halve rows and columns. Stages pass on "features". He et al. 2016.
    """

    def __init__(self, shape: ClassifierShape) -> None:
        channels = [shape.width * 2**level for level in range(shape.blocks + 1)]
        blocks = {
            f"{FEATURES}{level}": _block(shape, above, below)
            for level, (above, below) in enumerate(pairwise(channels))
        }
        last = nn.Linear(channels[-1], 1)
        super().__init__({STEM: _stem(shape), **blocks, CLASSIFIER: last})

    def run_one(self, stage: str, carried: Mapping[str, Tensor]) -> dict[str, Tensor]:
        block = self.network[stage]
        if stage == STEM:
            return {"features": block(carried["source"])}
        if stage == CLASSIFIER:
            return {"output": to_float32(block(carried["features"].mean((2, 3))))}
        return {"features": block(carried["features"])}


def build_classifier(shape: ClassifierShape, *, seed: int) -> Classifier:
    """Build an initialised classifier; equal seeds give equal bits, the global RNG is restored."""
    with isolated_seed(seed):
        return Classifier(shape)


def _stem(shape: ClassifierShape) -> nn.Module:
    from monai.networks.blocks.convolutions import Convolution  # an import that takes seconds

    norm = (shape.norm, {"affine": True})
    return Convolution(
        2, shape.inputs, shape.width, 2, act=_ACTIVATION, norm=norm, dropout=shape.dropout
    )


def _block(shape: ClassifierShape, inputs: int, outputs: int) -> nn.Module:
    from monai.networks.blocks.convolutions import ResidualUnit

    norm = (shape.norm, {"affine": True})
    return ResidualUnit(2, inputs, outputs, 2, act=_ACTIVATION, norm=norm, dropout=shape.dropout)


class Perceptron(StagedNetwork):
    """A perceptron with one logit for a row of numbers, (B, F) to (B, 1), float32 or wider.

    Without hidden layers it is logistic regression. Stages pass on "features".
    """

    def __init__(self, inputs: int, hidden: Sequence[int], dropout: float) -> None:
        layers = {
            f"{HIDDEN}{level}": _layer(above, below, dropout)
            for level, (above, below) in enumerate(pairwise([inputs, *hidden]))
        }
        last = nn.Linear([inputs, *hidden][-1], 1)
        super().__init__({**layers, PERCEPTRON_OUTPUT: last})

    def run_one(self, stage: str, carried: Mapping[str, Tensor]) -> dict[str, Tensor]:
        (entering,) = carried.values()
        output = self.network[stage](entering)
        return (
            {"output": to_float32(output)} if stage == PERCEPTRON_OUTPUT else {"features": output}
        )


def build_perceptron(
    inputs: int, hidden: Sequence[int], *, dropout: float, seed: int
) -> Perceptron:
    """Build a perceptron; equal seeds give equal bits, and the global RNG is restored."""
    with isolated_seed(seed):
        return Perceptron(inputs, hidden, dropout)


def _layer(inputs: int, outputs: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, outputs), nn.ReLU(), nn.Dropout(dropout))
