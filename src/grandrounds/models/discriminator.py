"""A critic judges patches of an image beside the source that it was made from.

Shapes: B batch, C channel, H height, W width; P patch map.
"""

from collections.abc import Generator
from contextlib import contextmanager
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional

from grandrounds.core.device import to_float32
from grandrounds.models.layers import channels_last, initialise, isolated_seed
from grandrounds.models.norms import Norm, norm_layer

_SLOPE = 0.2
_WIDEST = 8  # times the width


class Discriminator(nn.Module):
    """A conditional PatchGAN; with 3 strided `layers` each output value covers 70x70 pixels.

    Isola et al. 2017.
    """

    def __init__(
        self, width: int = 64, *, norm: Norm = "instance", in_channels: int = 2, layers: int = 3
    ) -> None:
        super().__init__()
        channels = [width * min(2**depth, _WIDEST) for depth in range(layers + 1)]
        self.entry = nn.Conv2d(in_channels, width, 4, stride=2, padding=1)
        self.hidden = nn.ModuleList(
            _CriticLayer(inputs, outputs, stride=1 if depth == layers else 2, norm=norm)
            for depth, (inputs, outputs) in enumerate(pairwise(channels), start=1)
        )
        self.verdict = nn.Conv2d(channels[-1], 1, 4, padding=1)

    def forward(self, pair_BCHW: Tensor) -> Tensor:
        """Judge source and image, stacked as channels: float32 (B, 1, P, P), 1 real, 0 not."""
        features = functional.leaky_relu(self.entry(channels_last(pair_BCHW)), _SLOPE, inplace=True)
        for layer in self.hidden:
            features = layer(features)
        return to_float32(self.verdict(features))


class _CriticLayer(nn.Module):
    def __init__(self, inputs: int, outputs: int, *, stride: int, norm: Norm) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(inputs, outputs, 4, stride=stride, padding=1, bias=False)
        self.norm = norm_layer(norm, outputs)

    def forward(self, features_BCHW: Tensor) -> Tensor:
        return functional.leaky_relu(
            self.norm(self.convolution(features_BCHW)), _SLOPE, inplace=True
        )


def build_discriminator(
    width: int = 64,
    *,
    seed: int,
    norm: Norm = "instance",
    in_channels: int = 2,
    layers: int = 3,
) -> Discriminator:
    """Build an initialised critic; equal seeds give equal bits, and the global RNG is restored."""
    with isolated_seed(seed):
        return initialise(Discriminator(width, norm=norm, in_channels=in_channels, layers=layers))


@contextmanager
def frozen(module: nn.Module) -> Generator[None]:
    """Freeze a module for a while: gradients pass through it, its parameters get none.

    Parameters that required no gradient before still require none after.
    """
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    try:
        for parameter in trainable:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
