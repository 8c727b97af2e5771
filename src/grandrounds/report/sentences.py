"""What a run was, in plain sentences: how far it came, who took part, what travelled."""

from grandrounds.events import Failed, Interrupted, RunFinished, StoppedEarly
from grandrounds.report.arm import FEW_STEPS, Arm
from grandrounds.report.facts import Facts
from grandrounds.report.metrics import Metric
from grandrounds.report.wording import wording
from grandrounds.report.words import amount, counted, listed, shown
from grandrounds.report.work import Absence


def progress(arm: Arm) -> str:
    """Say how far a run came and how it ended."""
    rounds = f"{len(arm.rounds)} of {counted(arm.started.rounds, 'round')}"
    match arm.ending:
        case RunFinished(best_round=best):
            return f"Finished after {rounds}; the model of round {best} validated best."
        case StoppedEarly(best_round=best):
            return f"Stopped early after {rounds}: nothing improved after round {best}."
        case Interrupted():
            return f"Interrupted by a person after {rounds}; it can be resumed."
        case Failed():
            return f"Failed after {rounds}: {_failure(arm.ending)}"
        case None:
            return f"Not finished: {rounds} done so far."


def _failure(card: Failed) -> str:
    where = f" at {shown(card.site)}" if card.site else ""
    said = f"in round {card.round}{where} ({card.stage}), {card.error}: {card.message}"
    return f"{said.rstrip('.')}. {card.hint}".rstrip()


def few_steps(arm: Arm) -> str:
    """Warn where an arm trained so briefly that training alone usually wins."""
    found = [f"{shown(work.site)} {work.steps}" for work in arm.few_steps()]
    if not found:
        return ""
    return (
        f"{arm.title} made few optimisation steps ({listed(found)}). Up to about {FEW_STEPS} steps "
        "per hospital, training alone usually wins; more rounds may change the picture."
    )


def simulated(facts: Facts) -> str:
    """Say which hospitals' data are simulated; empty where all are real."""
    names = [shown(site) for site in facts.simulated]
    if not names:
        return ""
    who = f"All {len(names)} hospitals" if len(names) == len(facts.ready) > 1 else listed(names)
    verb = "is" if len(names) == 1 else "are"
    return (
        f"{who} {verb} simulated: the images were computed, no patient was scanned. Scores on "
        "simulated images say little about real ones, where errors are usually larger."
    )


def took_part(arm: Arm) -> str:
    """Say who took part in which round, and name every absence."""
    if not arm.rounds:
        return "No round is finished yet."
    absences = [_absence(arm, work.site, work.rounds) for work in arm.work]
    found = [absence for absence in absences if absence]
    if found:
        return f"{'; '.join(found)}."
    return f"Every hospital took part in every round ({len(arm.rounds)})."


def _absence(arm: Arm, site: str, present: tuple[int, ...]) -> str:
    missed = [str(number) for number in arm.rounds if number not in present]
    noun = "round" if len(missed) == 1 else "rounds"
    return f"{shown(site)} missed {noun} {listed(missed)}" if missed else ""


def absence(found: Absence) -> str:
    """Say why a hospital did not answer, and in which rounds."""
    noun = "round" if len(found.rounds) == 1 else "rounds"
    numbers = listed([str(number) for number in found.rounds])
    return f"{shown(found.site)} in {noun} {numbers} ({found.stage}): {found.reason}"


POLICIES = {
    "shared": "Travels each round",
    "partly shared": "travels in part",
    "reset": "starts anew in every round, at each hospital",
    "private": "stays at the hospital",
}


def policy(arm: Arm) -> str:
    """Say which parts of the model travel, which stay, and which start anew."""
    if arm.local:
        return "Nothing travels: each hospital trains its own model."
    if arm.pooled:
        return "Nothing travels: the data of all hospitals lie in one place."
    if arm.policy is None:
        return "What travels is not decided yet."
    groups = {kind: [g for g in arm.policy.groups if g.policy == kind] for kind in POLICIES}
    named = {kind: [f"{g.group} ({g.parameters:,})" for g in groups[kind]] for kind in POLICIES}
    said = [f"{words}: {listed(named[kind])}" for kind, words in POLICIES.items() if named[kind]]
    none = "" if named["private"] else "; nothing stays behind"
    return f"{_capital('; '.join(said))}{none} (in brackets: numbers of parameters)."


def _capital(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]


def tuned(arm: Arm) -> str:
    """Say that each hospital's fine-tuned copy was tested; empty where none was made."""
    if not arm.tuned:
        return ""
    steps = listed([f"{shown(event.site)} {counted(event.steps, 'step')}" for event in arm.tuned])
    return (
        f"Each hospital's own fine-tuned copy was tested: it trained the model of round "
        f"{arm.tuned[-1].round} on for itself alone ({steps})."
    )


def forgetting(arm: Arm) -> str:
    """Say what each hospital lost between its own turn and the end of the last watched cycle."""
    cycle, metric = arm.cycles[-1], wording(arm.study.task).watched
    said = [_lost(site, lost, metric) for site, lost in cycle.lost.items()]
    if not said:
        return "No hospital before the last one has patients to validate on."
    last = shown(cycle.turns[-1])
    return (
        f"Between its own turn and the end of cycle {cycle.round}, {listed(said)} "
        f"({metric.label}); {last}'s turn was the last."
    )


def _lost(site: str, lost: float, metric: Metric) -> str:
    if abs(lost) < metric.negligible:
        return f"{shown(site)} lost nothing"
    return f"{shown(site)} {'lost' if lost > 0 else 'gained'} {amount(lost, metric)}"


def pictures(facts: Facts, site: str, task: str) -> str:
    """Say how the pictures were chosen, or why there are none."""
    found = facts.panels(site, task)
    if not found:
        return _no_pictures(facts, site)
    label = facts.main_metric.label if facts.main_metric else "score"
    rule = (
        "Chosen by rule, not by eye or score: the middle image of the test patient whose pseudonym "
        f"comes in the middle. The figure below a picture is that patient's mean {label}."
    )
    if len({panel.patient for _, panel in found}) == 1:
        return rule
    return f"{rule} That patient differs between models here, so they stand in rows of their own."


def _no_pictures(facts: Facts, site: str) -> str:
    if site in facts.simulated:
        return "No pictures were kept when this site was tested."
    return "No pictures: images of patients stay at the hospital unless it includes them."
