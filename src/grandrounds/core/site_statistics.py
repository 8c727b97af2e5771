"""What a site tells of its data before anyone trains: counts and distributions, never of a few.

Values alone, so that a coordinator can hold them against a study, and a page show them. The rule by
which they are made is in `data.disclosure`.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

from grandrounds.core.serialization import from_plain

EVERYONE_HERE = "patients"  # the group of all of a site's patients
HISTOGRAM_BINS = 20  # of intensities from 0 to 1
SHARE_STEP = 0.005  # to which shares in a histogram are rounded


@dataclass(frozen=True)
class QuantileBin:
    """A bin, from `low` to below `high`, in which a quantile of people's values lies.

    `share` is 0.05, 0.25, 0.5, 0.75 or 0.95. The outer two have at least the floor's number of
    people on their outer side.
    """

    share: float
    low: float
    high: float


Quantiles: TypeAlias = tuple[QuantileBin, ...]


@dataclass(frozen=True)
class SiteStatistics:
    """A site's answer; None is told of fewer people than the floor, whatever their number.

    `counts` maps `EVERYONE_HERE`, contrasts, masks, variables and tasks to people, and `unmet` an
    element of the study, then a group, to those who do not meet it: multiples of the floor.
    `quantiles` maps a quantity, such as "echo_time", then a contrast, mask or variable; `kinds` a
    quality, such as "sequence", then a contrast, to the kinds that at least so many people have.
    `histograms` maps a contrast to the shares of equal bins from 0 to 1, in which everyone weighs
    the same.
    """

    site: str
    floor: int
    simulated: bool
    counts: Mapping[str, int | None]
    unmet: Mapping[str, Mapping[str, int | None]]
    quantiles: Mapping[str, Mapping[str, Quantiles | None]]
    kinds: Mapping[str, Mapping[str, tuple[str, ...] | None]]
    histograms: Mapping[str, tuple[float, ...] | None]


def statistics_bytes(answer: SiteStatistics) -> bytes:
    """Return an answer as JSON: what leaves, what a log fingerprints, what is stored."""
    return json.dumps(asdict(answer), allow_nan=False).encode()


def statistics_from(value: Any) -> SiteStatistics:
    """Return the answer that JSON made plain.

    Raises `TypeError` and `KeyError` where it is none; what is in it is not held against a study.
    """
    return from_plain(SiteStatistics, value)
