"""Sentences and cells on differential privacy are written here: whom it protects, and how much."""

from collections.abc import Sequence

from grandrounds.report.analysis.arm import Arm
from grandrounds.report.analysis.facts import Facts
from grandrounds.report.analysis.folder import PrivacyFacts
from grandrounds.report.prose.vocabulary import counted, display_name

_WHOSE = {
    "client": "a whole hospital: whoever sees the mean of all hospitals' updates, and no single "
    "one, can hardly tell whether one of them took part with its data",
    "record": "each training patient with all slices: whoever sees everything that leaves the "
    "hospital can hardly tell whether a patient was among its data",
}
_CLIPPED = {"client": "each update", "record": "each patient's gradient in a step"}


def private_arms(facts: Facts) -> list[Arm]:
    """Return the arms that trained with differential privacy, and told epsilon."""
    return [arm for arm in facts.arms if arm.study.privacy and arm.runs]


def protects(found: PrivacyFacts) -> str:
    """Say whom differential privacy protects, by what, and whom it does not protect."""
    said = (
        f"It protects {_WHOSE[found.kind]}. For that {_CLIPPED[found.kind]} was clipped to "
        f"{found.clip:g} (L2) and got noise of {found.noise:g} times that. Epsilon at delta "
        f"{found.delta:g} bounds what the run revealed: the smaller, the less."
    )
    if not found.noise:
        said = "There was no noise, so nothing bounds what the run revealed."
    return f"{said} Patients for validation and test, and counts of patients, are not protected."


def reached(arm: Arm) -> str:
    """Say whose privacy budget ended the training; empty where none did."""
    ends = [run.budget for run in arm.runs if run.budget]
    if not ends:
        return ""
    first = ends[0]
    return (
        f"The privacy budget of {display_name(first.site)} allowed no more than "
        f"{counted(first.round, 'round')}, which ended the training."
    )


def epsilon_rows(arm: Arm, rounds: Sequence[int]) -> list[tuple[str, list[str]]]:
    """Return each hospital's epsilon after these rounds; over seeds, the largest."""
    sites = dict.fromkeys(site for run in arm.runs for site in run.epsilons)
    return [(site, [_largest(arm, site, number) for number in rounds]) for site in sites]


def _largest(arm: Arm, site: str, number: int) -> str:
    found = [dict(run.epsilons.get(site, ())).get(number) for run in arm.runs]
    known = [value for value in found if value is not None]
    return f"{max(known):.2f}" if known else ""


def told_rounds(arm: Arm) -> tuple[int, ...]:
    """Return the rounds after which some hospital told its epsilon."""
    curves = (curve for run in arm.runs for curve in run.epsilons.values())
    return tuple(sorted({number for curve in curves for number, _ in curve}))
