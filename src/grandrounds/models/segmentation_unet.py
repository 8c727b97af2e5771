"""A U-Net of MONAI's blocks is a flat list of stages, so that it can be cut between any two.

Shapes: B batch, C channel, S structure, then the image's axes: H, W or D, H, W.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

from torch import Tensor, nn

from grandrounds.models.layers import StagedNetwork, isolated_seed
from grandrounds.models.norms import Norm

_Layer: TypeAlias = tuple[str, Mapping[str, float | bool]]
_ACTIVATION: _Layer = ("LeakyReLU", {"negative_slope": 0.1, "inplace": True})
ENCODER, BOTTLENECK, DECODER, OUTPUT = "encoder_", "bottleneck", "decoder_", "output"


@dataclass(frozen=True)
class UNetShape:
    """The size of a U-Net: `channels` of each level, the finest first; `dims` is 2 or 3."""

    inputs: int
    outputs: int
    channels: tuple[int, ...]
    dims: int = 2
    norm: Norm = "instance"
    dropout: float = 0.0


class UNet(StagedNetwork):
    """A U-Net with a logit for each structure and pixel, (B, C, H, W) to (B, S, H, W), float32.

    The axes halve at every level but the first. Stages pass on "features" and, from each level of
    the encoder but the last one run, "skip_0", "skip_1", ... With five levels it is MONAI's
    `BasicUNet`. Ronneberger et al. 2015; Falk et al. 2019.
    """

    def __init__(self, shape: UNetShape) -> None:
        super().__init__(_encoder(shape) | _decoder(shape))

    def run_one(self, stage: str, carried: Mapping[str, Tensor]) -> dict[str, Tensor]:
        block = self.network[stage]
        if "source" in carried:
            return {"features": block(carried["source"])}
        features = carried["features"]
        skips = {name: skip for name, skip in carried.items() if name != "features"}
        if stage == OUTPUT:
            return {"output": block(features).float()}
        if stage.startswith(DECODER):
            skip = skips.pop(f"skip_{len(skips) - 1}")
            return {"features": block(features, skip), **skips}
        return {"features": block(features), **skips, f"skip_{len(skips)}": features}


def build_unet(shape: UNetShape, *, seed: int) -> UNet:
    """Build an initialised U-Net; equal seeds give equal bits, and the global RNG is restored."""
    with isolated_seed(seed):
        return UNet(shape)


def slid(network: nn.Module, source_BCDHW: Tensor, patch: Sequence[int], *, at_once: int) -> Tensor:
    """Return the logits of volumes, from half-overlapping patches with Gaussian weights."""
    from monai.inferers.inferer import SlidingWindowInferer  # an import that takes seconds

    inferer = SlidingWindowInferer(patch, at_once, overlap=0.5, mode="gaussian")
    logits = inferer(source_BCDHW, network)
    assert isinstance(logits, Tensor)
    return logits


def _encoder(shape: UNetShape) -> dict[str, nn.Module]:
    from monai.networks.nets.basic_unet import Down, TwoConv  # an import that takes seconds

    entry = TwoConv(shape.dims, shape.inputs, shape.channels[0], *_options(shape))
    *downs, bottleneck = [
        Down(shape.dims, above, below, *_options(shape))
        for above, below in pairwise(shape.channels)
    ]
    named = {f"{ENCODER}{level}": block for level, block in enumerate([entry, *downs])}
    return {**named, BOTTLENECK: bottleneck}


def _decoder(shape: UNetShape) -> dict[str, nn.Module]:
    from monai.networks.nets.basic_unet import UpCat

    levels = reversed(list(enumerate(pairwise(shape.channels))))
    ups = {
        f"{DECODER}{level}": UpCat(
            shape.dims, below, above, above, *_options(shape), halves=level > 0
        )
        for level, (above, below) in levels
    }
    convolution = nn.Conv2d if shape.dims == 2 else nn.Conv3d
    return {**ups, OUTPUT: convolution(shape.channels[0], shape.outputs, kernel_size=1)}


def _options(shape: UNetShape) -> tuple[_Layer, _Layer, bool, float]:
    norm = (shape.norm, {"affine": True})
    return _ACTIVATION, norm, True, shape.dropout
