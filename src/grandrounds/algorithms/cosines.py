"""Cosines between the sites' updates of a round say who pulls against whom."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations, combinations_with_replacement
from math import fsum, sqrt
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from grandrounds.core.messages import Reply
from grandrounds.core.weights import Weights

Products: TypeAlias = Mapping[tuple[str, str], float]  # of two sites' updates of one tensor


def update_cosines(
    start: Weights, replies: Sequence[Reply], groups: Mapping[str, frozenset[str]]
) -> dict[str, dict[str, dict[str, float]]]:
    """Map each group and pair of sites, in roster order, to the cosine between their updates.

    A site's update of a tensor is what it replied less `start`, what all were sent; `groups` name
    tensors. A pair is compared, in float64, over the tensors that both use. A pair without any, or
    one of whose sites moved nothing, has no cosine.
    """
    tensors = dict.fromkeys(name for names in groups.values() for name in names)
    products = {name: _products(start, replies, name) for name in tensors}
    sites = [reply.site for reply in replies]
    return {
        group: _by_pair(sites, [products[name] for name in sorted(names)])
        for group, names in groups.items()
    }


def _products(start: Weights, replies: Sequence[Reply], name: str) -> Products:
    """Return the inner product of each two sites' updates of a tensor, and of each with itself."""
    users = [reply for reply in replies if name in reply.weights]
    moves = {reply.site: _move(start, reply, name) for reply in users}
    pairs = combinations_with_replacement(moves, 2)
    # Unlike a BLAS, einsum adds up in one thread: however many there are, the bits are the same.
    # The rest is NumPy's, too: starting threads for so little work costs more than it saves.
    return {(a, b): float(np.einsum("i,i", moves[a], moves[b])) for a, b in pairs}


def _move(start: Weights, reply: Reply, name: str) -> NDArray[np.float64]:
    move = np.subtract(reply.weights[name].numpy(), start[name].numpy(), dtype=np.float64)
    return move.reshape(-1)


def _by_pair(sites: Sequence[str], products: Sequence[Products]) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for first, second in combinations(sites, 2):
        common = [each for each in products if (first, second) in each]
        cosine = _cosine(*(_total(common, *pair) for pair in _sides(first, second)))
        if cosine is not None:
            found.setdefault(first, {})[second] = cosine
    return found


def _sides(first: str, second: str) -> tuple[tuple[str, str], ...]:
    return (first, second), (first, first), (second, second)


def _total(products: Iterable[Products], first: str, second: str) -> float:
    return fsum(each[first, second] for each in products)


def _cosine(product: float, first: float, second: float) -> float | None:
    """Return the cosine by an inner product and two squared lengths; None where one is zero."""
    length = sqrt(first * second)
    return max(-1.0, min(1.0, product / length)) if length else None
