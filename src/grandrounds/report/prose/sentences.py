"""Sentences on a run are written here: how far it is, who took part, what was shared."""

from collections import Counter
from collections.abc import Mapping
from statistics import fmean

from grandrounds.core.events import Failed, Interrupted, RoundLost, RunFinished, StoppedEarly
from grandrounds.report.analysis.arm import Arm
from grandrounds.report.analysis.depth import span
from grandrounds.report.analysis.facts import Facts
from grandrounds.report.analysis.folder import Derivation, SiteChoice
from grandrounds.report.analysis.metrics import Metric
from grandrounds.report.analysis.run import Absence, Run, SiteWork
from grandrounds.report.prose.vocabulary import (
    amount,
    capital,
    counted,
    display_name,
    few,
    format_difference,
    join_words,
    level,
    steps,
    wording,
)

_MOST_ODD = 5  # unusual updates that are told one by one


def progress_sentence(arm: Arm) -> str:
    """Say how far an arm's runs are and how they ended, seed by seed where they differ."""
    said = [_progress(run) for run in arm.runs]
    if arm.derived and len(set(said)) == 1 and not arm.waiting:
        return said[0]
    if len(said) == 1 and not arm.waiting:
        return said[0]
    if (
        not arm.waiting
        and not arm.derived
        and all(isinstance(run.ending, RunFinished) for run in arm.runs)
    ):
        done = join_words([str(len(run.rounds)) for run in arm.runs])
        best = join_words([str(run.best_round) for run in arm.runs])
        return (
            f"Finished with {len(said)} seeds, after {done} rounds; the models of rounds {best} "
            "validated best."
        )
    each = [f"Seed {run.seed}: {sentence}" for run, sentence in zip(arm.runs, said, strict=True)]
    return " ".join([*each, *(f"Seed {seed}: Not started." for seed in arm.waiting)])


def _progress(run: Run) -> str:
    if run.derived:
        return _derived(run, run.derived)
    rounds = f"{len(run.rounds)} of {counted(run.started.rounds, 'round')}"
    match run.ending:
        case RunFinished(best_round=best):
            return f"Finished after {rounds}; the model of round {best} validated best."
        case StoppedEarly(best_round=best):
            return f"Stopped early after {rounds}: nothing improved after round {best}."
        case Interrupted():
            return f"Interrupted by a person after {rounds}; it can be resumed."
        case Failed():
            return f"Failed after {rounds}: {_failure(run.ending)}"
        case None:
            return f"Not finished: {rounds} done so far."


def _derived(run: Run, found: Derivation) -> str:
    """Say how scores come from other arms, and what each hospital took."""
    said = [_taken(run, choice) for choice in found.chosen]
    taken = f" {capital('; '.join(said))}." if said else ""
    return f"Nothing was trained for it: {found.rule}.{taken}"


def _taken(run: Run, choice: SiteChoice) -> str:
    metric = wording(run.study.task).watched
    if choice.validation is None:
        why = "the first, as it has no patients to validate on"
    else:
        why = f"validation {level(choice.validation, metric)}"
    return f"{display_name(choice.site)} took {choice.arm} ({why})"


def unfinished(facts: Facts) -> list[str]:
    """Name every arm and seed that has no test scores, and say how far it is."""
    found = [
        f"{arm.title}, seed {run.seed}: {_progress(run)} It has no test scores."
        for arm in facts.arms
        for run in arm.runs
        if not run.scores
    ]
    found += [f"{a.title}, seed {seed}: Not started." for a in facts.arms for seed in a.waiting]
    return found + [f"{entry.title}: Not started." for entry in facts.waiting]


def _failure(card: Failed) -> str:
    where = f" at {display_name(card.site)}" if card.site else ""
    said = f"in round {card.round}{where} ({card.stage}), {card.error}: {card.message}"
    return f"{said.rstrip('.')}. {card.hint}".rstrip()


def still_rising(facts: Facts) -> str:
    """Name the arms that were best when their training ended; empty where none was."""
    titles = [arm.title for arm in facts.arms if arm.still_rising]
    if not titles:
        return ""
    return (
        f"{few(titles)} validated best in the last round, so the scores were still rising when "
        "training ended. More rounds could change the result."
    )


