"""Who gains and who does not, in plain sentences that claim no more than the numbers do."""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

from grandrounds.report.arm import Arm
from grandrounds.report.facts import Facts
from grandrounds.report.metrics import Metric
from grandrounds.report.sentences import progress
from grandrounds.report.words import (
    amount,
    compared,
    compared_with,
    counted,
    level,
    listed,
    shown,
)


@dataclass(frozen=True)
class Against:
    """An arm beside the best local-only arm of every site."""

    arm: Arm
    metric: Metric
    gains: Mapping[str, float]  # site -> gain

    @property
    def mean(self) -> float:
        """Average the gain over sites."""
        return fmean(self.gains.values())


def against_alone(facts: Facts) -> Against | None:
    """Compare the protagonist with training alone; nothing unless both are scored at every site."""
    hero, metric = facts.protagonist, facts.main_metric
    if hero is None or metric is None or hero.local or hero.overall(metric.key) is None:
        return None
    alone = {site: facts.best_local(site, metric.key) for site in facts.sites}
    gains = {s: facts.gain(hero, arm, s, metric.key) for s, arm in alone.items() if arm}
    return Against(hero, metric, gains) if len(gains) == len(facts.sites) else None


def summary(facts: Facts) -> list[str]:
    """Say who gains, who does not, by how much, and on how many test patients."""
    hero, metric = facts.protagonist, facts.main_metric
    overall = hero.overall(metric.key) if hero and metric else None
    if hero is None or metric is None or overall is None:
        return ["There is no complete set of test scores yet.", *_so_far(facts)]
    against = against_alone(facts)
    told = [sentence for sentence in [discrimination(facts, hero)] if sentence]
    if against:
        return [_who_gains(against), _on_average(facts, against), *told, caution(facts)]
    reached = (
        f"{hero.title} reached {level(overall.mean, metric)} ({metric.label}) on average over "
        f"{counted(len(facts.sites), 'hospital')}."
    )
    return [reached, _why_no_comparison(hero), *told, caution(facts)]


def _so_far(facts: Facts) -> list[str]:
    begun = [f"{arm.title}: {progress(arm)}" for arm in facts.arms]
    return begun + [f"{entry.title}: Not started." for entry in facts.waiting]


def _why_no_comparison(hero: Arm) -> str:
    if hero.local:
        return "Each hospital trained alone; nothing was shared."
    return "Without scores of local-only models at every hospital, nothing here says who gains."


def _who_gains(against: Against) -> str:
    metric, gains = against.metric, against.gains
    better = {site: gain for site, gain in gains.items() if gain >= metric.negligible}
    worse = {site: gain for site, gain in gains.items() if gain <= -metric.negligible}
    equal = [shown(site) for site in gains if site not in better and site not in worse]
    sentences = [_gainers(against, better)]
    if worse:
        names = listed([f"{shown(s)} (by {amount(g, metric)})" for s, g in worse.items()])
        sentences.append(f"Training alone was better for {names}.")
    if equal:
        sentences.append(f"There was no practical difference at {listed(equal)}.")
    return " ".join(sentences)


def _gainers(against: Against, better: Mapping[str, float]) -> str:
    metric, total = against.metric, len(against.gains)
    title = against.arm.title if metric.unit else f"By {metric.label}, {against.arm.title}"
    if not better:
        return f"{title} did better than training alone at none of {counted(total, 'hospital')}."
    share = f"all {total}" if len(better) == total else f"{len(better)} of {total}"
    names = [f"{shown(site)} (by {amount(g, metric)})" for site, g in better.items()]
    return f"{title} did better than training alone at {share} hospitals: {listed(names)}."


def _on_average(facts: Facts, against: Against) -> str:
    metric = against.metric
    alone = f"{compared_with(against.mean, metric)} each hospital's best local-only model"
    others = [
        f"{compared_with(_mean_gain(facts, against.arm, arm, metric), metric)} {arm.title}"
        for arm in facts.arms[1:]
        if not arm.local and arm.overall(metric.key)
    ]
    return f"On average over hospitals it was {listed([alone, *others])} ({metric.label})."


def _mean_gain(facts: Facts, hero: Arm, other: Arm, metric: Metric) -> float:
    return fmean(facts.gain(hero, other, site, metric.key) for site in facts.sites)


def discrimination(facts: Facts, arm: Arm) -> str:
    """Say what AUC an arm reached, from which hospital to which, and where there is none."""
    if not arm.discrimination:
        return ""
    found = {site: arm.auc(site) for site in facts.sites}
    defined = {site: value for site, value in found.items() if value is not None}
    one_class = [shown(site) for site in found if site not in defined]
    said = [_auc(arm, defined)] if defined else []
    if one_class:
        said.append(f"There is no AUC at {listed(one_class)}: all test cases are of one class.")
    return " ".join(said)


def _auc(arm: Arm, found: Mapping[str, float]) -> str:
    where = counted(len(found), "hospital")
    average = f"The AUC of {arm.title} was {fmean(found.values()):.2f} on average over {where}"
    low, high = (f"{choose(found.values()):.2f}" for choose in (min, max))
    if low == high:
        return f"{average} (0.5 is guessing)."
    worst, best = (choose(found, key=lambda site: found[site]) for choose in (min, max))
    return f"{average}, from {low} at {shown(worst)} to {high} at {shown(best)} (0.5 is guessing)."


def caution(facts: Facts) -> str:
    """Say on how many patients and seeds the scores rest, and what they do not show."""
    seeds = sorted({seed for arm in facts.arms for seed in arm.seeds})
    runs = "one random seed" if len(seeds) == 1 else f"{len(seeds)} random seeds"
    return (
        f"Measured on {counted(facts.num_test_patients, 'test patient')} with {runs}; no test of "
        "significance was made, and other patients or seeds may differ."
    )


def verdict(facts: Facts, site: str) -> list[str]:
    """Say how each arm compares with training alone at one site."""
    metric = facts.main_metric
    alone = facts.best_local(site, metric.key) if metric else None
    spread = alone.site_spread(site, metric.key) if alone and metric else None
    if metric is None or alone is None or spread is None:
        return []
    reached = f"{level(spread.mean, metric)} ({metric.label})"
    best = f"Trained alone, the best model reached {reached}: {alone.title}."
    scored = [a for a in facts.arms if not a.local and a.site_spread(site, metric.key)]
    sentences = [best, *(_against(facts, a, alone, site=site, metric=metric) for a in scored)]
    if better_off_alone(facts, site):
        sentences.insert(0, f"{shown(site)} would have been better off alone.")
    return sentences


def better_off_alone(facts: Facts, site: str) -> bool:
    """Tell whether a site's best local-only arm beats the protagonist there."""
    against = against_alone(facts)
    return against is not None and against.gains[site] <= -against.metric.negligible


def _against(facts: Facts, arm: Arm, alone: Arm, *, site: str, metric: Metric) -> str:
    better, patients = facts.wins(arm, alone, site, metric.key)
    difference = compared(facts.gain(arm, alone, site, metric.key), metric)
    return (
        f"{arm.title} was {difference}; it did better for {better} of "
        f"{counted(patients, 'test patient')}."
    )
