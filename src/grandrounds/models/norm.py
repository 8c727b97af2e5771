"""Normalisation of feature maps, and which parameters belong to it.

Shapes: B batch, C channel, H height, W width.
"""

from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

Norm: TypeAlias = Literal["instance", "batch"]


def normalise(features_BCHW: Tensor, scale_BC: Tensor, shift_BC: Tensor) -> Tensor:
    """Normalise every map of every sample (biased variance, eps 1e-5), then scale and shift it.

    A batch norm over (1, B*C, H, W) in training mode does all of it in one native kernel, if that
    view is free. Channels-last samples go one by one: a change of layout costs more.
    """
    if torch.compiler.is_exporting() or torch.jit.is_tracing():  # pyright: ignore[reportPrivateImportUsage]
        return _norm_any_batch(features_BCHW, scale_BC, shift_BC)
    batch, channels, height, width = features_BCHW.shape
    if batch == 1:
        return _norm_maps(features_BCHW, scale_BC[0], shift_BC[0])
    if features_BCHW.is_contiguous():
        maps = features_BCHW.view(1, batch * channels, height, width)
        return _norm_maps(maps, scale_BC.flatten(), shift_BC.flatten()).view_as(features_BCHW)
    samples = zip(features_BCHW.chunk(batch), scale_BC, shift_BC, strict=True)
    return torch.cat([_norm_maps(*sample) for sample in samples])


def _norm_any_batch(features_BCHW: Tensor, scale_BC: Tensor, shift_BC: Tensor) -> Tensor:
    # What is exported must not depend on how many images the example had.
    normed_BCHW = functional.instance_norm(features_BCHW)
    return normed_BCHW * scale_BC[:, :, None, None] + shift_BC[:, :, None, None]


def _norm_maps(maps_1CHW: Tensor, scale_C: Tensor, shift_C: Tensor) -> Tensor:
    return functional.batch_norm(maps_1CHW, None, None, scale_C, shift_C, training=True)


class InstanceNorm(nn.Module):
    """Instance norm with one learned scale and shift per channel, and without buffers."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, features_BCHW: Tensor) -> Tensor:
        """Normalise; same shape."""
        batch = features_BCHW.shape[0]
        return normalise(features_BCHW, self.weight.expand(batch, -1), self.bias.expand(batch, -1))


def norm_layer(norm: Norm, channels: int) -> nn.Module:
    """Make a norm with a learned scale and shift; both kinds have parameters of equal shape."""
    return InstanceNorm(channels) if norm == "instance" else nn.BatchNorm2d(channels)


def batch_norm_names(module: nn.Module) -> frozenset[str]:
    """Name the parameters and buffers that belong to batch norms."""
    return frozenset(
        name
        for name in module.state_dict()
        if isinstance(
            module.get_submodule(name.rpartition(".")[0]), nn.BatchNorm2d | nn.BatchNorm3d
        )
    )
