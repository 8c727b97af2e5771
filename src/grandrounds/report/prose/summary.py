"""The report is summarised here in a few sentences, which claim no more than the numbers do."""

from collections.abc import Mapping

from grandrounds.report.analysis.arm import Arm, apart_by, worst_site
from grandrounds.report.analysis.facts import Difference, Facts, Gains
from grandrounds.report.analysis.metrics import Metric
from grandrounds.report.analysis.statistics import ALPHA, FEWEST, LEVEL, PairedDifference
from grandrounds.report.prose.lead import lead
from grandrounds.report.prose.sentences import unfinished
from grandrounds.report.prose.vocabulary import (
    INTERVAL,
    amount,
    between,
    counted,
    display_name,
    few,
    format_difference,
    gained,
    join_words,
    level,
    within,
)

INTERVALS = f"{LEVEL} % bootstrap intervals"
TESTS = "Wilcoxon signed-rank tests"


def summary_sentences(facts: Facts) -> list[str]:
    """Say the result in plain words, then who gains, the worst site, and what stays open.

    Before the main arm is tested at every site, they say how far each arm is; of a search, whose
    arms are never tested, what was chosen.
    """
    if facts.search:
        return list(facts.search)
    hero, metric = facts.main_arm, facts.main_metric
    if hero is None or metric is None or hero.overall(metric.key) is None:
        return ["There is no complete set of test scores yet.", *unfinished(facts)]
    return [
        lead(facts, hero, metric),
        _beside_alone(facts, hero, metric),
        _against_others(facts, metric),
        _worst(facts, hero, metric),
        _measured(facts),
        _open(facts),
    ]


def _beside_alone(facts: Facts, hero: Arm, metric: Metric) -> str:
    if facts.gains is None:
        return _reached(hero, metric)
    say = _who_gains if facts.has_tests else _untested
    return say(hero, facts.gains, metric)


def _untested(hero: Arm, gains: Gains, metric: Metric) -> str:
    """Say the gains without a word on whether they are clear, for nothing tests that."""
    return (
        f"Beside each hospital's best local-only model, by {metric.label}, {hero.title} has "
        f"{_sites(gains.sites, metric)}; on average over hospitals "
        f"{_briefly(gains.overall, metric)}."
    )


def _who_gains(hero: Arm, gains: Gains, metric: Metric) -> str:
    said = [
        f"{verb} at {_share(len(found), len(gains.sites))}: {_sites(found, metric)}"
        for verb, found in (
            ("clearly loses", gains.lost()),
            ("clearly gains", gains.won()),
            ("shows no clear difference", gains.undecided()),
            ("has too few patients to tell", gains.untested()),
        )
        if found
    ]
    average = f"is {_way(gains)} on average over hospitals ({_briefly(gains.overall, metric)})"
    first = gains.overall.mean < 0  # what speaks against the main arm comes first
    parts = [average, *said] if first else [*said, average]
    known = any(d.paired.interval for d in gains.sites.values())
    by = f"by {metric.label}" + (f" and with {LEVEL} % intervals" if known else "")
    beside = f"Beside each hospital's best local-only model, {by}, {hero.title} "
    return f"{beside}{'; it '.join(parts)}."


def _way(gains: Gains) -> str:
    if not gains.overall.clear(gains.overall.p):
        return "not clearly different"
    return "clearly better" if gains.overall.mean > 0 else "clearly worse"


def _share(some: int, total: int) -> str:
    if some == total:
        return f"all {total} hospitals" if total > 1 else "the only hospital"
    return f"{some} of {total} hospitals"


def _sites(found: Mapping[str, Difference], metric: Metric) -> str:
    return few(
        [f"{display_name(site)} ({_briefly(d.paired, metric)})" for site, d in found.items()]
    )


def _briefly(paired: PairedDifference, metric: Metric) -> str:
    ends = between(paired.interval, metric)
    return f"{gained(paired.mean, metric)}, {ends}" if ends else gained(paired.mean, metric)


