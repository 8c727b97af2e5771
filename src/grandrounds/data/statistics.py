"""A site's statistics are made of its people's data, and held against what a study asks for."""

import hmac
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from itertools import pairwise, product
from math import isfinite
from typing import Any, TypeAlias, cast

import numpy as np

from grandrounds.core.site_statistics import (
    EVERYONE_HERE,
    HISTOGRAM_BINS,
    SHARE_STEP,
    Quantiles,
    SiteStatistics,
)
from grandrounds.data.acquisition import FAMILIES
from grandrounds.data.availability import needs
from grandrounds.data.disclosure import (
    TOLD_SHARES,
    Nested,
    Release,
    Seen,
    cell_name,
    told_counts,
    told_histogram,
    told_kinds,
    told_quantiles,
)
from grandrounds.data.elements import Elements
from grandrounds.data.people import MIXED, People, data_names, values_of
from grandrounds.data.requirements import counted_groups, people_in, requirements_of

CellKey: TypeAlias = tuple[str, ...]  # a kind of distribution, a quantity, and at last a group
_MOST_PEOPLE = 10**7  # that a site may say it has
_SUM = 0.2  # that rounded and trimmed shares may be away from 1


def _steps(*parts: tuple[float, float, float]) -> tuple[float, ...]:
    """Return the ends of bins: from, to, and step of each part."""
    ends = [
        round(low + step * number, 6)
        for low, high, step in parts
        for number in range(round((high - low) / step))
    ]
    return (*ends, parts[-1][1])


def _decades(digits: Sequence[float], low: int, high: int) -> tuple[float, ...]:
    return tuple(round(digit * 10.0**power, 9) for power in range(low, high) for digit in digits)


_LENGTHS = _steps((0, 2, 0.25), (2, 5, 0.5), (5, 10, 1), (10, 50, 10))
_TIMES = _decades((1, 1.5, 2, 3, 4, 5, 6, 8), 0, 5)
_DIGITS = _decades(range(1, 10), -6, 9)
_PIXELS = _steps((0, 512, 32), (512, 2048, 256))
_OF_VOLUMES: Mapping[str, tuple[float, ...]] = {
    "repetition_time": _TIMES,
    "echo_time": _TIMES,
    "inversion_time": _TIMES,
    "flip_angle": _steps((0, 30, 5), (30, 90, 10), (90, 360, 45)),
    "field_strength": (0.01, 0.3, 0.8, 1.2, 1.8, 2.5, 3.5, 5.0, 6.0, 8.0, 12.0),
    "spacing_rows": _LENGTHS,
    "spacing_columns": _LENGTHS,
    "spacing_through": _LENGTHS,
    "rows": _PIXELS,
    "columns": _PIXELS,
    "slices": _steps((0, 100, 10), (100, 500, 50), (500, 1000, 100)),
}
_SESSIONS = (1.0, 2.0, 3.0, 5.0, 10.0, 20.0, 100.0)
_MILLILITRES = (0.0, *_decades((1, 2, 5), -3, 4))
_VALUES = (*(-end for end in reversed(_DIGITS)), 0.0, *_DIGITS)  # one significant digit
KIND_WORDS: Mapping[str, tuple[str, ...]] = {
    "sequence": (*FAMILIES, MIXED),
    "dimensions": ("2D", "3D", MIXED),
    "contrast_agent": ("given", "not given", MIXED),
    "orientation": ("axial", "coronal", "sagittal", MIXED),
}


