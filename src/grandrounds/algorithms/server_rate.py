"""The server's rate is measured: how much of their way the sites lose when they are averaged."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from grandrounds.core.weights import Weights

CAP = 4.0  # half of eight sites at right angles; the plain sum of the moves has diverged
_DIGITS = 6  # of a rate: the last bits of a sum depend on the processor and its threads
_LEAST = 1e-12  # below this a mean move is none
_BLOCK = 2**16  # numbers at a time, so that their float64 fits in the cache


def extended(
    old: Weights,
    mean: Weights,
    updates: Sequence[Weights],
    shares: Sequence[float],
    groups: Mapping[str, str],
) -> Weights:
    """Return old + rate (mean - old), with a rate for each group of parameters.

    All map equal names to tensors of equal shape; `shares` are positive, and need not add up to 1.
    `groups` maps a parameter's name to its group; what has none keeps its mean. Where the
    rate is 1, as for one site or equal updates, the mean stays as it is, to the bit.
    Jhunjhunwala et al. 2023 (FedExP), by group of parameters.
    """
    portions = [share / sum(shares) for share in shares]
    rates = measured_rates(old, updates, portions, groups)
    further = dict(mean)
    for name in mean:
        rate = rates.get(groups.get(name, ""), 1.0)
        if rate != 1.0:
            further[name] = _extended(old[name], [u[name] for u in updates], portions, rate)
    return further


def measured_rates(
    old: Weights,
    updates: Sequence[Weights],
    portions: Sequence[float],
    groups: Mapping[str, str],
) -> Mapping[str, float]:
    """Return min(4, max(1, sum p_i |d_i|^2 / (2 |sum p_i d_i|^2))) of each group; d_i = w_i - w.

    1 where the sites agree, N / 2 where N sites move as far at right angles. In float64, in the
    order given, then rounded to six digits.
    """
    apart, together = dict[str, float](), dict[str, float]()
    for name in updates[0]:
        if group := groups.get(name):
            own, common = _squares(old[name], [u[name] for u in updates], portions)
            apart[group] = apart.get(group, 0.0) + own
            together[group] = together.get(group, 0.0) + common
    exact = {g: min(CAP, max(1.0, own / (2 * together[g] + _LEAST))) for g, own in apart.items()}
    return {group: round(rate, _DIGITS) for group, rate in exact.items()}


def _moves(
    old: Tensor, tensors: Sequence[Tensor], portions: Sequence[float], block: slice
) -> tuple[list[Tensor], Tensor]:
    """Return each site's move and their mean, of a block of numbers."""
    start = old.reshape(-1)[block].double()
    moves = [tensor.reshape(-1)[block].double() - start for tensor in tensors]
    mean = torch.zeros_like(start)
    for move, portion in zip(moves, portions, strict=True):
        mean += portion * move
    return moves, mean


def _squares(
    old: Tensor, tensors: Sequence[Tensor], portions: Sequence[float]
) -> tuple[float, float]:
    """Return the mean of the moves' squared lengths, and the squared length of the mean move."""
    apart = together = 0.0
    for start in range(0, old.numel(), _BLOCK):
        moves, mean = _moves(old, tensors, portions, slice(start, start + _BLOCK))
        squares = [float(move.square().sum()) for move in moves]
        apart += sum(portion * square for portion, square in zip(portions, squares, strict=True))
        together += float(mean.square().sum())
    return apart, together


def _extended(
    old: Tensor, tensors: Sequence[Tensor], portions: Sequence[float], rate: float
) -> Tensor:
    """Return old + rate * mean move, in the tensor's own type."""
    further = torch.empty_like(old).reshape(-1)
    for start in range(0, old.numel(), _BLOCK):
        block = slice(start, start + _BLOCK)
        _, mean = _moves(old, tensors, portions, block)
        further[block] = (old.reshape(-1)[block].double() + rate * mean).to(old.dtype)
    return further.view(old.shape)
