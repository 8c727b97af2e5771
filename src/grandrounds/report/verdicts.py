"""How each hospital did, and what AUC was reached, in plain sentences."""

from collections.abc import Mapping
from statistics import fmean

from grandrounds.report.arm import Arm
from grandrounds.report.facts import Facts
from grandrounds.report.summary import told
from grandrounds.report.words import counted, level, listed, shown


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


def verdict(facts: Facts, site: str) -> list[str]:
    """Say how each notable arm compares with training alone at one site."""
    metric = facts.main_metric
    alone = facts.best_local(site, metric) if metric else None
    spread = alone.site_spread(site, metric.key) if alone and metric else None
    if metric is None or alone is None or spread is None:
        return []
    reached = f"{level(spread.mean, metric)} ({metric.label})"
    best = f"Trained alone, the best model reached {reached}: {alone.title}."
    against = [_against(facts, a, alone, site=site) for a in facts.notable if not a.local]
    sentences = [best, *(sentence for sentence in against if sentence)]
    if better_off_alone(facts, site):
        sentences.insert(0, f"{shown(site)} would have been better off alone.")
    return sentences


def better_off_alone(facts: Facts, site: str) -> bool:
    """Tell whether a site's best local-only arm clearly beats the protagonist there."""
    return facts.gains is not None and site in facts.gains.lost()


def _against(facts: Facts, arm: Arm, alone: Arm, *, site: str) -> str:
    paired, metric = facts.difference(arm, alone, site), facts.main_metric
    if paired is None or metric is None:
        return ""
    return (
        f"{arm.title}: {told(paired, metric)}; better for {paired.better} of "
        f"{counted(paired.n, 'test patient')}."
    )
