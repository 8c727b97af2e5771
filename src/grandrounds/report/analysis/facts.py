"""Arms are compared here on the same patients and seeds; tests are corrected together."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path

from grandrounds.core.events import SiteReady
from grandrounds.report.analysis.arm import Arm, arm_of
from grandrounds.report.analysis.auc import Discrimination
from grandrounds.report.analysis.folder import ArmEntry, read_runs
from grandrounds.report.analysis.metrics import Metric, metric_of, shown
from grandrounds.report.analysis.statistics import Compared, PairedDifference, paired, together

PLAIN = "FedAvg"  # the title of plain federated averaging in a journal


@dataclass(frozen=True)
class Difference(Compared):
    """How much better an arm is than another one; negative where it is worse."""

    other: Arm


@dataclass(frozen=True)
class Gains:
    """The gains of an arm over the best local-only arm of each site, and of all sites together."""

    metric: Metric
    sites: Mapping[str, Difference]
    overall: PairedDifference

    def lost(self) -> Mapping[str, Difference]:
        """Return the sites that are clearly worse off, the worst first."""
        return self._where(lambda d: d.clear and d.paired.mean < 0)

    def won(self) -> Mapping[str, Difference]:
        """Return the sites that are clearly better off, the smallest gain first."""
        return self._where(lambda d: d.clear and d.paired.mean > 0)

    def undecided(self) -> Mapping[str, Difference]:
        """Return the sites whose tests do not decide whether they gain, the worst first."""
        return self._where(lambda d: d.corrected is not None and not d.clear)

    def untested(self) -> Mapping[str, Difference]:
        """Return the sites that have too few patients for a test, the worst first."""
        return self._where(lambda d: d.corrected is None)

    def _where(self, claim: Callable[[Difference], bool]) -> Mapping[str, Difference]:
        found = {site: difference for site, difference in self.sites.items() if claim(difference)}
        return dict(sorted(found.items(), key=lambda item: item[1].paired.mean))


def shared_seeds(first: Arm, second: Arm) -> tuple[int, ...]:
    """Return the seeds with which both arms were tested."""
    return tuple(seed for seed in first.seeds if seed in second.seeds)


def arm_differences(first: Arm, second: Arm, *, site: str, metric: Metric) -> list[float]:
    """Return the first arm's scores minus the second's, by patient; above 0 the first is better."""
    seeds = shared_seeds(first, second)
    ours = first.site_units(site, metric.key, seeds=seeds)
    theirs = second.site_units(site, metric.key, seeds=seeds)
    sign = 1 if metric.higher_is_better else -1
    return [sign * (value - theirs[unit]) for unit, value in ours.items() if unit in theirs]


def against(
    first: Arm, others: Iterable[Arm], *, sites: Sequence[str], metric: Metric
) -> dict[str, Difference]:
    """Compare an arm with each other arm over these sites, and correct all tests together.

    Sites have equal weights; the test is made on the patients of all sites.
    An arm without a score at one of the sites is left out.
    """
    strata = [
        (arm, [arm_differences(first, arm, site=site, metric=metric) for site in sites])
        for arm in others
    ]
    found = [Difference(arm, paired=paired(each)) for arm, each in strata if all(each)]
    return {difference.other.name: difference for difference in together(found)}


def gains(first: Arm, sites: Mapping[str, Difference], metric: Metric) -> Gains:
    """Compare an arm with the arm that each site was compared with, all sites together."""
    strata = [arm_differences(first, d.other, site=s, metric=metric) for s, d in sites.items()]
    return Gains(metric, sites, paired(strata))


MANY = 6  # a chart has no room for more arms than these


@dataclass(frozen=True)
class Facts:
    """All numbers of a report, whose main arm is named `first`.

    `arms` have started, `waiting` have not; `terms` are the terms of the comparison. Where the arms
    are candidates of a `search`, and so not tested, its sentences say what was chosen.
    """

    arms: tuple[Arm, ...]
    waiting: tuple[ArmEntry, ...]
    first: str
    terms: tuple[str, ...] = ()
    search: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Return the study's name."""
        return self.arms[0].started.name

    @property
    def sites(self) -> tuple[str, ...]:
        """Return the sites in the study's order."""
        return self.arms[0].study.sites

    @property
    def seeds(self) -> tuple[int, ...]:
        """Return the seeds of all arms, started or not."""
        begun = (run.seed for arm in self.arms for run in arm.runs)
        waiting = (seed for arm in self.arms for seed in arm.waiting)
        return tuple(sorted({*begun, *waiting}))

    @property
    def main_arm(self) -> Arm | None:
        """Return the arm that the report is about; None before it has started."""
        return self.arms[0] if self.arms[0].name == self.first else None

    @cached_property
    def ready(self) -> Mapping[str, SiteReady]:
        """Return what data each site has, from the first arm that reports it."""
        found: dict[str, SiteReady] = {}
        for arm in reversed(self.arms):
            found |= arm.ready
        return found

    @property
    def simulated(self) -> tuple[str, ...]:
        """Return the sites whose data are simulated."""
        ready = self.ready
        return tuple(site for site in self.sites if site in ready and ready[site].simulated)

    @cached_property
    def metrics(self) -> tuple[Metric, ...]:
        """Return the metrics of all arms, the main one first."""
        present = chain.from_iterable(arm.metrics for arm in self.arms)
        return tuple(map(metric_of, shown(present, own=self.arms[0].study.own_task)))

    @property
    def main_metric(self) -> Metric | None:
        """Return the metric that sentences report; None before there are scores."""
        return self.metrics[0] if self.metrics else None

    @cached_property
    def num_test_patients(self) -> int:
        """Count the scored test patients of all sites; simulated ones differ by seed."""
        keys = [metric.key for metric in self.metrics]
        places = ((arm, site, key) for arm in self.arms for site in self.sites for key in keys)
        return len({(s, unit) for arm, s, key in places for unit in arm.site_units(s, key)})

    @cached_property
    def has_intervals(self) -> bool:
        """Tell whether any mean has an interval: some hospital has more than one test patient."""
        metric = self.main_metric
        places = ((arm, site) for arm in self.arms for site in self.sites) if metric else ()
        found = (arm.site_spread(site, metric.key) for arm, site in places if metric)
        return any(spread and spread.interval for spread in found)

    @cached_property
    def has_tests(self) -> bool:
        """Tell whether any difference to another arm has a test."""
        families = (self.compared, *self.compared_at.values())
        return any(d.corrected is not None for each in families for d in each.values())

    def tasks(self, site: str) -> tuple[str, ...]:
        """Return a site's tasks."""
        declared = self.ready[site].tasks if site in self.ready else ()
        scored = (
            task
            for arm in self.arms
            for run in arm.runs
            for at, task, _ in run.scores
            if at == site
        )
        return tuple(dict.fromkeys((*declared, *scored)))

    @cached_property
    def discriminated(self) -> tuple[tuple[str, str], ...]:
        """Return each (site, task) that has an AUC, or has none because of one class only."""
        cells = [(site, task) for site in self.sites for task in self.tasks(site)]
        return tuple(cell for cell in cells if any(cell in arm.discrimination for arm in self.arms))

    def discrimination(self, cell: tuple[str, str]) -> Discrimination:
        """Return the AUC of a (site, task) by the first arm that has one."""
        return next(a.discrimination[cell] for a in self.arms if cell in a.discrimination)

    def signed_mean(self, arm: Arm, site: str, metric: Metric) -> float | None:
        """Return an arm's mean at a site, higher for a better one, on the main arm's seeds."""
        hero = self.main_arm
        seeds = shared_seeds(hero, arm) if hero and hero.seeds else None
        spread = arm.site_spread(site, metric.key, seeds=seeds)
        if spread is None:
            return None
        return spread.mean if metric.higher_is_better else -spread.mean

    @property
    def local_arms(self) -> tuple[Arm, ...]:
        """Return the arms that training alone is judged by.

        Where one was chosen by validation among the others, these are that one.
        """
        local = tuple(arm for arm in self.arms if arm.local)
        return tuple(arm for arm in local if arm.chosen and arm.seeds) or local

    def best_local(self, site: str, metric: Metric) -> Arm | None:
        """Return the local-only arm with the best score at a site."""
        arms = self.local_arms
        worth = {
            number: value
            for number, arm in enumerate(arms)
            if (value := self.signed_mean(arm, site, metric)) is not None
        }
        return arms[max(worth, key=lambda number: worth[number])] if worth else None

    def difference(self, arm: Arm, reference: Arm, site: str) -> PairedDifference | None:
        """Return how much better an arm is than another at a site, by the main metric."""
        if self.main_metric is None:
            return None
        found = arm_differences(arm, reference, site=site, metric=self.main_metric)
        return paired([found]) if found else None

    @cached_property
    def compared(self) -> Mapping[str, Difference]:
        """Compare the main arm with every other arm, all sites together."""
        return self._against(self.sites)

    @cached_property
    def compared_at(self) -> Mapping[str, Mapping[str, Difference]]:
        """Compare the main arm with every other arm, site by site."""
        return {site: self._against((site,)) for site in self.sites}

    def _against(self, sites: tuple[str, ...]) -> Mapping[str, Difference]:
        hero, metric = self.main_arm, self.main_metric
        if hero is None or metric is None:
            return {}
        return against(hero, self.arms[1:], sites=sites, metric=metric)

    @cached_property
    def gains(self) -> Gains | None:
        """Compare the main arm with the best local-only arm of every site.

        None where the main arm is local itself, or where a site has no scores of either.
        """
        hero, metric = self.main_arm, self.main_metric
        if hero is None or metric is None or hero.local:
            return None
        alone = {site: self.best_local(site, metric) for site in self.sites}
        found = {
            site: self.compared_at[site][arm.name]
            for site, arm in alone.items()
            if arm and arm.name in self.compared_at[site]
        }
        return gains(hero, found, metric) if len(found) == len(self.sites) else None

    def num_worse_than_alone(self, arm: Arm) -> int | None:
        """Count the sites where the best local-only arm is better by a difference that matters."""
        metric = self.main_metric
        alone = [self.best_local(site, metric) for site in self.sites] if metric else []
        if metric is None or not all(alone):
            return None
        found = [
            arm_differences(arm, best, site=site, metric=metric)
            for site, best in zip(self.sites, alone, strict=True)
            if best
        ]
        if not all(found):
            return None
        return sum(paired([each]).mean <= -metric.negligible for each in found)

    @cached_property
    def plain(self) -> Arm | None:
        """Return the arm that is plain federated averaging."""
        others = [arm for arm in self.arms if arm is not self.main_arm]
        found = [arm for arm in others if PLAIN in (arm.title, arm.started.title)]
        return next((arm for arm in found if arm.title == PLAIN), found[0] if found else None)

    @cached_property
    def competitor(self) -> Arm | None:
        """Return the best other federated arm, by its mean over sites."""
        return self._best([a for a in self.arms if a.federated and a is not self.main_arm])

    @cached_property
    def best_local_arm(self) -> Arm | None:
        """Return the best local-only arm, by its mean over sites."""
        return self._best(list(self.local_arms))

    def _best(self, arms: list[Arm]) -> Arm | None:
        metric = self.main_metric
        if metric is None:
            return None
        worth = {
            n: [self.signed_mean(arm, s, metric) for s in self.sites] for n, arm in enumerate(arms)
        }
        total = {
            n: sum(v for v in each if v is not None)
            for n, each in worth.items()
            if None not in each
        }
        return arms[max(total, key=lambda number: total[number])] if total else None

    @cached_property
    def depths(self) -> Mapping[str, int]:
        """Map the names of the tested arms to the steps in a row that their models may take."""
        found = {arm.name: arm.depth_allowed for arm in self.arms if arm.steps_in_a_row}
        return {name: steps for name, steps in found.items() if steps is not None}

    @cached_property
    def notable(self) -> tuple[Arm, ...]:
        """Return the arms that charts and pictures show first: all, unless there are many."""
        if len(self.arms) <= MANY:
            return self.arms
        pooled = [arm for arm in self.arms if arm.pooled][:1]
        chosen = [self.arms[0], self.best_local_arm, self.plain, self.competitor, *pooled]
        return tuple(arm for arm in self.arms if any(arm is one for one in chosen))

    @cached_property
    def others(self) -> tuple[Arm, ...]:
        """Return the arms that are not notable."""
        return tuple(a for a in self.arms if all(a is not shown for shown in self.notable))


def read_facts(folder: Path) -> Facts:
    """Compute the numbers of a run folder or of a comparison folder. Raises `BadFolder`."""
    found = read_runs(folder)
    arms = tuple(arm_of(arm) for arm in found.arms if arm.runs)
    waiting = tuple(arm.entry for arm in found.arms if not arm.runs)
    return Facts(arms, waiting, found.first, found.terms, found.search)
