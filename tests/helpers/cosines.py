"""A round whose updates were compared, every pair of sites alike."""

from collections.abc import Sequence
from itertools import combinations

from grandrounds.core.events import UpdatesCompared
from tests.helpers.run_folders import SITES


def angles_of(sites: Sequence[str], value: float) -> dict[tuple[str, str], float]:
    """The same cosine for every pair of sites."""
    return dict.fromkeys(combinations(sites, 2), value)


def compared(round: int, **groups: float) -> UpdatesCompared:
    """A round in which all pairs of sites have one cosine in each group."""
    cosines: dict[str, dict[str, dict[str, float]]] = {}
    for group, value in groups.items():
        rows = cosines.setdefault(group, {})
        for first, second in combinations(SITES, 2):
            rows.setdefault(first, {})[second] = value
    return UpdatesCompared(round, cosines)
