"""The generator of pFLSynth translates images and is personalised between its stages.

Shapes: B batch, D latent, H height, K code value, W width. The first part of a parameter's name is
its group: mapper, encoder, bottleneck_early, bottleneck_late, decoder, personal.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from grandrounds.core.device import full_precision, to_float32
from grandrounds.models.layers import (
    Padding,
    ResidualBlock,
    Stage,
    channels_last,
    downsample,
    initialise,
    isolated_seed,
    same_size,
    upsample,
)
from grandrounds.models.norms import Norm, norm_layer
from grandrounds.models.personalisation import Mapper, Modulation, PersonalBlock

BlockPlace: TypeAlias = Literal["after", "branch"]
_EARLY_SHARE = 5 / 9  # of the residual blocks; in Dalmaz et al. five of nine stay at the site


@dataclass(frozen=True)
class GeneratorShape:
    """The size of a generator; the defaults are the full model of Dalmaz et al. 2024.

    `code_size` counts the values of a code. Without `personalised` it is the plain ResNet: no
    mapper, no personalisation blocks, and codes are ignored. Without `channel_weights` the blocks
    scale and shift only. `block_place` "after" has the blocks of the bottleneck after the residual
    sum, as published, so that each normalises the sum anew; "branch" has them before it, so that
    nothing but sums lies between the bottleneck's input and its output. `equalised` slows down the
    mapper and the blocks as in the published code.
    """

    code_size: int
    width: int = 64
    blocks: int = 9
    latent: int = 512
    mapper_layers: int = 6
    personalised: bool = True
    norm: Norm = "instance"
    padding: Padding = "reflect"
    dropout: float = 0.5
    equalised: bool = False
    channel_weights: bool = True
    block_place: BlockPlace = "after"

    @property
    def num_early(self) -> int:
        """Return the number of residual blocks in the early bottleneck: 5 of 9, 2 of 4."""
        return round(self.blocks * _EARLY_SHARE)

    @property
    def stage_channels(self) -> tuple[int, ...]:
        """Return the output channels of every stage but the last, which makes the image."""
        width = self.width
        return (width, 2 * width, *[4 * width] * (self.blocks + 1), 2 * width, width)


class Generator(nn.Module):
    """Translates a slice of one contrast into another, for the site and task in the code."""

    def __init__(self, shape: GeneratorShape) -> None:
        super().__init__()
        self.shape = shape
        self.encoder = _encoder(shape)
        self.bottleneck_early = _bottleneck(shape, shape.num_early)
        self.bottleneck_late = _bottleneck(shape, shape.blocks - shape.num_early)
        self.decoder = _decoder(shape)
        self.mapper = _mapper(shape) if shape.personalised else None
        self.personal = _personal(shape) if shape.personalised else nn.ModuleList()

    def forward(self, source_B1HW: Tensor, code_BK: Tensor) -> Tensor:
        """Return the image in [-1, 1], float32, (B, 1, H, W); H and W are multiples of 4."""
        *stages, to_image = self._stages()
        features = channels_last(source_B1HW)
        for stage, modulation in zip(stages, self._modulations(code_BK), strict=True):
            features = self._personalise(stage, modulation, features)
        return torch.tanh(to_float32(to_image(features)))

    def stages(self) -> dict[str, tuple[str, ...]]:
        """Return the stages in order, each with the prefixes of its parameters' names."""
        stages = {
            name: (f"{name}.", f"personal.{number}.") for number, name in enumerate(self._names())
        }
        return {"mapper": ("mapper.",)} | stages if self.mapper else stages

    def run(self, stages: Sequence[str], carried: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run consecutive stages on the output of the stage before them.

        The first takes "source", (B, 1, H, W), and "code", (B, K); stages pass on "features" and
        "style", (B, D); the last one returns "output", the image in [-1, 1].
        """
        tensors, names = dict(carried), self._names()
        if "features" in tensors:  # a cut does not preserve the memory layout
            tensors["features"] = channels_last(tensors["features"])
        for stage in stages:
            if stage == "mapper":
                tensors["style"] = self._style(tensors.pop("code"))
            else:
                tensors = self._run_one(names.index(stage), tensors)
        return tensors

    def _run_one(self, number: int, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        stages = self._stages()
        source = tensors.get("source")
        features = tensors["features"] if source is None else channels_last(source)
        if number == len(stages) - 1:
            return {"output": torch.tanh(to_float32(stages[number](features)))}
        if self.mapper is None:
            return {"features": stages[number](features)}
        modulation = self._modulation(self.personal[number], tensors["style"])
        features = self._personalise(stages[number], modulation, features)
        return {"features": features, "style": tensors["style"]}

    def _personalise(
        self, stage: nn.Module, modulation: Modulation | None, features: Tensor
    ) -> Tensor:
        if modulation is None:
            return stage(features)
        if self.shape.block_place == "branch" and isinstance(stage, ResidualBlock):
            return features + modulation.apply(stage.branch(features))
        return modulation.apply(stage(features))

    def _names(self) -> list[str]:
        parts = ("encoder", "bottleneck_early", "bottleneck_late", "decoder")
        return [f"{p}.{n}" for p in parts for n, _ in self.get_submodule(p).named_children()]

    def _stages(self) -> list[nn.Module]:
        bottleneck = (*self.bottleneck_early, *self.bottleneck_late)
        return [*self.encoder, *bottleneck, *self.decoder]

    def _style(self, code_BK: Tensor) -> Tensor:
        # In full precision: codes must stay distinct, and casting the weights costs more than use.
        assert self.mapper is not None
        with full_precision(code_BK.device):
            return self.mapper(code_BK)

    def _modulation(self, block: nn.Module, style_BD: Tensor) -> Modulation:
        with full_precision(style_BD.device):
            return block(style_BD)

    def _modulations(self, code_BK: Tensor) -> list[Modulation | None]:
        if self.mapper is None:
            return [None] * len(self.shape.stage_channels)
        style_BD = self._style(code_BK)
        return [self._modulation(block, style_BD) for block in self.personal]


def build_generator(shape: GeneratorShape, *, seed: int) -> Generator:
    """Build an initialised generator; equal seeds give equal bits, the global RNG is restored."""
    with isolated_seed(seed):
        return initialise(Generator(shape))


def _encoder(shape: GeneratorShape) -> nn.ModuleList:
    width, norm = shape.width, shape.norm
    entry = Stage(same_size(1, width, 7, shape.padding), norm_layer(norm, width))
    return nn.ModuleList(
        [entry, downsample(width, 2 * width, norm), downsample(2 * width, 4 * width, norm)]
    )


def _bottleneck(shape: GeneratorShape, blocks: int) -> nn.ModuleList:
    return nn.ModuleList(
        ResidualBlock(
            4 * shape.width, norm=shape.norm, padding=shape.padding, dropout=shape.dropout
        )
        for _ in range(blocks)
    )


def _decoder(shape: GeneratorShape) -> nn.ModuleList:
    width, norm = shape.width, shape.norm
    to_image = same_size(width, 1, 7, shape.padding, bias=True)
    return nn.ModuleList(
        [upsample(4 * width, 2 * width, norm), upsample(2 * width, width, norm), to_image]
    )


def _mapper(shape: GeneratorShape) -> Mapper:
    return Mapper(
        shape.code_size, shape.latent, layers=shape.mapper_layers, equalised=shape.equalised
    )


def _personal(shape: GeneratorShape) -> nn.ModuleList:
    return nn.ModuleList(
        PersonalBlock(
            shape.latent, channels, equalised=shape.equalised, weighs=shape.channel_weights
        )
        for channels in shape.stage_channels
    )
