"""What a table of states tells to people: counts, reasons and findings, but no name or date."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

from grandrounds.core.errors import BadSite
from grandrounds.data.archive.deidentification import HeaderFinding
from grandrounds.data.archive.settings import Archive
from grandrounds.data.archive.states import (
    ArchiveCase,
    CaseState,
    CaseTable,
    counts_by_state,
    open_table,
)

DISCLAIMER = (
    "Counts of what DICOM's basic profile (PS3.15, table E.1-1) would remove from headers. They do "
    "not say that anything is anonymous."
)


@dataclass(frozen=True)
class ToldCase:
    """What may be told of a case at the site: nothing by which its source could be found."""

    id: str
    patient: str
    session: str
    contrast: str
    state: CaseState
    reason: str
    why: str
    output: str
    files: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class ArchiveOverview:
    """The table of an archive in counts, and its cases.

    `findings` counts files by what their headers hold, `notes` cases by what was remarked,
    `late_sessions` those whose number is not in the order of dates since they came later.
    """

    kind: str
    states: Mapping[CaseState, int]
    patients: int
    sessions: int
    files: int
    findings: Mapping[str, int]
    notes: Mapping[str, int]
    left_out: Mapping[str, int]
    late_sessions: int
    cases: tuple[ToldCase, ...]

    def of_state(self, *states: CaseState) -> tuple[ToldCase, ...]:
        return tuple(case for case in self.cases if case.state in states)


def read_overview(archive: Archive | None) -> ArchiveOverview:
    """Read the table of an archive. Raises `BadSite` where nothing was ingested yet."""
    if archive is None:
        raise BadSite("the site file has no [archive]; it says where a site's images come from")
    with open_table(archive.table, make=False) as table:
        return overview_of(table)


def overview_of(table: CaseTable) -> ArchiveOverview:
    """Return what a table tells."""
    cases = table.all()
    checked = [case for case in cases if case.state == "checked"]
    return ArchiveOverview(
        kind=table.fact("kind") or "unknown",
        states=counts_by_state(cases),
        patients=len({case.patient for case in checked}),
        sessions=len({(case.patient, case.session) for case in checked}),
        files=sum(case.files for case in cases if case.id == case.base),
        findings=_findings(cases),
        late_sessions=table.late_sessions(),
        notes=dict(Counter(note for case in cases for note in case.notes)),
        left_out=table.left_out(),
        cases=tuple(_told(case) for case in cases),
    )


def _findings(cases: Sequence[ArchiveCase]) -> Mapping[str, int]:
    """Count files: the volumes of one series share them."""
    found: Counter[str] = Counter()
    for case in cases:
        if case.id == case.base:
            found.update(case.findings)
    order = ("identified", *get_args(HeaderFinding))
    return {name: found[name] for name in order if found[name]}


def _told(case: ArchiveCase) -> ToldCase:
    return ToldCase(
        case.id,
        case.patient,
        case.session,
        case.contrast,
        case.state,
        case.reason,
        case.why,
        case.output,
        case.files,
        case.notes,
    )
