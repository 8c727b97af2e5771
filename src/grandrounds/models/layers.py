"""All networks are made of these layers: stages, residual blocks and dropout.

Shapes: B batch, C channel, H height, W width.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal, TypeAlias, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from grandrounds.models.norms import InstanceNorm, Norm, norm_layer

Padding: TypeAlias = Literal["reflect", "zero"]
Network = TypeVar("Network", bound=nn.Module)
_BYTE = 256  # values of one random byte
_SPREAD = 0.02  # of first weights


class StagedNetwork(nn.Module, ABC):
    """A network of stages that run in order, each from named tensors to named tensors.

    The first takes "source", the last returns "output".
    """

    network: nn.ModuleDict

    def __init__(self, stages: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.network = nn.ModuleDict(stages)

    def forward(self, source: Tensor) -> Tensor:
        return self.run(tuple(self.network), {"source": source})["output"]

    def stages(self) -> dict[str, str]:
        """Return the stages in order, each with the prefix of its parameters' names."""
        return {name: f"network.{name}." for name in self.network}

    def run(self, stages: Sequence[str], carried: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run consecutive stages on the output of the stage before them."""
        tensors = dict(carried)
        for stage in stages:
            tensors = self.run_one(stage, tensors)
        return tensors

    @abstractmethod
    def run_one(self, stage: str, carried: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run one stage."""


def channels_last(image_BCHW: Tensor) -> Tensor:
    """Return images in the fastest layout: on a CPU channels-last, which later layers preserve.

    Stacked, since `contiguous(memory_format=...)` leaves one channel with strides that a
    convolution reads as channels-first.
    """
    if image_BCHW.device.type != "cpu":
        return image_BCHW
    return torch.stack(image_BCHW.unbind(1), dim=-1).movedim(-1, 1)


class Dropout(nn.Dropout):
    """Dropout at a rate rounded to 1/256, which on a CPU costs one random byte per value.

    There PyTorch draws value by value, serially: at rate 0.5 that took a quarter of a step.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Drop values of (B, C, H, W) in training mode; same shape."""
        if input.device.type != "cpu":
            return super().forward(input)
        if not self.training or self.p == 0:
            return input
        return input * _kept_mask(input.detach(), round(self.p * _BYTE))


# A custom operator: otherwise the compiler draws value by value again, or breaks at the draw.
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


def modules_by_name(network: nn.Module) -> dict[str, nn.Module]:
    """Return a network's modules, each under its first name, in the order of registration."""
    return dict(cast(Iterable[tuple[str, nn.Module]], network.named_modules()))


class Stage(nn.Module):
    """A convolution without bias, a norm and ReLU."""

    def __init__(self, convolution: nn.Module, norm: nn.Module) -> None:
        super().__init__()
        self.convolution = convolution
        self.norm = norm

    def forward(self, features_BCHW: Tensor) -> Tensor:
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
        """Add the output of the block's branch; same shape."""
        return features_BCHW + self.branch(features_BCHW)

    def branch(self, features_BCHW: Tensor) -> Tensor:
        """Return what the block adds to its input; same shape."""
        hidden = self.dropout(self.first(features_BCHW))
        return self.norm(self.convolution(hidden))


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


@contextmanager
def isolated_seed(seed: int) -> Generator[None]:
    """Draw from the CPU's global generator as if just seeded, then restore its state."""
    state = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(state)


def initialise(network: Network) -> Network:
    """Draw convolution weights from N(0, 0.02^2) and norm weights from N(1, 0.02^2), in place.

    Linear layers keep their own initialisation: at spread 0.02 a mapper would stay dead.
    """
    for part in network.modules():
        if isinstance(part, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(part.weight, std=_SPREAD)
        elif isinstance(part, InstanceNorm | nn.BatchNorm2d):
            nn.init.normal_(part.weight, mean=1.0, std=_SPREAD)
    return network
