"""The report's first sentence is written here: plain English, and one number.

It is for readers who know no machine learning, so a score is turned into what it means: PSNR into
the typical error, Dice into overlap, log loss into the chance that the right answer is given.
"""

import math

from grandrounds.report.analysis.arm import Arm
from grandrounds.report.analysis.facts import Facts, Gains
from grandrounds.report.analysis.metrics import Metric
from grandrounds.report.prose.vocabulary import TIED, display_name, few, gained, level


def lead(facts: Facts, hero: Arm, metric: Metric) -> str:
    """Say whether the hospitals do better together than each alone, or what was reached."""
    return _beside_alone(hero, facts.gains, metric) if facts.gains else _reached(hero, metric)


def _beside_alone(hero: Arm, gains: Gains, metric: Metric) -> str:
    how = f"together, with {hero.title}" if hero.federated else f"with {hero.title}"
    much = plain_difference(gains.overall.mean, metric)
    if gains.overall.p is None:
        return (
            f"Too few patients were tested to say whether the hospitals do better {how}, than each "
            f"alone: on these few, {much}."
        )
    if abs(gains.overall.mean) < metric.negligible:
        return f"The hospitals do practically as well {how}, as each alone: {much}{_but(gains)}."
    if not gains.overall.clear(gains.overall.p):
        return (
            f"It is not clear whether the hospitals do better {how}, than each alone: {much}, "
            f"which may be chance{_but(gains)}."
        )
    way = "better" if gains.overall.mean > 0 else "worse"
    return f"The hospitals do clearly {way} {how}, than each alone: {much}{_but(gains)}."


def _but(gains: Gains) -> str:
    """Name the hospitals for which the sentence on all of them does not hold."""
    better = gains.overall.mean > 0
    sites = [display_name(site) for site in (gains.lost() if better else gains.won())]
    if not sites:
        return ""
    names, verb = few(sites, most=3), "gains" if len(sites) == 1 else "gain"
    return f"; but {names} would do better alone" if better else f"; but {names} {verb} by it"


def plain_difference(better: float, metric: Metric) -> str:
    """Say in plain words how much better a score is, or worse below 0."""
    much, more, less = _difference_words(better, metric)
    return f"{much} is {more if better > 0 else less}"


def _difference_words(better: float, metric: Metric) -> tuple[str, str, str]:
    """Return what changes, and the words for a change for the better and for the worse."""
    match metric.key:
        case "psnr":
            share = _per_cent(abs(1 - 10 ** (-better / 20)))
            return "the typical error of an image", f"{share} smaller", f"{share} larger"
        case "dice":
            points = f"{abs(100 * better):.1f} percentage points"
            what = "the overlap of drawn and right outlines"
            return what, f"{points} larger", f"{points} smaller"
        case "log_loss":
            share = _per_cent(abs(math.expm1(better)))
            what = "the chance that the model gives to the right answer"
            return what, f"typically {share} higher", f"typically {share} lower"
        case _:
            much = gained(abs(better), metric).lstrip("+")
            return metric.label, f"better by {much}", f"worse by {much}"


def _per_cent(share: float) -> str:
    return f"about {100 * share:.{1 if share < 0.02 else 0}f}{TIED}%"


def _reached(hero: Arm, metric: Metric) -> str:
    spread = hero.overall(metric.key)
    assert spread is not None
    reached = _level_words(spread.mean, metric)
    if hero.local:
        return f"Each hospital trained alone ({hero.title}): {reached}."
    who = "All data in one place" if hero.pooled else "The hospitals together"
    return (
        f"{who}, with {hero.title}: {reached}; whether each hospital alone would do better was not "
        "tried."
    )


def _level_words(value: float, metric: Metric) -> str:
    """Say in plain words what a score means."""
    match metric.key:
        case "psnr":
            share = 100 * 10 ** (-value / 20)
            return f"the typical error of an image is {share:.0f}{TIED}% of the brightness range"
        case "dice":
            return f"drawn and right outlines overlap by {100 * value:.0f}{TIED}%"
        case "log_loss":
            chance = f"{100 * math.exp(-value):.0f}{TIED}%"
            return f"the right answer is typically given a chance of {chance}"
        case _:
            return f"{metric.label} is {level(value, metric)}"