@dataclass(frozen=True)
class StatisticsPlan:
    """What a study asks of one site's statistics; its keys depend on the study alone."""

    elements: Elements
    tasks: tuple[str, ...]

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Return the study's contrasts, masks and variables."""
        return data_names(self.elements, self.tasks)

    @cached_property
    def variables(self) -> tuple[str, ...]:
        """Return those that are numbers of a person."""
        return tuple(n for n in self.names if n in ("age", *self.elements.variables))

    @cached_property
    def masks(self) -> tuple[str, ...]:
        """Return those that are neither contrasts nor variables."""
        images = (*self.elements.contrasts, *self.variables)
        return tuple(name for name in self.names if name not in images)

    @cached_property
    def groups(self) -> tuple[str, ...]:
        """Return the names of all groups whose people are counted."""
        return tuple(counted_groups(self.elements.variables, self.names, self.tasks))

    @cached_property
    def quantities(self) -> Mapping[str, tuple[tuple[str, ...], tuple[float, ...]]]:
        """Return, for each quantity, its groups and the ends of its bins."""
        contrasts = self.elements.contrasts
        found = {name: (contrasts, ends) for name, ends in _OF_VOLUMES.items()}
        return found | {
            "sessions": ((EVERYONE_HERE,), _SESSIONS),
            "label_volume": (self.masks, _MILLILITRES),
            "value": (self.variables, _VALUES),
        }

    def nested(self) -> list[Nested]:
        """Return each group that is a part of another one by what the study says."""
        pairs = [(task, name) for task in self.tasks for name in needs(task) if name in self.names]
        pairs += [
            (small, large)
            for small, large in product(self.tasks, repeat=2)
            if set(needs(small)) > set(needs(large))
        ]
        pairs += [(value, name) for name in self.elements.variables for value in values_of(name)]
        return pairs

    @property
    def unmet(self) -> dict[str, tuple[str, ...]]:
        """Return the groups for each element of the study that asks something of them."""
        found: dict[str, list[str]] = {}
        for each in requirements_of(self.elements):
            found.setdefault(each.element, []).append(each.group)
        return {element: tuple(groups) for element, groups in found.items()}


def site_release(
    plan: StatisticsPlan, site: str, people: People, *, simulated: bool, salt: str
) -> Release:
    """Return what a site's first answer is, and by hashes under `salt` whose data it is made of."""
    floor = plan.elements.least
    groups = people_in(people, plan.groups)
    lacking = {
        (each.element, each.group): each.unmet(people) & groups[each.group]
        for each in requirements_of(plan.elements)
    }
    named = {cell_name(*key): who for key, who in lacking.items()}
    nested = [*plan.nested(), *((cell_name(*key), key[1]) for key in lacking)]
    told = told_counts({**groups, **named}, nested, floor)
    cells = _cells(plan, people)
    answer = SiteStatistics(
        site=site,
        floor=floor,
        simulated=simulated,
        counts={name: told[name] for name in (EVERYONE_HERE, *plan.groups)},
        unmet={
            element: {group: told[cell_name(element, group)] for group in of}
            for element, of in plan.unmet.items()
        },
        **_distributions(plan, cells, told),
    )
    return _release(answer, people, cells, lacking, salt)


def _distributions(
    plan: StatisticsPlan, cells: Mapping[CellKey, Mapping[str, Any]], told: Mapping[str, int | None]
) -> dict[str, Any]:
    """Return the part of an answer that is more than counts."""
    floor, contrasts = plan.elements.least, plan.elements.contrasts

    def values(*cell: str) -> tuple[list[Any], int]:
        return list(cells[cell].values()), told[cell[-1]] or 0

    return {
        "quantiles": {
            name: {g: _quantiles(*values("quantiles", name, g), ends, floor) for g in groups}
            for name, (groups, ends) in plan.quantities.items()
        },
        "kinds": {
            name: {g: told_kinds(*values("kinds", name, g), floor) for g in contrasts}
            for name in KIND_WORDS
        },
        "histograms": {g: told_histogram(*values("histograms", g), floor) for g in contrasts},
    }


def _quantiles(
    values: list[float], people: int, ends: Sequence[float], floor: int
) -> Quantiles | None:
    return told_quantiles(values, ends, people, floor)


def _cells(plan: StatisticsPlan, people: People) -> dict[CellKey, dict[str, Any]]:
    """Return, for each distribution, the value of each person who has one."""
    cells: dict[CellKey, dict[str, Any]] = {}
    for name, (groups, _) in plan.quantities.items():
        for group in groups:
            cells["quantiles", name, group] = {
                who: p.numbers[name][group]
                for who, p in people.items()
                if group in p.numbers.get(name, {})
            }
    for name, group in product(KIND_WORDS, plan.elements.contrasts):
        cells["kinds", name, group] = {
            who: p.kinds[name][group] for who, p in people.items() if group in p.kinds.get(name, {})
        }
    for group in plan.elements.contrasts:
        cells["histograms", group] = {
            who: p.histograms[group] for who, p in people.items() if group in p.histograms
        }
    return cells


