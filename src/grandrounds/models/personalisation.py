"""A sample's code (site, source, target contrast) is turned into scales and shifts of its maps.

Shapes: B batch, C channel, D latent, K code value.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from grandrounds.models.norms import normalise

_SLOPE = 0.2
_MAPPER_MULTIPLIER = 0.01


@dataclass(frozen=True)
class Modulation:
    """What one personalisation block does to normalised maps: a scale and a shift, (B, C) each."""

    scale: Tensor
    shift: Tensor

    def apply(self, features_BCHW: Tensor) -> Tensor:
        """Normalise every map, then scale and shift it; same shape."""
        return normalise(features_BCHW, self.scale, self.shift)


class EqualisedLinear(nn.Module):
    """A linear layer whose weights are stored divided by their initial spread times `multiplier`.

    It starts as the same function as a plain layer of spread gain/sqrt(inputs); Adam moves it
    `multiplier` * gain / sqrt(inputs) times as fast. Karras et al. 2019.
    """

    def __init__(self, inputs: int, outputs: int, *, gain: float, multiplier: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / multiplier)
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.weight_factor = gain * multiplier / math.sqrt(inputs)
        self.bias_factor = multiplier

    def forward(self, values: Tensor) -> Tensor:
        """Map (..., inputs) to (..., outputs)."""
        return functional.linear(
            values, self.weight * self.weight_factor, self.bias * self.bias_factor
        )


def plain_linear(inputs: int, outputs: int, *, gain: float) -> nn.Linear:
    """Make a linear layer with weights N(0, gain^2 / inputs) and no initial bias."""
    layer = nn.Linear(inputs, outputs)
    nn.init.normal_(layer.weight, std=gain / math.sqrt(inputs))
    nn.init.zeros_(layer.bias)
    return layer


class Mapper(nn.Module):
    """Fully connected layers from a code to the style that all personalisation blocks read."""

    def __init__(self, code_size: int, latent: int, *, layers: int, equalised: bool) -> None:
        super().__init__()
        widths = [code_size] + [latent] * (layers - 1)
        self.layers = nn.ModuleList(_mapper_layer(width, latent, equalised) for width in widths)

    def forward(self, code_BK: Tensor) -> Tensor:
        """Return the style, (B, D)."""
        style = code_BK
        for layer in self.layers:
            style = functional.leaky_relu(layer(style), _SLOPE)
        return style


def _mapper_layer(inputs: int, latent: int, equalised: bool) -> nn.Module:
    gain = math.sqrt(2)
    if not equalised:
        return plain_linear(inputs, latent, gain=gain)
    return EqualisedLinear(inputs, latent, gain=gain, multiplier=_MAPPER_MULTIPLIER)


class PersonalBlock(nn.Module):
    """Scale, shift and weight of each channel, read from the style alone, never from the image.

    Dalmaz et al. 2024: site-task instance normalisation, then, where it `weighs`, site-task channel
    attention.
    """

    def __init__(self, latent: int, channels: int, *, equalised: bool, weighs: bool = True) -> None:
        super().__init__()
        self.affine = (
            EqualisedLinear(latent, 2 * channels, gain=1.0, multiplier=1.0)
            if equalised
            else plain_linear(latent, 2 * channels, gain=1.0)
        )
        squeezed = math.ceil(channels / 8)
        self.squeeze = nn.Linear(latent, squeezed, bias=False) if weighs else None
        self.excite = nn.Linear(squeezed, channels, bias=False) if weighs else None

    def forward(self, style_BD: Tensor) -> Modulation:
        """Fold weight * (maps * (1 + scale) + shift) into one scale and one shift."""
        scale_BC, shift_BC = self.affine(style_BD).chunk(2, dim=1)
        if self.squeeze is None:
            return Modulation(1 + scale_BC, shift_BC)
        weight_BC = self.channel_weights(style_BD)
        return Modulation(weight_BC * (1 + scale_BC), weight_BC * shift_BC)

    def channel_weights(self, style_BD: Tensor) -> Tensor:
        """Return the weight of each channel, (B, C), between 0 and 1."""
        assert self.squeeze is not None, "this block has no channel weights"
        assert self.excite is not None
        return torch.sigmoid(self.excite(functional.relu(self.squeeze(style_BD))))