def _reached(hero: Arm, metric: Metric) -> str:
    overall = hero.overall(metric.key)
    assert overall is not None
    spread = within(overall.interval, metric)
    interval = f", {INTERVAL} {spread}" if spread else ""
    reached = (
        f"{hero.title} reached {level(overall.mean, metric)} ({metric.label}{interval}) on average "
        f"over {counted(overall.n, 'hospital')}"
    )
    if hero.local:
        return f"{reached}; each hospital trained alone, and nothing was shared."
    return (
        f"{reached}; without scores of local-only models at every hospital, nothing here says who "
        "gains."
    )


def _against_others(facts: Facts, metric: Metric) -> str:
    names = _rivals(facts)
    found = [(facts.compared[name], words) for name, words in names.items()]
    if not found:
        return "No other federated arm was tested, so nothing compares it with one."
    worst_first = sorted(found, key=lambda pair: pair[0].paired.mean)
    said = [_against(difference, words, metric) for difference, words in worst_first]
    return f"On average over hospitals it is {', and '.join(said)}."


def _rivals(facts: Facts) -> dict[str, str]:
    """Map the names of FedAvg and the best other federated arm to their words in a sentence."""
    fedavg, best = facts.plain, facts.competitor
    found: dict[str, str] = {}
    if fedavg and fedavg.name in facts.compared:
        also = ", the best other federated arm" if fedavg is best else ""
        found[fedavg.name] = f"{fedavg.title}{also}"
    if best and best is not fedavg and best.name in facts.compared:
        found[best.name] = f"{best.title}, the best other federated arm"
    return found


def _against(difference: Difference, words: str, metric: Metric) -> str:
    paired = difference.paired
    if difference.corrected is None:
        return f"{format_difference(paired, metric)} beside {words}"
    way = f"clearly {'better' if paired.mean > 0 else 'worse'} than"
    way = way if difference.clear else "not clearly different from"
    return f"{way} {words} ({format_difference(paired, metric)})"


def _worst(facts: Facts, hero: Arm, metric: Metric) -> str:
    site, value = worst_site(hero, metric)
    alone = facts.best_local(site, metric)
    reached = alone.site_spread(site, metric.key) if alone and alone is not hero else None
    beside = ""
    if reached:
        beside = f", where the best local-only model reaches {level(reached.mean, metric)}"
    rival = facts.plain or facts.competitor
    apart = f"its hospitals lie {amount(apart_by(hero, metric), metric)} apart"
    if rival and rival.overall(metric.key):
        apart += f", those of {rival.title} {amount(apart_by(rival, metric), metric)}"
    return (
        f"Its worst hospital is {display_name(site)} with {level(value, metric)}{beside}; {apart}."
    )


def _measured(facts: Facts) -> str:
    seeds = {seed for arm in facts.arms for seed in arm.seeds}
    runs = "one random seed" if len(seeds) == 1 else f"{len(seeds)} random seeds"
    rests = (
        f"This rests on {counted(facts.num_test_patients, 'test patient')} at "
        f"{counted(len(facts.sites), 'hospital')} and {runs}"
    )
    made = ((INTERVALS, facts.has_intervals), (TESTS, facts.has_tests))
    means = [name for name, present in made if present]
    how = f", with {join_words(means)} over patients" if means else ""
    return f"{rests}{how}{_rule(facts)}."


def _rule(facts: Facts) -> str:
    """Say when a difference is called clear, and where no test could be made."""
    if not facts.compared:
        return ""
    if not facts.has_tests:
        return "; that is too few for a statistical test"
    said = (
        "; a difference is called clear where its interval leaves out zero and its p, after Holm's "
        f"correction for comparing {counted(len(facts.compared), 'arm')}, is below {ALPHA}"
    )
    untested = facts.gains.untested() if facts.gains else ()
    names = few([display_name(site) for site in untested])
    needed = f"; {names} had fewer than the {FEWEST} differing patients that a test needs"
    return f"{said}{needed}" if untested else said


def _open(facts: Facts) -> str:
    said = ["how the models do at other hospitals, on other scanners or in patients' care"]
    if facts.simulated:
        said.append("how they do on real patients, for the images are simulated")
    if len({seed for arm in facts.arms for seed in arm.seeds}) == 1:
        said.append("what another random seed would change")
    if len(facts.arms) > 2:
        said.append("how far the rivals owe their rank to being picked on these same patients")
    return f"It cannot say {', nor '.join(said)}."
