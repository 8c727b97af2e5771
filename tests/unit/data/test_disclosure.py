"""The attack on what a site tells: neither one answer nor two may tell of a few people."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain, combinations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grandrounds.core.site_statistics import SHARE_STEP, SiteStatistics
from grandrounds.data.disclosure import (
    Nested,
    Release,
    cell_name,
    next_release,
    told_counts,
    told_histogram,
    told_kinds,
    told_quantiles,
)

FLOOR = 3
FEW = set(range(1, FLOOR))


def few(possible: Iterable[int]) -> bool:
    """Tell whether an attacker knows that there are people, and fewer than the floor."""
    return set(possible) <= FEW


# What a person has: which groups he is in.
Kinds = Sequence[frozenset[str]]
CONTRASTS: Kinds = [frozenset(each) for each in (("T1w",), ("T2w",), ("T1w", "T2w", "T1w->T2w"))]
TASK = [("T1w->T2w", "T1w"), ("T1w->T2w", "T2w")]
FINDING: Kinds = [frozenset(each) for each in ((), ("x", "x = 0"), ("x", "x = 1"))]
VALUES = [("x = 0", "x"), ("x = 1", "x")]
CHAIN: Kinds = [frozenset(each) for each in ((), ("a",), ("a", "b"), ("a", "b", "c"))]
LINKS = [("b", "a"), ("c", "b"), ("c", "a")]
UNMET: Kinds = [frozenset(each) for each in (("T1w",), ("T1w", "unmet"))]
APART: Kinds = [frozenset(each) for each in (("T1w",), ("T2w",), ("FLAIR",), ("T1w", "T2w"))]
TASKS: Kinds = [
    frozenset(each)
    for each in (("a",), ("a", "b", "ab"), ("a", "c", "ac"), ("a", "b", "c", "ab", "ac", "abc"))
]
SHARED = [
    *(("ab", "a"), ("ab", "b"), ("ac", "a"), ("ac", "c")),
    *(("abc", "a"), ("abc", "b"), ("abc", "c"), ("abc", "ab"), ("abc", "ac")),
]
MIXED: Kinds = [
    frozenset(each) for each in (("a",), ("a", "x", "x = 0"), ("a", "x", "x = 1"), ("x", "x = 1"))
]
WORLDS: Mapping[str, tuple[Kinds, Sequence[Nested], int]] = {
    "two contrasts and a task": (CONTRASTS, TASK, 12),
    "three contrasts without a task": (APART, [], 8),
    "two tasks, and one that needs all": (TASKS, SHARED, 8),
    "a finding, known or not": (FINDING, VALUES, 12),
    "a finding, known of all": (FINDING[1:], VALUES, 24),
    "a contrast and a finding": (MIXED, VALUES, 8),
    "groups one in another": (CHAIN, LINKS, 8),
    "an element that is not met": (UNMET, [("unmet", "T1w")], 24),
}


def answer_of(kinds: Kinds, nested: Sequence[Nested], numbers: Sequence[int]) -> tuple[object, ...]:
    """What is told of so many people of each kind."""
    people = {f"{k}-{n}": kind for k, kind in enumerate(kinds) for n in range(numbers[k])}
    groups = {
        name: {who for who, has in people.items() if name in has}
        for name in dict.fromkeys(chain(*kinds))
    }
    return tuple(told_counts(groups, nested, FLOOR).items())


@pytest.mark.parametrize("world", WORLDS)
def test_no_counts_of_overlapping_groups_give_away_a_group_of_a_few(world: str):
    kinds, nested, most = WORLDS[world]
    worlds = defaultdict[tuple[object, ...], list[Sequence[int]]](list)
    for numbers in product(range(most + 1), repeat=len(kinds)):
        worlds[answer_of(kinds, nested, numbers)].append(numbers)
    unions = [
        chosen
        for size in range(1, len(kinds) + 1)
        for chosen in combinations(range(len(kinds)), size)
    ]
    given_away = [
        (answer, chosen)
        for answer, numbers in worlds.items()
        for chosen in unions
        if max(map(max, numbers)) < most  # beyond, not all possible worlds were tried
        and few(sum(each[k] for k in chosen) for each in numbers)
    ]
    assert len(worlds) > most
    assert given_away == []


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(*[st.booleans()] * 4), max_size=40))
def test_no_count_is_above_the_truth_or_above_a_larger_group(people: list[tuple[bool, ...]]):
    names = ("a", "b", "c", "d")
    groups = {
        name: {n for n, has in enumerate(people) if all(has[: place + 1])}
        for place, name in enumerate(names)
    }
    nested = [("b", "a"), ("c", "b"), ("d", "c"), ("d", "a")]
    found = told_counts({k: frozenset(map(str, v)) for k, v in groups.items()}, nested, FLOOR)
    told = {name: found[name] or 0 for name in names}
    assert all(told[name] % FLOOR == 0 and told[name] <= len(groups[name]) for name in names)
    assert all(told[small] <= told[large] for small, large in nested)


BINS = (0.0, 1.0, 2.0, 3.0)


def test_no_quantiles_give_away_people_of_whom_there_are_a_few():
    """Of everyone from one bin to another there may always be none, or as many as the floor."""
    worlds = defaultdict[object, list[Sequence[int]]](list)
    most = 8 * FLOOR
    for numbers in product(range(most + 1), repeat=len(BINS) - 1):
        values = [value + 0.5 for value, number in enumerate(numbers) for _ in range(number)]
        told = len(values) // FLOOR * FLOOR
        worlds[told, told_quantiles(values, BINS, told, FLOOR)].append(numbers)
    ranges = [(low, high) for low in range(3) for high in range(low + 1, 4)]
    given_away = [
        (answer, low, high)
        for answer, numbers in worlds.items()
        for low, high in ranges
        if max(map(sum, numbers)) <= most
        and few(sum(each[low:high]) for each in numbers)
        and min(map(sum, numbers)) >= FLOOR  # fewer are no secret that quantiles give away
    ]
    assert len(worlds) > 50
    assert given_away == []


def test_the_attack_finds_what_plain_rounding_gives_away():
    worlds = defaultdict[tuple[int, ...], list[int]](list)
    for without, having in product(range(12), repeat=2):
        numbers = (without + having, without, having)  # known, of whom 0, of whom 1
        worlds[tuple(number // FLOOR * FLOOR for number in numbers)].append(having)
    assert few(worlds[6, 3, 0])


COUNTED = 40  # people who are told of, so that nothing is None for want of others


def without_a_few(number: int) -> tuple[object, ...]:
    """All that is told where so many people, fewer than the floor, differ from all others."""
    odd, rest = [9.0] * number, [1.0] * COUNTED
    many = {f"n{n}" for n in range(COUNTED)}
    shape = np.eye(4)
    return (
        told_counts({"T1w": many, "lesion": {f"o{n}" for n in range(number)}}, [], FLOOR),
        told_quantiles([*rest, *odd], (0.0, 5.0, 10.0), COUNTED, FLOOR),
        told_kinds([*["3D"] * COUNTED, *["2D"] * number], COUNTED, FLOOR),
        told_histogram([*[shape[0]] * COUNTED, *[shape[3]] * number], COUNTED, FLOOR),
        told_quantiles(odd, (0.0, 5.0, 10.0), 0, FLOOR),
        told_histogram([shape[0]] * number, 0, FLOOR),
    )


@pytest.mark.parametrize("number", range(1, FLOOR))
def test_what_is_told_is_the_same_for_a_few_and_for_nobody(number: int):
    assert without_a_few(number) == without_a_few(0)


def test_nothing_is_the_least_or_the_highest_value_of_a_person():
    ends = tuple(float(n) for n in range(41))
    told = told_quantiles([n + 0.5 for n in range(40)], ends, 39, 5)
    assert told
    assert [(each.share, each.low) for each in told] == [
        *((0.05, 4.0), (0.25, 9.0), (0.5, 19.0), (0.75, 29.0), (0.95, 35.0)),
    ]


@pytest.mark.parametrize(("people", "shares"), [(8, 0), (9, 0), (10, 2), (15, 3), (30, 5)])
def test_few_people_have_few_quantiles(people: int, shares: int):
    told = told_quantiles([1.0] * people, (0.0, 2.0), people // 5 * 5, 5)
    assert len(told or ()) == shares


def test_a_histogram_is_a_mean_over_people_without_the_floor_s_number_at_each_end():
    odd, usual = np.array([0.0, 1.0]), np.array([0.756, 0.244])
    told = told_histogram([*[usual] * 8, *[odd] * 2], 9, 3)
    assert told == (0.755, 0.245)
    assert [round(share / SHARE_STEP) * SHARE_STEP for share in told or ()] == pytest.approx(told)


# Two answers of one site.

CELL = cell_name("histograms", "T1w")


def release_of(people: Mapping[str, float]) -> Release:
    """A release whose counts and whose only histogram tell exactly who is in it."""
    told = sum(people.values()) if len(people) >= FLOOR else None
    answer = SiteStatistics(
        *("alder", FLOOR, False, {"T1w": round(told) if told else None}, {}, {}, {}),
        {"T1w": None if told is None else (told,)},
    )
    seen = {who: str(value) for who, value in people.items()}
    return Release("salt", answer, seen, {CELL: seen})


@st.composite
def stories(draw: st.DrawFn) -> list[dict[str, float]]:
    """One site's data on several days: each day one person came, left or has other data."""
    people: dict[str, float] = {}
    days = [dict(people)]
    for _ in range(draw(st.integers(1, 25))):
        who = f"p{draw(st.integers(0, 9))}"
        if who in people and draw(st.booleans()):
            del people[who]
        else:
            people[who] = 2.0 ** draw(st.integers(0, 30))
        days.append(dict(people))
    return days


