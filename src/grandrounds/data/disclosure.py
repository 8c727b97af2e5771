"""What a site may tell of its people is made here: of no few of them, nor by a difference.

Statistical disclosure control by thresholds, as in Hundepool et al. 2012 (Statistical Disclosure
Control, chapters 4 and 5): a minimum frequency, rounding down, no total that gives away a small
remainder (secondary suppression), trimming in place of extremes. The rule, and what it does not
protect, is in docs/how-to/common-data-elements.md.
"""

import json
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from itertools import combinations
from math import ceil
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from grandrounds.core.site_statistics import (
    EVERYONE_HERE,
    SHARE_STEP,
    QuantileBin,
    Quantiles,
    SiteStatistics,
)

Nested: TypeAlias = tuple[str, str]  # a group, and the larger one that it is a part of
Seen: TypeAlias = Mapping[str, str]  # of each person, by a keyed hash: the digest of what was told
_OUTER, _MIDDLE, _QUARTERS = (0.05, 0.95), (0.5,), (0.25, 0.75)
TOLD_SHARES = (_OUTER, (0.05, 0.5, 0.95), (0.05, 0.25, 0.5, 0.75, 0.95))
_SIDES = 2  # times the floor: from so many on, each side of a quantile has the floor's number
_FOR_MIDDLE, _FOR_QUARTERS = 3, 6  # times the floor


def rounded_down(number: int, step: int) -> int:
    """Return the largest multiple of a step that is not above a number."""
    return number // step * step


def told_counts(
    groups: Mapping[str, Set[str]], nested: Sequence[Nested], floor: int
) -> dict[str, int | None]:
    """Return the number of people in each group, rounded down to a multiple of the floor.

    None stands for fewer than the floor. A group and a larger one that has fewer than the floor's
    number of further people are told as one, since their difference would tell of these; and of two
    groups that have so few people in common, one is told as smaller where their sum would. Of all
    people together no more is told than of the largest group: a sum over all groups would tell who
    is in none of those that are told.
    """
    told = {name: rounded_down(len(people), floor) for name, people in groups.items()}
    pairs = [(small, large, len(groups[large] - groups[small])) for small, large in nested]
    crossings = _crossings(groups, nested, floor)
    settled = False
    while not settled:
        before = dict(told)
        for small, large, beside in pairs:
            told[small] = min(told[small], told[large])
            if beside < floor:
                told[large] = told[small]
        for one, other, all in crossings:
            if told[one] + told[other] > told[all] + floor - 1:
                told[min(one, other, key=told.__getitem__)] -= floor
        settled = told == before
    parts = {small for small, _ in nested}
    whole = max((number for name, number in told.items() if name not in parts), default=0)
    return {EVERYONE_HERE: whole or None} | {name: number or None for name, number in told.items()}


def _crossings(
    groups: Mapping[str, Set[str]], nested: Sequence[Nested], floor: int
) -> list[tuple[str, str, str]]:
    """List pairs of groups with a part in common that is too small, each with one that holds both.

    The number of people in both is at least the sum of the two less that of the third.
    """
    above: dict[str, list[str]] = {}
    for small, large in nested:
        above.setdefault(small, []).append(large)
    pairs = dict.fromkeys(pair for larger in above.values() for pair in combinations(larger, 2))
    return [
        (one, other, all)
        for one, other in pairs
        if len(groups[one] & groups[other]) < floor
        for all in above.get(one, ())
        if all in above.get(other, ())
    ]


def _answers(people: int, known: int, floor: int) -> int:
    """Return for how many people a distribution is told: none beyond those who are counted."""
    return min(rounded_down(known, floor), people)


