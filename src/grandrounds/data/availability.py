"""A site reports in counts alone what it can deliver of the common data elements."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isnan, nan
from typing import TypeAlias

from grandrounds.core.errors import BadSite
from grandrounds.core.sentence import Name, Sentence, phrase
from grandrounds.data.cohort import SPLITS, Cohort, Session, SplitName
from grandrounds.data.elements import Elements
from grandrounds.data.nifti import Grid, read_grid
from grandrounds.data.prepare import used_contrasts
from grandrounds.data.remarks import (
    LOSE_ALL,
    coded_notes,
    extent_notes,
    header_notes,
    nameless_notes,
    of_all,
    some,
)
from grandrounds.data.session_files import SessionFiles

Range: TypeAlias = tuple[float, float]
VARIABLES = "variables"  # all of the study's variables, in a task such as variables->death


@dataclass(frozen=True)
class Count:
    """How many patients, sessions and slices there are of something."""

    patients: int
    sessions: int
    slices: int


@dataclass(frozen=True)
class Geometry:
    """Lowest and highest spacing (mm) and size (pixels) of rows and columns before preparation.

    `thickness` is the distance between slices in mm; None where simulated.
    """

    spacing: tuple[Range, Range]
    size: tuple[Range, Range]
    thickness: Range | None


@dataclass(frozen=True)
class SiteSummary:
    """One site in counts.

    `splits` counts all sessions; `contents` those with a contrast ("T1w"), mask ("lesion") or
    variable ("age"); `tasks` those that can serve a task ("T1w->T2w"), per split. `geometry` is
    None where the images have none. `notes` say what is missing or odd and what it costs; each may
    leave, unless it holds names that are not the study's.
    """

    site: str
    simulated: bool
    splits: Mapping[SplitName, Count]
    contents: Mapping[str, Count]
    tasks: Mapping[str, Mapping[SplitName, Count]]
    geometry: Geometry | None
    notes: tuple[Sentence, ...]


def needs(task: str) -> tuple[str, ...]:
    """Return what a case of a task must have; "T1w+FLAIR->lesion" needs two contrasts, one mask."""
    return tuple(word.strip() for side in task.split("->") for word in side.split("+"))


def serves(session: Session, task: str) -> bool:
    """Tell whether a session has all that a task needs."""
    return all(holds(session, name) for name in needs(task))


def summarise(
    cohort: Cohort,
    files: Sequence[SessionFiles],
    *,
    elements: Elements,
    tasks: Sequence[str],
    notes: tuple[Sentence, ...] = (),
) -> SiteSummary:
    """Count what a site's files (from `find_sessions`) and the cohort made from them contain."""
    used = [session for session in files if used_contrasts(session, elements)]
    paths = [s.contrasts[name] for s in used for name in used_contrasts(s, elements)]
    grids = [read_grid(path) for path in paths]
    mask_grids = [read_grid(path) for session in used for path in session.masks.values()]
    found = (*notes, *header_notes([*grids, *mask_grids]), *extent_notes(cohort))
    geometry, left_out = _geometry(grids), _left_out(files, elements)
    summary = _summary(cohort, elements, tasks, simulated=False, geometry=geometry, notes=left_out)
    return replace(summary, notes=(*summary.notes, *found))


def summarise_simulated(cohort: Cohort, *, elements: Elements, tasks: Sequence[str]) -> SiteSummary:
    """Count what a simulated cohort contains; its spacing and size are the study's."""
    (rows, columns), (height, width) = elements.spacing, elements.size
    geometry = Geometry(
        ((rows, rows), (columns, columns)), ((height, height), (width, width)), None
    )
    return _summary(cohort, elements, tasks, simulated=True, geometry=geometry, notes=())


def summarise_arrays(cohort: Cohort, *, elements: Elements, tasks: Sequence[str]) -> SiteSummary:
    """Count what a cohort made from an image stack or a table contains."""
    notes = nameless_notes(cohort)
    return _summary(cohort, elements, tasks, simulated=False, geometry=None, notes=notes)


def check_elements(
    summary: SiteSummary,
    elements: Elements,
    tasks: Sequence[str],
    splits: Sequence[SplitName] = ("train", "test"),
) -> None:
    """Raise `BadSite` where a site has no case of a task in one of the splits."""
    for task in tasks:
        for name in needs(task):
            if not summary.contents[name].sessions:
                lost = [str(note) for note in summary.notes if LOSE_ALL in note.template]
                raise BadSite(
                    f"site '{summary.site}': no session has {name}, which {task} needs; "
                    "add such files or take the task from this site."
                    + "".join(f" ({note}.)" for note in lost),
                    safe=phrase(
                        "no session has {name}, which {task} needs; the site must add such files, "
                        "or the study take the task from it",
                        name=Name(name),
                        task=Name(task),
                    ),
                )
        _check_cases(summary, elements, task, splits)


