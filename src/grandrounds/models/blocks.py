"""What the networks are made of: stages, residual blocks, dropout, and the layout of images.

Shapes: B batch, C channel, H height, W width.
"""

import math
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from grandrounds.models.norm import Norm, norm_layer

Padding: TypeAlias = Literal["reflect", "zero"]

_BYTE = 256  # values of one random byte


def channels_last(image_BCHW: Tensor) -> Tensor:
    """Give images the layout that is fastest: on a CPU channels-last, which later layers then keep.

    Stacked, since `contiguous(memory_format=...)` leaves one channel with strides that a
    convolution reads as channels-first.
    """
    if image_BCHW.device.type != "cpu":
        return image_BCHW
    return torch.stack(image_BCHW.unbind(1), dim=-1).movedim(-1, 1)


class Dropout(nn.Dropout):
    """Dropout at a rate rounded to 1/256, which on a CPU costs one random byte per value.

    PyTorch draws there value by value, in series: at rate 0.5 that took a quarter of a step.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Drop values of (B, C, H, W) in training mode; same shape."""
        if input.device.type != "cpu":
            return super().forward(input)
        if not self.training or self.p == 0:
            return input
        return input * _kept_mask(input.detach(), round(self.p * _BYTE))


# An operator of its own: the compiler would draw value by value again, or stop at the drawing.
@torch.library.custom_op("grandrounds::kept_mask", mutates_args=())
def _kept_mask(features_BCHW: Tensor, dropped: int) -> Tensor:
    words = torch.empty(math.ceil(features_BCHW.numel() / 8), dtype=torch.int64)
    words.random_(torch.iinfo(torch.int64).min, None)
    kept = words.view(torch.uint8)[: features_BCHW.numel()] >= dropped
    mask = kept.to(features_BCHW.dtype).mul_(_BYTE / (_BYTE - dropped))
    return mask.view(features_BCHW.movedim(1, -1).shape).movedim(-1, 1)


def _kept_mask_like(features_BCHW: Tensor, _: int) -> Tensor:
    return torch.empty_like(features_BCHW, memory_format=torch.channels_last)


torch.library.register_fake(  # pyright: ignore[reportUnknownMemberType] - torch leaves it untyped
    "grandrounds::kept_mask", _kept_mask_like
)


class Stage(nn.Module):
    """One convolution without bias, a norm, ReLU."""

    def __init__(self, convolution: nn.Module, norm: nn.Module) -> None:
        super().__init__()
        self.convolution = convolution
        self.norm = norm

    def forward(self, features_BCHW: Tensor) -> Tensor:
        """Give the stage's feature maps."""
        return functional.relu(self.norm(self.convolution(features_BCHW)), inplace=True)


class ResidualBlock(nn.Module):
    """Two padded 3x3 convolutions with norms, ReLU and dropout between them, plus the input."""

    def __init__(self, channels: int, *, norm: Norm, padding: Padding, dropout: float) -> None:
        super().__init__()
        self.first = Stage(same_size(channels, channels, 3, padding), norm_layer(norm, channels))
        self.dropout = Dropout(dropout)
        self.convolution = same_size(channels, channels, 3, padding)
        self.norm = norm_layer(norm, channels)

    def forward(self, features_BCHW: Tensor) -> Tensor:
        """Add the block's correction; same shape."""
        hidden = self.dropout(self.first(features_BCHW))
        return features_BCHW + self.norm(self.convolution(hidden))


def same_size(
    inputs: int, outputs: int, kernel: int, padding: Padding, *, bias: bool = False
) -> nn.Conv2d:
    """Make a convolution with an odd kernel that keeps height and width."""
    mode = "reflect" if padding == "reflect" else "zeros"
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, padding_mode=mode, bias=bias)


def downsample(inputs: int, outputs: int, norm: Norm) -> Stage:
    """Make a stage that halves height and width."""
    convolution = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False)
    return Stage(convolution, norm_layer(norm, outputs))


def upsample(inputs: int, outputs: int, norm: Norm) -> Stage:
    """Make a stage that doubles height and width."""
    convolution = nn.ConvTranspose2d(
        inputs, outputs, 3, stride=2, padding=1, output_padding=1, bias=False
    )
    return Stage(convolution, norm_layer(norm, outputs))