def unequal_depth(facts: Facts) -> str:
    """Say that arms differ in the steps in a row that their models may take; empty if none do."""
    depths = facts.depths
    if len(set(depths.values())) < 2:
        return ""
    least, most = (_so_deep(facts, choose(depths.values())) for choose in (min, max))
    return (
        "The arms were not compared at equal depth. Steps in a row of the model tested: "
        f"{least}; {most}. A model that takes more steps in a row may score better for that alone."
    )


def _so_deep(facts: Facts, depth: int) -> str:
    arms = [arm for arm in facts.arms if facts.depths.get(arm.name) == depth]
    found = span(end for a in arms if (s := a.steps_in_a_row) for end in (s.low, s.high))
    return f"{steps(found)} with {few([arm.title for arm in arms], most=3)}"


def simulated(facts: Facts) -> str:
    """Say which hospitals' data are simulated; empty where all are real."""
    names = [display_name(site) for site in facts.simulated]
    if not names:
        return ""
    who = f"All {len(names)} hospitals" if len(names) == len(facts.sites) > 1 else join_words(names)
    verb = "is" if len(names) == 1 else "are"
    return (
        f"{who} {verb} simulated: the images were computed, no patient was scanned. Scores on "
        "simulated images say little about real ones."
    )


def took_part(arm: Arm) -> str:
    """Say who took part in which round, and name every absence."""
    by_seed = {run.seed: _took_part(run) for run in arm.runs}
    if len(set(by_seed.values())) == 1:
        return next(iter(by_seed.values()))
    return " ".join(f"Seed {seed}: {said}" for seed, said in by_seed.items())


def _took_part(run: Run) -> str:
    if not run.rounds:
        return "No round is finished yet."
    absences = [said for work in run.work for said in (_joined(work), _absence(run, work))]
    found = [absence for absence in absences if absence]
    if found:
        return f"{'; '.join(found)}.{_judged(run)}"
    return f"Every hospital took part in every round ({len(run.rounds)}).{_judged(run)}"


def _judged(run: Run) -> str:
    """Say whose updates were left out of the mean, and whose were unusually long or short."""
    left = Counter(site for event in run.judged for site in event.left_out)
    odd = [(site, e.round, why) for e in run.judged for site, why in e.unusual.items()]
    said = ""
    if left:
        of = len(run.rounds)
        who = join_words([f"{display_name(s)} in {n} of {of} rounds" for s, n in left.items()])
        said += f" Multi-Krum left out, as farthest from the others: {who}."
    if odd:
        told = "; ".join(f"{display_name(s)} in round {n}: {why}" for s, n, why in odd[:_MOST_ODD])
        more = f"; and {len(odd) - _MOST_ODD} more in the journal" if len(odd) > _MOST_ODD else ""
        said += f" Unusual updates, used unless the aggregation left them out: {told}{more}."
    return said


def _joined(work: SiteWork) -> str:
    return f"{display_name(work.site)} joined in round {work.joined}" if work.joined > 1 else ""


def _absence(run: Run, work: SiteWork) -> str:
    due = [number for number in run.rounds if number >= work.joined]
    missed = [str(number) for number in due if number not in work.rounds]
    noun = "round" if len(missed) == 1 else "rounds"
    return f"{display_name(work.site)} missed {noun} {join_words(missed)}" if missed else ""


def absence(found: Absence) -> str:
    """Say why a hospital did not answer, and in which rounds."""
    noun = "round" if len(found.rounds) == 1 else "rounds"
    numbers = join_words([str(number) for number in found.rounds])
    return f"{display_name(found.site)} in {noun} {numbers} ({found.stage}): {found.reason}"


def lost_round(found: RoundLost) -> str:
    """Say whose saved round could not be used when the run was resumed, and why."""
    return f"{display_name(found.site)}, round {found.round}: {found.message}"


POLICIES = {
    "shared": "Travels each round",
    "partly shared": "travels in part",
    "reset": "starts anew in every round, at each hospital",
    "fixed": "is the same at every hospital and never changes",
    "private": "stays at the hospital",
}


def policy_sentence(arm: Arm) -> str:
    """Say which parts of the model travel, which stay, and which start anew."""
    if arm.derived:
        return ""
    if arm.local:
        return "Nothing travels: each hospital trains its own model."
    if arm.pooled:
        return "Nothing travels: the data of all hospitals lie in one place."
    policy = arm.runs[0].policy
    if policy is None:
        return "What travels is not decided yet."
    groups = {kind: [g for g in policy.groups if g.policy == kind] for kind in POLICIES}
    named = {kind: [f"{g.group} ({g.parameters:,})" for g in groups[kind]] for kind in POLICIES}
    said = [
        f"{words}: {join_words(named[kind])}" for kind, words in POLICIES.items() if named[kind]
    ]
    none = "" if named["private"] else "; nothing stays behind"
    return f"{capital('; '.join(said))}{none} (in brackets: numbers of parameters)."


