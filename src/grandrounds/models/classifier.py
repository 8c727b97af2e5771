"""A small residual network of MONAI's blocks, laid out flat so that it can be cut anywhere.

Shapes: B batch, C channel, H, W.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

from monai.networks.blocks.convolutions import Convolution, ResidualUnit
from torch import Tensor, nn

from grandrounds.models.initialise import seeded
from grandrounds.models.norm import Norm
from grandrounds.precision import full

Layer: TypeAlias = tuple[str, Mapping[str, bool]]

ACTIVATION: Layer = ("relu", {"inplace": True})
STEM, FEATURES, CLASSIFIER = "stem", "features_", "classifier"


@dataclass(frozen=True)
class ClassifierShape:
    """The size of a classifier: `width` channels after the stem, twice as many after each block."""

    inputs: int
    width: int
    blocks: int
    norm: Norm = "instance"
    dropout: float = 0.0


class Classifier(nn.Module):
    """Gives one logit for an image; stem and blocks each halve its rows and columns.

    He et al. 2016.
    """

    network: nn.ModuleDict

    def __init__(self, shape: ClassifierShape) -> None:
        super().__init__()
        channels = [shape.width * 2**level for level in range(shape.blocks + 1)]
        blocks = {
            f"{FEATURES}{level}": _block(shape, above, below)
            for level, (above, below) in enumerate(pairwise(channels))
        }
        last = nn.Linear(channels[-1], 1)
        self.network = nn.ModuleDict({STEM: _stem(shape), **blocks, CLASSIFIER: last})

    def forward(self, source_BCHW: Tensor) -> Tensor:
        """Give the logits, (B, 1), float32 or wider."""
        return self.run(tuple(self.network), {"source": source_BCHW})["output"]

    def stages(self) -> dict[str, str]:
        """Name the stages in order, each with how the names of its parameters start."""
        return {name: f"network.{name}." for name in self.network}

    def run(self, stages: Sequence[str], carried: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run neighbouring stages: the first takes "source", the last gives "output", the logits.

        Between stages go "features".
        """
        tensors = dict(carried)
        for stage in stages:
            tensors = self._run_one(stage, tensors)
        return tensors

    def _run_one(self, stage: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        block = self.network[stage]
        if stage == STEM:
            return {"features": block(tensors["source"])}
        if stage == CLASSIFIER:
            return {"output": full(block(tensors["features"].mean((2, 3))))}
        return {"features": block(tensors["features"])}


def build_classifier(shape: ClassifierShape, *, seed: int) -> Classifier:
    """Build an initialised classifier: equal seeds give equal bits, global draws are untouched."""
    with seeded(seed):
        return Classifier(shape)


def _stem(shape: ClassifierShape) -> Convolution:
    norm = (shape.norm, {"affine": True})
    return Convolution(
        2, shape.inputs, shape.width, 2, act=ACTIVATION, norm=norm, dropout=shape.dropout
    )


def _block(shape: ClassifierShape, inputs: int, outputs: int) -> ResidualUnit:
    norm = (shape.norm, {"affine": True})
    return ResidualUnit(2, inputs, outputs, 2, act=ACTIVATION, norm=norm, dropout=shape.dropout)