def told_quantiles(
    values: Sequence[float], edges: Sequence[float], people: int, floor: int
) -> Quantiles | None:
    """Return in which bins the quantiles of people's values lie, None for too few people.

    `people` is the count that is told of their group. Outer quantiles lie at least the floor's
    number of people inside, so that whatever fewer people have changes nothing.
    """
    told = _answers(people, len(values), floor)
    if told < _SIDES * floor:
        return None
    ordered, number = sorted(values), len(values)
    middle, quarters = told >= _FOR_MIDDLE * floor, told >= _FOR_QUARTERS * floor
    shares = sorted((*_OUTER, *(_MIDDLE * middle), *(_QUARTERS * quarters)))
    ranks = [min(max(ceil(share * number), floor), number - floor + 1) for share in shares]
    return tuple(
        QuantileBin(share, *bin_of(ordered[rank - 1], edges))
        for share, rank in zip(shares, ranks, strict=True)
    )


def bin_of(value: float, edges: Sequence[float]) -> tuple[float, float]:
    """Return the ends of the bin that a value lies in; what lies outside is in the last one."""
    place = min(max(bisect_right(edges, value), 1), len(edges) - 1)
    return edges[place - 1], edges[place]


def told_kinds(kinds: Sequence[str], people: int, floor: int) -> tuple[str, ...] | None:
    """Return the kinds that at least the floor's number of people have; None for too few people."""
    if _answers(people, len(kinds), floor) < _SIDES * floor:
        return None
    return tuple(sorted(kind for kind, number in Counter(kinds).items() if number >= floor))


def told_histogram(
    shares: Sequence[NDArray[np.float64]], people: int, floor: int
) -> tuple[float, ...] | None:
    """Return people's mean share of each bin, None for too few people.

    In each bin the floor's number less one of the lowest shares is left out, and as many of the
    highest: a trimmed mean, to which whatever fewer people have that nobody else has adds nothing.
    """
    if _answers(people, len(shares), floor) < _SIDES * floor:
        return None
    ordered = np.sort(np.stack(shares), axis=0)
    mean = ordered[floor - 1 : len(shares) - floor + 1].mean(axis=0)
    return tuple(round(float(share), 3) for share in np.rint(mean / SHARE_STEP) * SHARE_STEP)


@dataclass(frozen=True)
class Release:
    """An answer, and by keyed hashes whose data it was made of; it stays at the site.

    `people` are all, `cells` those of each distribution.
    """

    salt: str
    answer: SiteStatistics
    people: Seen
    cells: Mapping[str, Seen]


def cell_name(*words: str) -> str:
    """Return the name of a distribution in a release."""
    return json.dumps(words)


def next_release(found: Release, before: Release | None) -> Release:
    """Return what is told now: what was told before, until the floor's number of people changed.

    Who came, left, or has other data has changed. The same holds of each distribution, so that no
    difference of two answers is about fewer people.
    """
    floor = found.answer.floor
    if before is None:
        return found
    if _changed(before.people, found.people) < floor:
        return before
    answer, cells = found.answer, dict(found.cells)
    for name in found.cells:
        kept = _cell(before.answer, name)
        seen: Seen = before.cells.get(name, {}) if kept is not None else {}
        if _changed(seen, found.cells[name]) < floor:
            answer, cells[name] = _with_cell(answer, name, kept), before.cells.get(name, {})
    return replace(found, answer=answer, cells=cells)


def _changed(before: Seen, now: Seen) -> int:
    return sum(before.get(person) != now.get(person) for person in {*before, *now})


def _cell(answer: SiteStatistics, name: str) -> Any:
    found: Any = answer
    part, *path = json.loads(name)
    found = getattr(answer, part)
    for word in path:
        found = found[word]
    return found


def _with_cell(answer: SiteStatistics, name: str, value: Any) -> SiteStatistics:
    part, *path = json.loads(name)
    return replace(answer, **{part: _put(getattr(answer, part), path, value)})


def _put(table: Mapping[str, Any], path: Sequence[str], value: Any) -> dict[str, Any]:
    first, *rest = path
    return {**table, first: _put(table[first], rest, value) if rest else value}
