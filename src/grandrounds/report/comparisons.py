"""Arms against each other on the same patients and seeds; tests are corrected together."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from grandrounds.report.arm import Arm
from grandrounds.report.metrics import Metric
from grandrounds.report.statistics import Compared, Paired, paired, together


@dataclass(frozen=True)
class Difference(Compared):
    """By how much an arm is better than another one; negative where it is worse."""

    other: Arm


@dataclass(frozen=True)
class Gains:
    """An arm against the best local-only arm of every site, and against these all together."""

    metric: Metric
    sites: Mapping[str, Difference]
    overall: Paired

    def lost(self) -> Mapping[str, Difference]:
        """Give the sites that are clearly worse off, the worst first."""
        return self._where(lambda d: d.clear and d.paired.mean < 0)

    def won(self) -> Mapping[str, Difference]:
        """Give the sites that are clearly better off, the least first."""
        return self._where(lambda d: d.clear and d.paired.mean > 0)

    def undecided(self) -> Mapping[str, Difference]:
        """Give the sites of which the tests do not say whether they gain, the worst first."""
        return self._where(lambda d: d.corrected is not None and not d.clear)

    def untested(self) -> Mapping[str, Difference]:
        """Give the sites that have too few patients for a test, the worst first."""
        return self._where(lambda d: d.corrected is None)

    def _where(self, claim: Callable[[Difference], bool]) -> Mapping[str, Difference]:
        found = {site: difference for site, difference in self.sites.items() if claim(difference)}
        return dict(sorted(found.items(), key=lambda item: item[1].paired.mean))


def shared_seeds(first: Arm, second: Arm) -> tuple[int, ...]:
    """List the seeds with which both arms were tested."""
    return tuple(seed for seed in first.seeds if seed in second.seeds)


def differences(first: Arm, second: Arm, *, site: str, metric: Metric) -> list[float]:
    """Take the second arm's scores from the first's, patient by patient; above 0 is better."""
    seeds = shared_seeds(first, second)
    ours = first.site_units(site, metric.key, seeds=seeds)
    theirs = second.site_units(site, metric.key, seeds=seeds)
    sign = 1 if metric.higher_is_better else -1
    return [sign * (value - theirs[unit]) for unit, value in ours.items() if unit in theirs]


def against(
    first: Arm, others: Iterable[Arm], *, sites: Sequence[str], metric: Metric
) -> dict[str, Difference]:
    """Compare an arm with each other arm over these sites, and correct all tests together.

    Sites count alike, whatever their patients; the test is made on the patients of all of them.
    An arm without a score at one of the sites is left out.
    """
    strata = [
        (arm, [differences(first, arm, site=site, metric=metric) for site in sites])
        for arm in others
    ]
    found = [Difference(arm, paired=paired(each)) for arm, each in strata if all(each)]
    return {difference.other.name: difference for difference in together(found)}


def gains(first: Arm, sites: Mapping[str, Difference], metric: Metric) -> Gains:
    """Compare an arm with the arm that each site was compared with, all sites together."""
    strata = [differences(first, d.other, site=s, metric=metric) for s, d in sites.items()]
    return Gains(metric, sites, paired(strata))
