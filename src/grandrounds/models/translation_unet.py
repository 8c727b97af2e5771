"""A U-Net translates images, plain or driven by a code, for methods other than pFLSynth.

Shapes: B batch, C channel, D latent, H height, K code value, W width. The first part of a
parameter's name is its group: mapper, encoder, decoder, personal.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from grandrounds.core.device import full_precision, to_float32
from grandrounds.models.layers import channels_last, initialise, isolated_seed
from grandrounds.models.norms import BatchNorm, Norm, normalise
from grandrounds.models.personalisation import Mapper, Modulation, plain_linear

MAPPER, _ENCODER, _DECODER = "mapper", "encoder", "decoder"
_SLOPE = 0.2
_MAPPER_LAYERS = 2


@dataclass(frozen=True)
class TranslationUNetShape:
    """The size of a U-Net: `width` channels in the finest level, twice as many in each below it.

    `code_size` counts the values of a code; at 0 there is no mapper and codes are ignored. Its
    "instance" norm has no parameters, its "batch" norm a scale, a shift and running statistics.
    """

    inputs: int = 1
    outputs: int = 1
    width: int = 32
    levels: int = 4
    code_size: int = 0
    latent: int = 512
    norm: Norm = "instance"

    @property
    def level_channels(self) -> tuple[int, ...]:
        """Return the channels of every level, the finest first, the bottom last."""
        return tuple(self.width * 2**level for level in range(self.levels + 1))

    @property
    def stage_channels(self) -> tuple[int, ...]:
        """Return the output channels of every stage: each level up has two, of equal channels."""
        *upper, _ = self.level_channels
        up = [channels for channels in reversed(upper) for _ in range(2)]
        return (*self.level_channels, *up[:-1], self.outputs)


class TranslationUNet(nn.Module):
    """Translates slices from contrasts to contrasts, with a code for the direction if it has any.

    Ronneberger et al. 2015; with codes, the switchable generator of Song and Ye 2021 (FedCycleGAN).
    """

    def __init__(self, shape: TranslationUNetShape) -> None:
        super().__init__()
        self.shape = shape
        self.encoder = _encoder(shape)
        self.decoder = _decoder(shape)
        self.mapper = _mapper(shape) if shape.code_size else None
        self.personal = _personal(shape) if shape.code_size else nn.ModuleList()

    def forward(self, source_BCHW: Tensor, code_BK: Tensor) -> Tensor:
        """Return images in [-1, 1], float32, (B, outputs, H, W).

        H and W are multiples of 2 to the number of levels, and the bottom has two pixels or more.
        """
        return self.run(tuple(self.stages()), {"source": source_BCHW, "code": code_BK})["output"]

    def stages(self) -> dict[str, tuple[str, ...]]:
        """Return the stages in order, each with the prefixes of its parameters' names."""
        stages = {
            name: (f"{name}.", f"personal.{number}.") for number, name in enumerate(self._names())
        }
        return {MAPPER: (f"{MAPPER}.",)} | stages if self.mapper else stages

    def run(self, stages: Sequence[str], carried: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run consecutive stages on the output of the stage before them.

        The first takes "source", (B, inputs, H, W), and "code", (B, K); stages pass on
        "features", "skip_0", "skip_1", ... from the levels above, and "style", (B, D), where there
        are codes; the last one returns "output", the images in [-1, 1].
        """
        tensors = {name: _laid_out(tensor) for name, tensor in carried.items()}
        for stage in stages:
            if stage == MAPPER:
                tensors["style"] = self._style(tensors.pop("code"))
            else:
                tensors = self._run_one(stage, tensors)
        return tensors

    def _run_one(self, stage: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        entering, skips = _entering(stage, tensors)
        output = self.get_submodule(stage)(entering)
        *names, last = self._names()
        if stage == last:
            return {"output": torch.tanh(self._modulated(len(names), to_float32(output), tensors))}
        output = self._modulated(names.index(stage), output, tensors)
        style = {"style": tensors["style"]} if self.mapper else {}
        return {"features": output} | skips | style

    def _modulated(self, number: int, output: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
        if self.mapper is None:
            return output
        return self._modulation(number, tensors["style"]).apply(output)

    def _style(self, code_BK: Tensor) -> Tensor:
        # In full precision: codes must stay distinct.
        assert self.mapper is not None
        with full_precision(code_BK.device):
            return self.mapper(code_BK)

    def _modulation(self, number: int, style_BD: Tensor) -> Modulation:
        with full_precision(style_BD.device):
            return self.personal[number](style_BD)

    def _names(self) -> list[str]:
        return [
            f"{part}.{number}"
            for part in (_ENCODER, _DECODER)
            for number, _ in self.get_submodule(part).named_children()
        ]


class AdaptiveNorm(nn.Module):
    """Scale and shift of each channel, read from the style: AdaIN. Huang and Belongie 2017."""

    def __init__(self, latent: int, channels: int) -> None:
        super().__init__()
        self.affine = plain_linear(latent, 2 * channels, gain=1.0)

    def forward(self, style_BD: Tensor) -> Modulation:
        """Return the scale and shift of normalised maps."""
        scale_BC, shift_BC = self.affine(style_BD).chunk(2, dim=1)
        return Modulation(1 + scale_BC, shift_BC)


def build_translation_unet(shape: TranslationUNetShape, *, seed: int) -> TranslationUNet:
    """Build an initialised U-Net; equal seeds give equal bits, and the global RNG is restored."""
    with isolated_seed(seed):
        return initialise(TranslationUNet(shape))


class PlainInstanceNorm(nn.Module):
    """Instance norm without scale, shift or statistics."""

    def forward(self, features_BCHW: Tensor) -> Tensor:
        """Normalise every map of every sample (biased variance, eps 1e-5); same shape."""
        # In full precision: a scale in bfloat16 would make the statistics bfloat16, too.
        ones_BC = to_float32(features_BCHW.new_ones(features_BCHW.shape[:2]))
        return normalise(features_BCHW, ones_BC, torch.zeros_like(ones_BC))


class _Stage(nn.Module):
    def __init__(self, convolution: nn.Module, norm: nn.Module) -> None:
        super().__init__()
        self.convolution = convolution
        self.norm = norm

    def forward(self, features_BCHW: Tensor) -> Tensor:
        normed = self.norm(self.convolution(features_BCHW))
        return functional.leaky_relu(normed, _SLOPE, inplace=True)


def _entering(stage: str, tensors: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the input of a stage, and the skips that are left after it."""
    group, number = stage.split(".")
    skips = {name: tensor for name, tensor in tensors.items() if name.startswith("skip_")}
    features = tensors["source"] if "source" in tensors else tensors["features"]
    if group == _ENCODER and int(number) > 0:
        return functional.avg_pool2d(features, 2), {**skips, f"skip_{len(skips)}": features}
    if group == _DECODER and int(number) % 2 == 1:
        skip = skips.pop(f"skip_{len(skips) - 1}")
        return torch.cat([features, skip], 1), skips
    return features, skips


def _laid_out(tensor: Tensor) -> Tensor:
    return channels_last(tensor) if tensor.dim() == 4 else tensor


def _encoder(shape: TranslationUNetShape) -> nn.ModuleList:
    channels = (shape.inputs, *shape.level_channels)
    return nn.ModuleList(_block(above, below, shape.norm) for above, below in pairwise(channels))


def _decoder(shape: TranslationUNetShape) -> nn.ModuleList:
    steps = pairwise(reversed(shape.level_channels))
    *stages, last = [
        stage
        for below, above in steps
        for stage in (_up(below, above, shape.norm), _block(below, above, shape.norm))
    ]
    to_images = nn.Conv2d(shape.width, shape.outputs, 1)
    return nn.ModuleList([*stages, nn.Sequential(last, to_images)])


def _block(inputs: int, outputs: int, norm: Norm) -> nn.Sequential:
    return nn.Sequential(*(_convolve(c, outputs, norm) for c in (inputs, outputs)))


def _convolve(inputs: int, outputs: int, norm: Norm) -> _Stage:
    convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    return _Stage(convolution, _norm(norm, outputs))


def _up(inputs: int, outputs: int, norm: Norm) -> _Stage:
    convolution = nn.ConvTranspose2d(inputs, outputs, 2, stride=2, bias=False)
    return _Stage(convolution, _norm(norm, outputs))


def _norm(norm: Norm, channels: int) -> nn.Module:
    return PlainInstanceNorm() if norm == "instance" else BatchNorm(channels)


def _mapper(shape: TranslationUNetShape) -> Mapper:
    return Mapper(shape.code_size, shape.latent, layers=_MAPPER_LAYERS, equalised=False)


def _personal(shape: TranslationUNetShape) -> nn.ModuleList:
    return nn.ModuleList(AdaptiveNorm(shape.latent, channels) for channels in shape.stage_channels)
