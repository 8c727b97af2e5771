"""Updates become integers modulo 2^32, so that a sum of them is exact in any order.

The bound that makes an overflow impossible: a tensor whose largest number at the start of the round
is m may hold numbers up to B = 2^10 2^ceil(log2 max(m, 2^-6)). A site of weight w of a total W,
both whole numbers with w <= W, sends q = round(x w/W 2^30/B) for each number x, so that
|q| <= 2^30 w/W + 1/2. The roster's weights add up to W, and every site has the same roster; hence
for n sites |sum q| <= 2^30 + n/2, which is below 2^31 for every n below 2^31. Each subset of the
roster, as after a drop-out, has a smaller sum. The weights themselves add up to W < 2^31.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, log2
from typing import Self, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Size, Tensor

from grandrounds.core.errors import BadUpdate
from grandrounds.core.sentence import phrase
from grandrounds.core.weights import Weights

MaskedVector: TypeAlias = NDArray[np.uint32]
_RANGE = 30  # bits of the largest number; with its sign and one bit to spare it has 32
_GROWTH = 10  # bits by which a tensor's largest number may grow in one round
_LEAST = -6  # log2 of the largest number that a tensor is taken to have at least
LARGEST_TOTAL = 2**31 - 1  # of the sites' weights
_BLOCK = 2**16  # numbers that are rounded at a time


@dataclass(frozen=True)
class FixedPoint:
    """How the tensors of an update become one vector of integers modulo 2^32, and back.

    `layout` maps each tensor, in the vector's order, to its shape and dtype; `exponents` to log2 of
    the bound B of its numbers. The site's weight is the vector's last element.
    """

    layout: Mapping[str, tuple[Size, torch.dtype]]
    exponents: Mapping[str, int]

    @classmethod
    def of(cls, start: Mapping[str, Tensor]) -> Self:
        """Return the encoding of updates that were trained from these tensors.

        Sites and aggregator have the same start, and so the same encoding. Raises `BadUpdate` where
        a tensor is not of finite floating-point numbers.
        """
        names = sorted(start)
        return cls(
            {name: (start[name].shape, start[name].dtype) for name in names},
            {name: _exponent(name, start[name]) for name in names},
        )

    @property
    def length(self) -> int:
        """Return the number of elements of the vector."""
        return sum(shape.numel() for shape, _ in self.layout.values()) + 1

    def step(self, name: str) -> float:
        """Return the fixed-point step of a tensor, B / 2^30.

        Rounding moves the mean of n sites by at most n/2 steps.
        """
        return 2.0 ** (self.exponents[name] - _RANGE)

    def encode(self, update: Mapping[str, Tensor], weight: int, total: int) -> MaskedVector:
        """Return an update times weight / total, and the weight, as integers modulo 2^32.

        Raises `BadUpdate` for other tensors than those of the start, for a number that is not
        finite or beyond the bound, and for a weight that is not from 1 to the total.
        """
        _check_weight(weight, total)
        self._check_names(update)
        vector = np.empty(self.length, np.uint32)
        position = 0
        for name in self.layout:
            flat = update[name].detach().to("cpu").reshape(-1)
            end = position + flat.numel()
            self._check_range(name, flat)
            _round_into(vector[position:end], flat, weight / total / self.step(name))
            position = end
        vector[-1] = weight
        return vector

    def decode(self, vector: MaskedVector, total: int) -> tuple[Weights, int]:
        """Return the weighted mean that a sum of vectors stands for, and the sum of weights.

        Raises `BadUpdate` where the weights do not add up: then masks were left in the sum.
        """
        weight = int(vector[-1])
        if len(vector) != self.length or not 1 <= weight <= total:
            raise BadUpdate(
                "the masked updates do not add up: a mask is left in their sum, as if a site had "
                "masked for other sites or another round"
            )
        mean, position = Weights(), 0
        for name, (shape, dtype) in self.layout.items():
            end = position + shape.numel()
            numbers = tensor_of(vector[position:end]).double()
            mean[name] = (numbers * (self.step(name) * (total / weight))).to(dtype).view(shape)
            position = end
        return mean, weight

    def _check_names(self, update: Mapping[str, Tensor]) -> None:
        theirs = {name: (tensor.shape, tensor.dtype) for name, tensor in update.items()}
        if theirs != dict(self.layout):
            names = theirs.keys() | self.layout.keys()
            odd = sorted(name for name in names if theirs.get(name) != self.layout.get(name))
            raise BadUpdate(
                f"'{odd[0]}' is not in the update as it was at the start of the round; with "
                "privacy.secure_sum a site sends the tensors that it started from"
            )

    def _check_range(self, name: str, flat: Tensor) -> None:
        """Refuse what would not fit; a NaN makes both comparisons false."""
        if not flat.numel():
            return
        low, high = (float(end) for end in torch.aminmax(flat))
        bound = 2.0 ** self.exponents[name]
        if not (-bound <= low and high <= bound):
            raise BadUpdate(
                f"'{name}' holds numbers from {low:g} to {high:g}; privacy.secure_sum adds up "
                f"numbers from {-bound:g} to {bound:g}, 1024 times the largest at the start of "
                "the round: lower training.learning_rate, or train without secure_sum",
                safe=phrase(
                    "a tensor of its update holds numbers that are not finite or more than 1024 "
                    "times the largest at the start of the round, which privacy.secure_sum cannot "
                    "add up; lower training.learning_rate"
                ),
            )


def tensor_of(vector: MaskedVector) -> Tensor:
    """Return the vector as a tensor of int32 in the same memory, in which form it travels."""
    return torch.from_numpy(vector.view(np.int32))  # pyright: ignore[reportUnknownMemberType]


def vector_of(tensor: Tensor) -> MaskedVector:
    """Return a tensor of int32 as a vector in the same memory."""
    return tensor.numpy().view(np.uint32)


def _exponent(name: str, tensor: Tensor) -> int:
    if not tensor.is_floating_point():
        raise BadUpdate(f"'{name}' is of {tensor.dtype}; privacy.secure_sum adds up real numbers")
    largest = float(tensor.detach().abs().max()) if tensor.numel() else 0.0
    if not largest < float("inf"):
        raise BadUpdate(f"'{name}' is not finite at the start of the round")
    return max(ceil(log2(largest)) if largest else _LEAST, _LEAST) + _GROWTH


def _check_weight(weight: int, total: int) -> None:
    if not 1 <= weight <= total <= LARGEST_TOTAL:
        raise BadUpdate(
            f"a site of weight {weight} in a total of {total}: the weight must be from 1 to the "
            f"total, and the total at most {LARGEST_TOTAL}"
        )


def _round_into(vector: MaskedVector, flat: Tensor, scale: float) -> None:
    """Round block by block, so that a block's float64 fits in the cache."""
    integers = tensor_of(vector)
    for start in range(0, len(vector), _BLOCK):
        block = slice(start, start + _BLOCK)
        integers[block] = (flat[block].double() * scale).round_().to(torch.int32)
