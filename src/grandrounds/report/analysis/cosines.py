"""The cosines between the sites' updates that a run wrote down are gathered here, arm by arm."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean
from typing import TypeAlias

from grandrounds.report.analysis.arm import Arm
from grandrounds.report.analysis.facts import Facts

ALL_SHARED = "all"  # the group of everything that is shared
NEAR = 0.1  # cosines closer to zero than this are called near zero
SitePair: TypeAlias = tuple[str, str]  # in roster order
Angles: TypeAlias = Mapping[SitePair, float]


@dataclass(frozen=True)
class ComparedUpdates:
    """An arm's cosines: `angles` maps a round and a parameter group to those of each pair of sites.

    They are means over the seeds that have the round.
    """

    arm: Arm
    angles: Mapping[int, Mapping[str, Angles]]

    @property
    def rounds(self) -> tuple[int, ...]:
        """Return the compared rounds, oldest first."""
        return tuple(self.angles)

    @property
    def groups(self) -> tuple[str, ...]:
        """Return the parameter groups, the one of everything last."""
        found = dict.fromkeys(group for each in self.angles.values() for group in each)
        return tuple(sorted(found, key=lambda group: group == ALL_SHARED))

    @property
    def sites(self) -> tuple[str, ...]:
        """Return the sites that were compared, in the study's order."""
        return self.arm.study.sites

    def of(self, round: int, group: str) -> Angles:
        """Return the cosines of a round's pairs in a group; empty where there are none."""
        return self.angles[round].get(group, {})

    def between(self, round: int, group: str, first: str, second: str) -> float | None:
        """Return the cosine of two sites, in any order; None where they were not compared."""
        angles = self.of(round, group)
        return angles.get((first, second), angles.get((second, first)))

    def parts(self, round: int) -> Mapping[str, Angles]:
        """Return a round's cosines by group, without the group that joins the others."""
        found = self.angles[round]
        return {name: each for name, each in found.items() if name != ALL_SHARED} or found


def compared_updates(facts: Facts) -> list[ComparedUpdates]:
    """Return the cosines of the arms that have any."""
    found = [ComparedUpdates(arm, _angles(arm)) for arm in facts.arms]
    return [each for each in found if any(map(any, each.angles.values()))]


def _angles(arm: Arm) -> dict[int, dict[str, Angles]]:
    events = [event for run in arm.runs for event in run.compared]
    rounds = sorted({event.round for event in events})
    by_round = {number: [e.cosines for e in events if e.round == number] for number in rounds}
    groups = dict.fromkeys(group for event in events for group in event.cosines)
    pairs = tuple(combinations(arm.study.sites, 2))
    return {
        number: {
            g: angles for g in groups if (angles := _means([c.get(g, {}) for c in each], pairs))
        }
        for number, each in by_round.items()
    }


def _means(
    seeds: list[Mapping[str, Mapping[str, float]]], pairs: Iterable[SitePair]
) -> dict[SitePair, float]:
    found = {(a, b): [rows[a][b] for rows in seeds if b in rows.get(a, {})] for a, b in pairs}
    return {pair: fmean(each) for pair, each in found.items() if each}


def own_way(angles: Angles) -> float:
    """Return how much of each site's own update a plain mean keeps, on average.

    With N updates of one length that is the mean over sites of d_i . mean(d) / |d_i|^2, which is
    (1 + (N - 1) c) / N by the mean cosine c: 1 / N at right angles, 1 where all agree.
    """
    sites = len({site for pair in angles for site in pair})
    return (1 + (sites - 1) * fmean(angles.values())) / sites
