"""A site that sends a harmful update is left out, or at least told of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import exp, log
from statistics import median as middle
from typing import cast

import torch

from grandrounds.core.errors import RunFailed
from grandrounds.core.messages import Reply
from grandrounds.core.weights import Weights, select

FLAGGED = 3.5  # robust z-score from which a norm is unusual: Iglewicz and Hoaglin 1993
_SPREAD = 0.3  # least scale of a logarithm: within a factor of 2.9 no norm is unusual
_FEWEST = 3  # norms that a norm is compared with
_SCALE = 1.4826  # from the median absolute deviation to a normal distribution's standard deviation


def fewest_updates(faulty: int) -> int:
    """Return how many updates multi-Krum needs where so many sites may be faulty: n >= 2f + 3.

    Blanchard et al. 2017, proposition 4.2.
    """
    return 2 * faulty + 3


def krum_chosen(updates: Sequence[Weights], faulty: int) -> list[int]:
    """Return which updates multi-Krum averages, in the order given: n - f of them.

    Those are the ones that are nearest, in the sum of squared distances, to their n - f - 2 nearest
    others; equals by their order. Distances are over the tensors that all have, in float64. Raises
    `RunFailed` where updates are too few. Blanchard et al. 2017, section 4.
    """
    count, least = len(updates), fewest_updates(faulty)
    if count < least:
        raise RunFailed(
            f"multi-Krum needs 2 f + 3 = {least} updates where f = {faulty} may be faulty, and "
            f"{count} came; lower aggregation.faulty, or let more sites take part"
        )
    apart, scores = _squared_distances(updates), list[float]()
    for number, row in enumerate(cast(list[list[float]], apart.tolist())):  # pyright: ignore[reportUnknownMemberType]
        others = sorted(row[:number] + row[number + 1 :])
        scores.append(sum(others[: count - faulty - 2]))
    nearest = sorted(range(count), key=lambda number: (scores[number], number))
    return sorted(nearest[: count - faulty])


def _squared_distances(updates: Sequence[Weights]) -> torch.Tensor:
    """Return the squared distance between any two updates, (N, N).

    They are taken from the first: differences of large numbers would be lost in a product.
    """
    products = torch.zeros(len(updates), len(updates), dtype=torch.float64)
    for name, first in updates[0].items():
        if not first.is_floating_point() or any(name not in update for update in updates):
            continue
        rows = torch.stack([(update[name].double() - first.double()).ravel() for update in updates])
        products += rows @ rows.T
    squares = products.diagonal()
    return (squares[:, None] + squares[None, :] - 2 * products).clamp(min=0.0)


def update_norms(before: Weights, replies: Sequence[Reply]) -> dict[str, float]:
    """Return how far each site moved the model from where the round began: the L2 norm.

    It is over the floating tensors that the site sends of the model; sets beside it do not count.
    """
    return {reply.site: _norm(before, reply.weights) for reply in replies}


def _norm(before: Weights, after: Weights) -> float:
    total = 0.0
    for name, old in select(before, after.__contains__).items():
        if old.is_floating_point():
            move = (after[name] - old).ravel()
            total += float(move.double().square().sum())
    return total**0.5


@dataclass
class NormWatch:
    """Notices updates that are much longer or shorter than usual.

    The logarithm of a norm is held against those of the other sites in the round, and against the
    site's own of earlier rounds, by a robust z-score: the distance from the median, over the median
    absolute deviation scaled to a standard deviation. It notices a scaled update; one that only
    points the wrong way is as long as any other.
    """

    _earlier: dict[str, list[float]] = field(default_factory=dict[str, list[float]], init=False)

    def unusual(self, norms: Mapping[str, float]) -> dict[str, str]:
        """Map each site with an unusual norm to a sentence about it, and remember all norms."""
        logs = {site: log(max(norm, 1e-300)) for site, norm in norms.items()}
        found: dict[str, str] = {}
        for site, own in logs.items():
            others = [other for name, other in logs.items() if name != site]
            reasons = [
                _odd(own, others, "the other sites'"),
                _odd(own, self._earlier.get(site, []), "its own of earlier rounds"),
            ]
            if told := [reason for reason in reasons if reason]:
                found[site] = f"its update is {' and '.join(told)}"
        for site, own in logs.items():
            if site not in found:  # what was unusual does not become usual
                self._earlier.setdefault(site, []).append(own)
        return found


def _odd(own: float, known: Sequence[float], whose: str) -> str:
    """Say how far a logarithm is from others; empty where it is not far, or they are too few."""
    if len(known) < _FEWEST:
        return ""
    centre = middle(known)
    spread = max(_SCALE * middle([abs(each - centre) for each in known]), _SPREAD)
    score = (own - centre) / spread
    if abs(score) < FLAGGED:
        return ""
    return f"{exp(min(own - centre, 700)):.3g} times as long as {whose} (z {score:.1f})"
