"""What a run was, in plain sentences: how far it came, who took part, what travelled."""

from grandrounds.events import Failed, Interrupted, RunFinished, StoppedEarly
from grandrounds.report.arm import FEW_STEPS, Arm
from grandrounds.report.facts import Facts
from grandrounds.report.words import counted, listed, shown


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


def policy(arm: Arm) -> str:
    """Say which parts of the model travel and which stay."""
    if arm.local:
        return "Nothing travels: each hospital trains its own model."
    if arm.policy is None:
        return "What travels is not decided yet."
    travels, stays = (
        [f"{g.group} ({g.parameters:,})" for g in arm.policy.groups if g.policy == kind]
        for kind in ("shared", "private")
    )
    sent = f"Travels each round: {listed(travels)}" if travels else "Nothing travels"
    kept = f"stays at the hospital: {listed(stays)}" if stays else "nothing stays behind"
    return f"{sent}; {kept} (in brackets: numbers of parameters)."


def pictures(facts: Facts, site: str, task: str) -> str:
    """Say how the pictures were chosen, or why there are none."""
    found = facts.panels(site, task)
    if not found:
        return _no_pictures(facts, site)
    rule = (
        "Chosen by rule, not by eye or score: the middle slice of the test patient whose pseudonym "
        "comes in the middle. The figure below a picture is that patient's mean PSNR."
    )
    if len({panel.patient for _, panel in found}) == 1:
        return rule
    return f"{rule} That patient differs between models here, so they stand in rows of their own."


def _no_pictures(facts: Facts, site: str) -> str:
    if site in facts.simulated:
        return "No pictures were kept when this site was tested."
    return "No pictures: images of patients stay at the hospital unless it includes them."