def tuned(arm: Arm) -> str:
    """Say that each hospital's fine-tuned copy was tested; empty where none was made."""
    events = arm.runs[0].tuned
    if not events:
        return ""
    steps = join_words(
        [f"{display_name(event.site)} {counted(event.steps, 'step')}" for event in events]
    )
    return (
        f"Each hospital's own fine-tuned copy was tested: it trained the model of round "
        f"{events[-1].round} on for itself alone ({steps})."
    )


def forgetting_sentence(arm: Arm) -> str:
    """Say what each hospital lost between its own turn and the end of the last watched cycle."""
    cycle, metric = arm.runs[0].cycles[-1], wording(arm.study.task).watched
    said = [_lost(site, lost, metric) for site, lost in cycle.lost.items()]
    if not said:
        return "No hospital before the last one has patients to validate on."
    last = display_name(cycle.turns[-1])
    return (
        f"Between its own turn and the end of cycle {cycle.round}, {join_words(said)} "
        f"({metric.label}); {last}'s turn was the last."
    )


def _lost(site: str, lost: float, metric: Metric) -> str:
    if abs(lost) < metric.negligible:
        return f"{display_name(site)} lost nothing"
    return f"{display_name(site)} {'lost' if lost > 0 else 'gained'} {amount(lost, metric)}"


def notable(facts: Facts) -> str:
    """Say by which rule charts and pictures show these arms and fold the others away."""
    if not facts.others:
        return ""
    names = join_words([arm.title for arm in facts.notable])
    return (
        f"Of {len(facts.arms)} arms, these are shown first: {names}. The rule: the arm that this "
        "report is about, the best local-only arm, FedAvg, pooled training, and the best other "
        "federated arm, by the mean over hospitals. All others are folded away below."
    )


def no_pictures(facts: Facts, site: str) -> str:
    """Say why there are no pictures."""
    if site in facts.simulated:
        return "No pictures were kept when this site was tested."
    if any(panel.site == site for arm in facts.arms for run in arm.runs for panel in run.panels):
        return (
            "No pictures: this hospital lets its run keep some, but a report shows images of "
            "patients only where it is asked to. To see them here, write it with --include-images."
        )
    return (
        "No pictures: images of patients stay at the hospital. To see some here, set "
        "include_images = true in its site file before the run, and write the report with "
        "--include-images."
    )


def discrimination(facts: Facts, arm: Arm) -> str:
    """Say what AUC an arm reached, from which hospital to which, and where there is none."""
    if not arm.discrimination:
        return ""
    found = {site: arm.auc(site) for site in facts.sites}
    defined = {site: value for site, value in found.items() if value is not None}
    one_class = [display_name(site) for site in found if site not in defined]
    said = [_auc(arm, defined)] if defined else []
    if one_class:
        said.append(f"There is no AUC at {join_words(one_class)}: all test cases are of one class.")
    return " ".join(said)


def _auc(arm: Arm, found: Mapping[str, float]) -> str:
    where = counted(len(found), "hospital")
    average = f"The AUC of {arm.title} was {fmean(found.values()):.2f} on average over {where}"
    low, high = (f"{choose(found.values()):.2f}" for choose in (min, max))
    if low == high:
        return f"{average} (0.5 is guessing)."
    worst, best = (choose(found, key=lambda site: found[site]) for choose in (min, max))
    return (
        f"{average}, from {low} at {display_name(worst)} to {high} at {display_name(best)} "
        "(0.5 is guessing)."
    )


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
        sentences.insert(0, f"{display_name(site)} would have been better off alone.")
    return sentences


def better_off_alone(facts: Facts, site: str) -> bool:
    """Tell whether a site's best local-only arm is clearly better than the main arm there."""
    return facts.gains is not None and site in facts.gains.lost()


def _against(facts: Facts, arm: Arm, alone: Arm, *, site: str) -> str:
    paired, metric = facts.difference(arm, alone, site), facts.main_metric
    if paired is None or metric is None:
        return ""
    return (
        f"{arm.title}: {format_difference(paired, metric)}; better for {paired.better} of "
        f"{counted(paired.n, 'test patient')}."
    )