@settings(max_examples=60, deadline=None)
@given(stories())
def test_no_two_answers_of_one_site_differ_by_fewer_people_than_the_floor(
    days: list[dict[str, float]],
):
    """The attacker asks every day, and compares each answer with the one before it."""
    told: Release | None = None
    last: dict[str, float] = {}
    for people in days:
        now = next_release(release_of(people), told)
        if told and now.answer != told.answer:
            changed = {who for who in {*people, *last} if people.get(who) != last.get(who)}
            assert len(changed) >= FLOOR
        if told is None or now.answer != told.answer or now.people != told.people:
            last = dict(people)
        told = now


def test_a_neighbour_s_dataset_has_the_same_answer():
    people = {f"p{n}": 2.0**n for n in range(6)}
    before = release_of(people)
    for neighbour in (
        {**people, "p6": 64.0},
        {who: people[who] for who in people if who != "p0"},
        {**people, "p0": 1024.0},
    ):
        assert next_release(release_of(neighbour), before) == before


def test_a_distribution_stays_until_so_many_of_its_own_people_have_changed():
    people = {f"p{n}": 2.0**n for n in range(6)}
    before = release_of(people)
    more = {**people, **{f"q{n}": 1.0 for n in range(FLOOR)}}
    everyone = {who: str(value) for who, value in more.items()}
    found = replace(release_of({**people, "q0": 1.0}), people=everyone)
    now = next_release(found, before)
    assert now.answer.counts == found.answer.counts
    assert now.answer.histograms == before.answer.histograms
    assert now.cells == before.cells
    assert next_release(release_of(more), before).answer == release_of(more).answer
