"""Means get intervals here, and paired differences tests; the unit of all is the patient.

Intervals are percentile bootstraps: Efron 1979. Tests are signed-rank tests: Wilcoxon 1945. Several
of them are corrected together: Holm 1979.
"""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from statistics import fmean, stdev
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import stats  # pyright: ignore[reportMissingTypeStubs]

LEVEL = 95  # per cent
ALPHA = 0.05
_RESAMPLES = 5000
_REMEMBERED = 4096  # intervals, and tests: a page tells most of them in several places
SEED = 1  # of the resampling: the same scores give the same interval
FEWEST = 6  # with fewer, the signed-rank test cannot reach ALPHA, whatever they are: 2 / 2**5
Key = TypeVar("Key")
Each = TypeVar("Each", bound="Compared")
_Values = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """The bootstrap interval of a mean at `LEVEL`."""

    low: float
    high: float

    @property
    def clear(self) -> bool:
        """Tell whether the interval excludes zero."""
        return self.low > 0 or self.high < 0


def interval(strata: Sequence[Sequence[float]]) -> Interval | None:
    """Return the interval of the mean of the strata's means, drawing within each stratum.

    None where a stratum has a single value. One stratum is the plain bootstrap of a mean.
    """
    if any(len(values) < 2 for values in strata):
        return None
    return _interval(tuple(tuple(values) for values in strata))


@lru_cache(_REMEMBERED)
def _interval(strata: tuple[tuple[float, ...], ...]) -> Interval:
    samples = [np.asarray(values, np.float64) for values in strata]
    return bootstrap(samples, _mean_of_means, resamples=_RESAMPLES)


def bootstrap(
    samples: Sequence[NDArray[np.generic]], statistic: Callable[..., object], *, resamples: int
) -> Interval:
    """Return the percentile interval of a statistic, drawing within each sample with replacement.

    Draws for which the statistic is nan are left out.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)  # of any nan
        found = stats.bootstrap(  # pyright: ignore[reportUnknownMemberType]
            samples,
            statistic,
            n_resamples=resamples,
            method="percentile",
            rng=np.random.default_rng(SEED),
        ).bootstrap_distribution
    tail = (1 - LEVEL / 100) / 2
    low, high = stats.quantile(found, [tail, 1 - tail], nan_policy="omit")  # pyright: ignore[reportUnknownMemberType]
    return Interval(float(low), float(high))


@dataclass(frozen=True)
class Spread:
    """A mean, the standard deviation (none for a single value), the number, and the interval."""

    mean: float
    sd: float | None
    n: int
    interval: Interval | None = None


@dataclass(frozen=True)
class PairedDifference:
    """Differences between two arms on the same patients; above 0 the first arm is better."""

    mean: float
    n: int
    better: int  # patients for whom the first arm is better
    interval: Interval | None
    p: float | None  # two-sided; None where there are too few patients

    def clear(self, p: float | None) -> bool:
        """Tell whether the interval excludes zero, and this corrected p-value is below `ALPHA`."""
        return p is not None and p < ALPHA and self.interval is not None and self.interval.clear


def spread(values: Sequence[float]) -> Spread:
    """Return the spread of one value a patient; an interval needs two values."""
    sd = stdev(values) if len(values) > 1 else None
    return Spread(fmean(values), sd, len(values), interval([values]))


def _mean_of_means(*strata: _Values, axis: int = -1) -> _Values:
    return np.mean([values.mean(axis=axis) for values in strata], axis=0)


def signed_rank(differences: Sequence[float]) -> float | None:
    """Return the two-sided p of Wilcoxon's signed-rank test; None for fewer than `FEWEST`.

    Differences of zero are left out, as Wilcoxon did. Exact where scipy can be exact.
    """
    differing = tuple(value for value in differences if value)
    return None if len(differing) < FEWEST else _wilcoxon(differing)


@lru_cache(_REMEMBERED)
def _wilcoxon(differences: tuple[float, ...]) -> float:
    _, p = stats.wilcoxon(differences)  # pyright: ignore
    return float(p)  # pyright: ignore[reportArgumentType]


def paired(strata: Sequence[Sequence[float]]) -> PairedDifference:
    """Compare two arms by their differences per patient, in strata of equal weight."""
    pooled = [value for values in strata for value in values]
    return PairedDifference(
        mean=fmean(fmean(values) for values in strata),
        n=len(pooled),
        better=sum(value > 0 for value in pooled),
        interval=interval(strata),
        p=signed_rank(pooled),
    )


@dataclass(frozen=True, kw_only=True)
class Compared:
    """A paired comparison that is one of a family.

    `corrected` is the p-value after the correction for all of them; None where there is no test.
    """

    paired: PairedDifference
    corrected: float | None = None

    @property
    def clear(self) -> bool:
        """Tell whether both the interval and the corrected test are clear."""
        return self.paired.clear(self.corrected)


def holm(tests: Mapping[Key, float | None]) -> dict[Key, float | None]:
    """Correct a family of p-values by Holm's step-down rule; None stays None."""
    made = sorted((p, place) for place, p in enumerate(tests.values()) if p is not None)
    corrected: dict[int, float] = {}
    highest = 0.0
    for rank, (p, place) in enumerate(made):
        highest = max(highest, min(1.0, p * (len(made) - rank)))
        corrected[place] = highest
    return {key: corrected.get(place) for place, key in enumerate(tests)}


def together(family: Iterable[Each]) -> list[Each]:
    """Correct the tests of a family of comparisons together, by Holm's rule."""
    found = list(family)
    corrected = holm({place: each.paired.p for place, each in enumerate(found)})
    return [replace(each, corrected=corrected[place]) for place, each in enumerate(found)]