def _release(
    answer: SiteStatistics,
    people: People,
    cells: Mapping[CellKey, Mapping[str, Any]],
    lacking: Mapping[tuple[str, str], frozenset[str]],
    salt: str,
) -> Release:
    hashed = {who: hmac.new(salt.encode(), who.encode(), "sha256").hexdigest() for who in people}

    def seen(values: Mapping[str, object]) -> Seen:
        return {hashed[who]: _digest(value) for who, value in values.items()}

    everything = {
        who: (
            sorted(person.groups),
            sorted(key for key, members in lacking.items() if who in members),
            [_digest(values[who]) for values in cells.values() if who in values],
        )
        for who, person in people.items()
    }
    made_of = {cell_name(*key): seen(values) for key, values in cells.items()}
    return Release(salt, answer, seen(everything), made_of)


def _digest(value: object) -> str:
    plain = cast(Any, value).tolist() if isinstance(value, np.ndarray) else value
    return sha256(repr(plain).encode()).hexdigest()


def problem_in_statistics(answer: SiteStatistics, plan: StatisticsPlan, site: str) -> str:
    """Return what in an answer is not what a study asks this site for; empty if nothing."""
    floor = plan.elements.least
    if answer.site != site:
        return "its statistics bear the name of another site"
    if answer.floor != floor:
        return f"its statistics are of at least {answer.floor} people; the study says {floor}"
    shapes = (
        (answer.counts, dict.fromkeys((EVERYONE_HERE, *plan.groups))),
        (answer.unmet, plan.unmet),
        (answer.quantiles, {name: groups for name, (groups, _) in plan.quantities.items()}),
        (answer.kinds, dict.fromkeys(KIND_WORDS, plan.elements.contrasts)),
        (answer.histograms, dict.fromkeys(plan.elements.contrasts)),
    )
    if not all(_shaped(table, asked) for table, asked in shapes):
        return "its statistics are of other groups than the study's"
    numbers = [*answer.counts.values(), *(n for of in answer.unmet.values() for n in of.values())]
    if any(n is not None and not _is_count(n, floor) for n in numbers):
        return f"a count in its statistics is no multiple of {floor} people"
    return _wrong_distribution(answer, plan)


def _shaped(table: Mapping[str, Any], asked: Mapping[str, Iterable[str] | None]) -> bool:
    if list(table) != list(asked):
        return False
    return all(of is None or list(table[name]) == list(of) for name, of in asked.items())


def _is_count(number: int, floor: int) -> bool:
    return floor <= number <= _MOST_PEOPLE and number % floor == 0


def _wrong_distribution(answer: SiteStatistics, plan: StatisticsPlan) -> str:
    for name, (_, ends) in plan.quantities.items():
        if any(of and not _in_bins(of, ends) for of in answer.quantiles[name].values()):
            return f"the quantiles of {name} in its statistics lie in no bins of this version"
    for name, known in KIND_WORDS.items():
        if any(of and not set(of) <= set(known) for of in answer.kinds[name].values()):
            return f"a word in its statistics is none for {name}"
    if any(of and not _is_histogram(of) for of in answer.histograms.values()):
        return "a histogram in its statistics is none"
    return ""


def _in_bins(found: Quantiles, ends: Sequence[float]) -> bool:
    bins = set(pairwise(ends))
    lows = [each.low for each in found]
    return (
        tuple(each.share for each in found) in TOLD_SHARES
        and all((each.low, each.high) in bins for each in found)
        and lows == sorted(lows)
    )


def _is_histogram(shares: Sequence[float]) -> bool:
    stepped = [round(share / SHARE_STEP) * SHARE_STEP for share in shares]
    return (
        len(shares) == HISTOGRAM_BINS
        and all(isfinite(share) and 0 <= share <= 1 for share in shares)
        and all(abs(a - b) < 1e-9 for a, b in zip(shares, stepped, strict=True))
        and sum(shares) <= 1 + _SUM
    )
