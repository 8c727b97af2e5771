"""A probe tells whether a machine's 3-D convolutions compute what they say, whatever memory held.

The weight gradient in bfloat16 of PyTorch 2.13 on a CPU with AVX-512 reads memory that nobody wrote
where a map is two slices deep: it is then another one each time, and not always finite.
"""

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

_DEPTHS = (1, 2, 3, 4)  # of a map, in slices; a network's deepest maps are the smallest
_CHANNELS = ((8, 16), (32, 64), (64, 32))  # in, out
_SIDE = 8  # rows and columns of a map
_TIMES = 3
_CLOSE = 0.05  # bfloat16 has 8 bits: of the largest gradient, its error stays well below this
_SPOILED = tuple(2**power for power in range(8, 23, 2))  # numbers in blocks of memory


@cache
def is_sound_in_3d(device: torch.device, dtype: torch.dtype) -> bool:
    """Tell whether gradients of 3-D convolutions in this type repeat, and are near float32's."""
    return all(
        _is_sound(device, dtype, depth, inputs, outputs)
        for inputs, outputs in _CHANNELS
        for depth in _DEPTHS
    )


def _is_sound(device: torch.device, dtype: torch.dtype, depth: int, ins: int, outs: int) -> bool:
    expected, *_ = _gradients(device, torch.float32, depth, ins, outs)
    first, *others = [_gradients(device, dtype, depth, ins, outs) for _ in range(_TIMES)]
    near = (first[0] - expected).abs().max() <= _CLOSE * expected.abs().max()
    same = all(torch.equal(a, b) for other in others for a, b in zip(first, other, strict=True))
    return bool(near) and same


def _gradients(
    device: torch.device, dtype: torch.dtype, depth: int, ins: int, outs: int
) -> tuple[Tensor, Tensor]:
    """Return the gradients of weights and input of one convolution, in memory that was spoiled."""
    random = torch.Generator().manual_seed(0)
    maps = torch.randn(2, ins, depth, _SIDE, _SIDE, generator=random).to(device)
    weights = torch.randn(outs, ins, 3, 3, 3, generator=random).to(device)
    maps, weights = maps.to(dtype).requires_grad_(), weights.to(dtype).requires_grad_()
    spoil_memory(device)
    loss = functional.conv3d(maps, weights, padding=1).float().square().mean()
    of_weights, of_maps = torch.autograd.grad(loss, (weights, maps))
    return of_weights.float(), of_maps.float()


def spoil_memory(device: torch.device) -> None:
    """Leave NaN in memory that is free, so that who reads what he did not write is found out."""
    blocks = [torch.full((size,), torch.nan, device=device) for size in _SPOILED for _ in range(4)]
    del blocks