def _check_cases(
    summary: SiteSummary, elements: Elements, task: str, splits: Sequence[SplitName]
) -> None:
    slices = {split: summary.tasks[task][split].slices for split in SPLITS}
    if not any(slices.values()):
        names = elements.contrasts or tuple(summary.contents)
        sessions = ", ".join(f"{name} ({summary.contents[name].sessions})" for name in names)
        raise BadSite(
            f"site '{summary.site}': {task} has no case; a session must have all that it needs, "
            f"and the sessions here have {sessions}.",
            safe=phrase("no session has all that {task} needs", task=Name(task)),
        )
    for split in splits:
        if not slices[split]:
            counts = ", ".join(f"{slices[other]} {other}" for other in SPLITS)
            raise BadSite(
                f"site '{summary.site}': {task} has no {split} case ({counts} slices); "
                f"more patients need {' and '.join(needs(task))} in one session, or "
                "the study another elements.split.salt, which deals all patients anew.",
                safe=phrase(
                    "{task} has no " + split + " case, but {total} slices in all; it needs more "
                    "patients, or the study another elements.split.salt",
                    task=Name(task),
                    total=sum(slices.values()),
                ),
            )


def _summary(
    cohort: Cohort,
    elements: Elements,
    tasks: Sequence[str],
    *,
    simulated: bool,
    geometry: Geometry | None,
    notes: tuple[Sentence, ...],
) -> SiteSummary:
    needed = (name for task in tasks for name in needs(task))
    names = dict.fromkeys([*elements.contrasts, *elements.variables, *needed])
    sessions = tuple(cohort)
    return SiteSummary(
        cohort.site,
        simulated,
        splits={split: _count(cohort.splits[split]) for split in SPLITS},
        contents={name: _count(s for s in sessions if holds(s, name)) for name in names},
        tasks={
            task: {s: _count(x for x in cohort.splits[s] if serves(x, task)) for s in SPLITS}
            for task in tasks
        },
        geometry=geometry,
        notes=(
            *notes,
            *_missing(cohort, names, tasks),
            *_unmasked(cohort, geometry),
            *_unvalidated(cohort),
            *coded_notes(sessions, elements.variables),
        ),
    )


def holds(session: Session, name: str) -> bool:
    """Tell whether a session has a contrast or a mask, or its patient's value of a variable."""
    if name == VARIABLES:
        return bool(session.values)
    known = not isnan(session.values.get(name, nan))
    return known or name in session.contrasts or name in session.masks


def _count(sessions: Iterable[Session]) -> Count:
    counted = tuple(sessions)
    patients = len({session.patient for session in counted})
    return Count(patients, len(counted), sum(session.num_slices for session in counted))


def _geometry(grids: Sequence[Grid]) -> Geometry:
    thickness, *spacing = (_range(grid.spacing[axis] for grid in grids) for axis in range(3))
    _, *size = (_range(grid.shape[axis] for grid in grids) for axis in range(3))
    return Geometry((spacing[0], spacing[1]), (size[0], size[1]), thickness)


def _range(values: Iterable[float]) -> Range:
    rounded = [round(value, 3) for value in values]
    return min(rounded), max(rounded)


def _left_out(files: Sequence[SessionFiles], elements: Elements) -> tuple[Sentence, ...]:
    # The names are not listed: a contrast that the study does not define may have a revealing name.
    unused = [len(set(session.contrasts) - set(elements.contrasts)) for session in files]
    without = sum(not used_contrasts(session, elements) for session in files)
    notes: list[Sentence] = []
    if sum(unused):
        volumes = some(sum(unused), "volume")
        notes.append(
            phrase("{volumes} of contrasts outside of the study: left out", volumes=volumes)
        )
    if without:
        sessions = of_all(without, len(files))
        verb = "has" if without == 1 else "have"
        notes.append(
            phrase("{sessions} " + verb + " no contrast of the study: left out", sessions=sessions)
        )
    return tuple(notes)


def _missing(cohort: Cohort, names: Iterable[str], tasks: Sequence[str]) -> tuple[Sentence, ...]:
    sessions, notes = tuple(cohort), list[Sentence]()
    for name in names:
        lacking = [session for session in sessions if not holds(session, name)]
        if lacking:
            cost = _cost(name, lacking, tasks)
            lack = _lack(len(lacking), len(sessions))
            notes.append(phrase("{lack} {name}: {cost}", lack=lack, name=Name(name), cost=cost))
    return tuple(notes)


def _cost(name: str, lacking: Sequence[Session], tasks: Sequence[str]) -> Sentence:
    blocked_tasks = tuple(Name(task) for task in tasks if name in needs(task))
    table_tasks = tuple(Name(task) for task in tasks if VARIABLES in needs(task))
    if blocked_tasks:
        slices = some(sum(session.num_slices for session in lacking), "slice")
        return phrase("{slices} cannot serve {tasks}", slices=slices, tasks=blocked_tasks)
    if table_tasks and all(name in session.values for session in lacking):
        return phrase("{tasks} reads it as missing", tasks=table_tasks)
    return phrase("no task here needs it")


def _unmasked(cohort: Cohort, geometry: Geometry | None) -> tuple[Sentence, ...]:
    lacking = ["brain" not in session.masks for session in cohort]
    if geometry is None or not any(lacking):
        return ()
    lack = _lack(sum(lacking), len(lacking))
    return (phrase("{lack} a brain mask: scaled by the whole head", lack=lack),)


def _unvalidated(cohort: Cohort) -> tuple[Sentence, ...]:
    left = cohort.splits["validation"]
    return () if left else (phrase("no patient is left for validation"),)


def _lack(number: int, total: int) -> Sentence:
    verb = "lacks" if number == 1 else "lack"
    return phrase("{sessions} " + verb, sessions=of_all(number, total))
