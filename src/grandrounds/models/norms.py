"""Norms give maps mean 0 and variance 1, by image or by batch, then scale and shift them.

Shapes: B batch, C channel, H height, W width; N values of a channel.
"""

from collections.abc import Generator
from contextlib import contextmanager
from functools import reduce
from typing import Any, Literal, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

Norm: TypeAlias = Literal["instance", "batch"]
_AnyBatchNorm = nn.modules.batchnorm._BatchNorm  # pyright: ignore[reportPrivateUsage]
_EPS = 1e-5  # added to a variance
_PIECE = 2**18  # values, a MiB, which a processor keeps near


def normalise(features_BCHW: Tensor, scale_BC: Tensor, shift_BC: Tensor) -> Tensor:
    """Normalise every map of every sample (biased variance, eps 1e-5), then scale and shift it.

    A batch norm over (1, B*C, H, W) in training mode does all of it in one native kernel, if that
    view needs no copy. Channels-last samples run one by one: a change of layout costs more.
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
    # The exported graph must not depend on the example's number of images.
    normed_BCHW = functional.instance_norm(features_BCHW)
    return normed_BCHW * scale_BC[:, :, None, None] + shift_BC[:, :, None, None]


def _norm_maps(maps_1CHW: Tensor, scale_C: Tensor, shift_C: Tensor) -> Tensor:
    if not sums_carelessly(maps_1CHW):
        return functional.batch_norm(maps_1CHW, None, None, scale_C, shift_C, training=True)
    return _normed_with(maps_1CHW, scale_C, shift_C, statistics(maps_1CHW))


def sums_carelessly(maps_BCHW: Tensor) -> bool:
    """Tell whether the native kernel adds up these maps in float32, value by value in each thread.

    On 256 x 256 values around 30 its results are wrong by up to 1e-3. A compiler has its own sums.
    """
    return (
        maps_BCHW.device.type == "cpu"
        and maps_BCHW.dtype == torch.float32
        and not maps_BCHW.is_contiguous()
        and maps_BCHW.is_contiguous(memory_format=torch.channels_last)
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
    )


def statistics(maps_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and the biased variance of each channel, with no gradient.

    Sums are pairwise, and equal to the bit for any number of threads. A variance is the mean of
    squared distances: the mean square less the squared mean would lose most of its digits.
    """
    values_NC = maps_BCHW.detach().movedim(1, -1).flatten(0, 2)
    mean_C = values_NC.mean(0)
    squares = [_squares(piece, mean_C) for piece in torch.split(values_NC, _piece(mean_C))]
    return mean_C, reduce(torch.add, squares) / len(values_NC)


def _squares(values_NC: Tensor, mean_C: Tensor) -> Tensor:
    """Add up the squared distances from the mean."""
    return functional.mse_loss(values_NC, mean_C.expand_as(values_NC), reduction="none").sum(0)


def _piece(mean_C: Tensor) -> int:
    # Squares of whole maps would be new memory each time: clearing it costs three times the sums.
    return max(1, _PIECE // len(mean_C))


class _NormedWith(torch.autograd.Function):
    """Batch norm with statistics of these maps that are given, for which there is no native one."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        maps_BCHW, scale_C, shift_C, mean_C, var_C, eps = inputs
        ctx.save_for_backward(maps_BCHW, scale_C, mean_C, (var_C + eps).rsqrt())
        ctx.eps = eps
        return functional.batch_norm(maps_BCHW, mean_C, var_C, scale_C, shift_C, eps=eps)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        maps_BCHW, scale_C, mean_C, inverse_std_C = ctx.saved_tensors
        # In training mode, so that the statistics move with the maps.
        found = torch.ops.aten.native_batch_norm_backward(
            *(*gradients, maps_BCHW, scale_C, None, None, mean_C, inverse_std_C),
            *(True, ctx.eps, ctx.needs_input_grad[:3]),
        )
        return (*found, None, None, None)


def _normed_with(
    maps_BCHW: Tensor,
    scale_C: Tensor,
    shift_C: Tensor,
    mean_and_var: tuple[Tensor, Tensor],
    eps: float = _EPS,
) -> Tensor:
    normed = _NormedWith.apply(maps_BCHW, scale_C, shift_C, *mean_and_var, eps)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    return cast(Tensor, normed)


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


class BatchNorm(nn.BatchNorm2d):
    """Batch norm that counts the statistics of channels-last maps exactly, too."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise; same shape."""
        if not self.training or not sums_carelessly(input):
            return super().forward(input)
        found = statistics(input)
        if self.track_running_stats:
            self._count(*found, input.numel() // self.num_features)
        return _normed_with(input, self.weight, self.bias, found, self.eps)

    def _count(self, mean_C: Tensor, var_C: Tensor, values: int) -> None:
        assert self.momentum is not None
        counted = dict(self.named_buffers())
        counted["running_mean"].lerp_(mean_C, self.momentum)
        counted["running_var"].lerp_(var_C * (values / (values - 1)), self.momentum)
        counted["num_batches_tracked"].add_(1)


def norm_layer(norm: Norm, channels: int) -> nn.Module:
    """Make a norm with a learned scale and shift; both kinds have parameters of equal shape."""
    return InstanceNorm(channels) if norm == "instance" else BatchNorm(channels)


def batch_norm_names(module: nn.Module) -> frozenset[str]:
    """Return the names of the parameters and buffers of batch norms."""
    return frozenset(
        name
        for name in module.state_dict()
        if isinstance(module.get_submodule(name.rpartition(".")[0]), _AnyBatchNorm)
    )


@contextmanager
def own_statistics(network: nn.Module) -> Generator[None]:
    """Inside this context batch norms use each batch's own statistics, and do not count them."""
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    before = [(norm.training, norm.track_running_stats) for norm in norms]
    for norm in norms:
        norm.training, norm.track_running_stats = True, False
    try:
        yield
    finally:
        for norm, (training, tracks) in zip(norms, before, strict=True):
            norm.training, norm.track_running_stats = training, tracks
