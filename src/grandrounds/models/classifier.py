"""A small residual network of MONAI's blocks, laid out flat so that it can be cut anywhere."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

from torch import Tensor, nn

from grandrounds.models.initialise import seeded
from grandrounds.models.norm import Norm
from grandrounds.models.staged import Staged
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


class Classifier(Staged):
    """Gives one logit for an image, (B, C, H, W) to (B, 1), float32 or wider.

    Stem and blocks each halve its rows and columns. Between stages go "features". He et al. 2016.
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
        """Run one stage."""
        block = self.network[stage]
        if stage == STEM:
            return {"features": block(carried["source"])}
        if stage == CLASSIFIER:
            return {"output": full(block(carried["features"].mean((2, 3))))}
        return {"features": block(carried["features"])}


def build_classifier(shape: ClassifierShape, *, seed: int) -> Classifier:
    """Build an initialised classifier: equal seeds give equal bits, global draws are untouched."""
    with seeded(seed):
        return Classifier(shape)


def _stem(shape: ClassifierShape) -> nn.Module:
    from monai.networks.blocks.convolutions import Convolution  # seconds, for those who need it

    norm = (shape.norm, {"affine": True})
    return Convolution(
        2, shape.inputs, shape.width, 2, act=ACTIVATION, norm=norm, dropout=shape.dropout
    )


def _block(shape: ClassifierShape, inputs: int, outputs: int) -> nn.Module:
    from monai.networks.blocks.convolutions import ResidualUnit

    norm = (shape.norm, {"affine": True})
    return ResidualUnit(2, inputs, outputs, 2, act=ACTIVATION, norm=norm, dropout=shape.dropout)
