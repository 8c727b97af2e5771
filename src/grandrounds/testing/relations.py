"""A relation is a theorem of one's own class: it holds to the bit, or it is told what was found."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from grandrounds.api.study import check_workers
from grandrounds.core.errors import BadInput, SiteFailed
from grandrounds.core.weights import first_not_finite
from grandrounds.runs.build import check_processes, num_processes
from grandrounds.testing.trial import (
    Between,
    Record,
    Trial,
    its_sites,
    joined,
    parting,
    said_by,
    same_bits,
)


@dataclass(frozen=True)
class Relation:
    """A theorem that holds; with a `reason` it does not apply."""

    name: str
    sentence: str
    reason: str = field(default="", kw_only=True)

    def __str__(self) -> str:
        """Return one line."""
        if self.reason:
            return f"does not apply: {self.name}: {self.reason}"
        return f"holds: {self.name}"


class Broken(AssertionError):  # noqa: N818 - reads as what it says
    """One relation or more does not hold; `found` maps the name of each to what was found."""

    def __init__(self, title: str, found: Mapping[str, str]) -> None:
        super().__init__("\n".join(f"{title}: {sentence}" for sentence in found.values()))
        self.found = dict(found)


class DoesNotApply(Exception):  # noqa: N818 - reads as what it says
    """A relation says nothing of this class; the message is the reason."""


class Subject(Protocol):
    """What relations are tried on: a trial, and the record of its first run."""

    @property
    def trial(self) -> Trial: ...

    @property
    def reference(self) -> Record: ...


S = TypeVar("S", bound=Subject, contravariant=True)


@dataclass(frozen=True)
class Theorem(Generic[S]):
    """A relation and how it is tried: `finding` returns what breaks it, and "" where it holds.

    `finding` raises `DoesNotApply` where the relation says nothing.
    """

    name: str
    sentence: str
    finding: Callable[[S], str]


def try_all(theorems: Sequence[Theorem[S]], subject: S) -> tuple[Relation, ...]:
    """Try all theorems, and return the relations. Raises `Broken` with all that do not hold."""
    relations, found, causes = list[Relation](), dict[str, str](), list[Exception]()
    for theorem in theorems:
        try:
            finding, reason = theorem.finding(subject), ""
        except DoesNotApply as without:
            finding, reason = "", str(without)
        except Exception as error:  # of the class that is tried: whatever it is, it is told
            finding, reason = f"{theorem.name}: it fails: {said_by(error)}", ""
            causes.append(error)
        if finding:
            found[theorem.name] = finding
        relations.append(Relation(theorem.name, theorem.sentence, reason=reason))
    if found:
        raise Broken(subject.trial.title, found) from next(iter(causes), None)
    return tuple(relations)


def nobody(failure: SiteFailed) -> str:  # noqa: ARG001 - as others are called
    """Blame a failure on no relation in particular."""
    return ""


def first_run(
    trial: Trial,
    between: Between = its_sites,
    *,
    breaks: Callable[[SiteFailed], str] = nobody,
) -> Record:
    """Run the study as it is. Raises `Broken` where that fails, as no relation can be tried then.

    `breaks` names the relation that a site's failure breaks, if it is another than the first.
    Raises `BadInput` where the house refuses to run the study.
    """
    try:
        return trial.run("reference", between=between)
    except BadInput:
        raise
    except Exception as error:  # of the class that is tried, as above
        name = breaks(error) if isinstance(error, SiteFailed) else ""
        name = name or FINITE.name
        raise Broken(trial.title, {name: f"{name}: it fails: {said_by(error)}"}) from error


def what_rests(subject: Subject) -> str:
    """Return what is not finite after training, or has not moved."""
    record = subject.reference
    shared = record.rounds[record.last].state.weights
    for site, first in record.first.items():
        if odd := first_not_finite(record.kept(site, record.last)):
            return f"{odd} of site '{site}' is not finite after round {record.last}"
        after = shared | record.model(site, record.last)
        trained = [name for name in first if name in record.trained]
        moved = [name for name in trained if not same_bits(first[name], after[name])]
        still = {_part(name) for name in trained} - {_part(name) for name in moved}
        if still:
            first_still, more = min(still), f", and {len(still) - 1} more" if len(still) > 1 else ""
            return f"after {record.last} rounds site '{site}' has not moved {first_still}{more}"
        if shared and all(same_bits(first[name], shared[name]) for name in first if name in shared):
            return f"after {record.last} rounds nothing of the shared model has moved"
    return ""


def _part(name: str) -> str:
    """Return the part of a network that a tensor belongs to, such as generator.decoder.

    A single layer may rest, where all of its units are at zero.
    """
    return ".".join(name.split(".")[:2])


def changed_by_stopping(subject: Subject) -> str:
    """Stop the run in each of its rounds, and return how what it ends with differs."""
    trial, whole = subject.trial, subject.reference
    records = [trial.run("stopped", resume=n > 1, stop_in=n) for n in whole.rounds]
    stopped = joined([*records, trial.run("stopped", resume=True)])
    found = parting(whole, stopped)
    if not found:
        return ""
    return (
        f"stopped in round {found.round} and resumed, it ends with other weights: {found.sentence}"
    )


def in_two_processes(again: Callable[[Trial], Record]) -> Theorem[Subject]:
    """Make the theorem of two processes, in which `again` runs the study."""

    def changed_by_processes(subject: Subject) -> str:
        trial = subject.trial
        if num_processes(trial.study, 2) < 2:
            raise DoesNotApply("one process has all there is to train")
        try:
            check_workers(trial.study, 2)
            check_processes(trial.study, trial.files)
        except BadInput as refusal:
            raise DoesNotApply(str(refusal)) from None
        found = parting(subject.reference, again(trial))
        return f"in two processes it ends with other weights: {found.sentence}" if found else ""

    return Theorem(
        "two processes = one",
        "Sites that train in processes of their own end with the bits of sites in one process.",
        changed_by_processes,
    )


FINITE = Theorem(
    "weights are finite and moved",
    "After training no number is infinite or NaN, and every part of the network has moved.",
    what_rests,
)
RESUMED = Theorem(
    "stopped in any round and resumed = never stopped",
    "A run that is stopped in a round, once it is trained and before it is saved, and then "
    "resumed, ends with the bits of a run that was never stopped.",
    changed_by_stopping,
)
