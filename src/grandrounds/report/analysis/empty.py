"""Test cases whose mask shows nothing of a structure are counted apart from those with an outline.

Where nothing is to be drawn, Dice is 1 if nothing was drawn and 0 otherwise: it says nothing of
outlines, and a mean that holds many such cases looks better, or worse, than the outlines are.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from grandrounds.report.analysis.folder import CaseRow

_EMPTY, _DICE = "empty", "dice"


@dataclass(frozen=True)
class EmptyCases:
    """The Dice of each test case with an empty structure, and of each without one."""

    empty: tuple[float, ...]
    others: tuple[float, ...]

    @property
    def total(self) -> int:
        """Count all test cases."""
        return len(self.empty) + len(self.others)

    @property
    def mean(self) -> float:
        """Return the mean Dice of the cases with an empty structure."""
        return fmean(self.empty)

    @property
    def mean_of_others(self) -> float | None:
        """Return the mean Dice of all other cases; None where there are none."""
        return fmean(self.others) if self.others else None


def empty_cases(cases: Iterable[CaseRow]) -> EmptyCases | None:
    """Part test cases by whether a structure of theirs is empty; None where no case has one."""
    values: dict[tuple[str, str, str, str], dict[str, float]] = defaultdict(dict)
    for case in cases:
        values[case.site, case.task, case.patient, case.case][case.metric] = case.value
    scored = [each for each in values.values() if _DICE in each]
    return _parted(
        [each[_DICE] for each in scored if each.get(_EMPTY)],
        [each[_DICE] for each in scored if not each.get(_EMPTY)],
    )


def merged_empty(found: Sequence[EmptyCases | None]) -> EmptyCases | None:
    """Put the cases of several seeds together."""
    known = [each for each in found if each]
    return _parted(
        [value for each in known for value in each.empty],
        [value for each in known for value in each.others],
    )


def _parted(empty: Sequence[float], others: Sequence[float]) -> EmptyCases | None:
    return EmptyCases(tuple(empty), tuple(others)) if empty else None
