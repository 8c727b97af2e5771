"""Where cases come from: a folder of DICOM files, a folder of NIfTI volumes, or a PACS."""

import hashlib
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from math import isfinite
from pathlib import Path
from typing import Protocol

from grandrounds.core.errors import BadInput, BadSite
from grandrounds.core.extras import install_command
from grandrounds.core.files import make_private_folder
from grandrounds.data.archive.pseudonyms import Pseudonyms
from grandrounds.data.archive.settings import Archive, patients_of
from grandrounds.data.archive.states import ArchiveCase, CaseTable, KnownFile
from grandrounds.data.archive.trees import (
    VolumeFile,
    bids_volumes,
    by_number,
    files_below,
    kind_of,
    plain_volumes,
)
from grandrounds.data.dicom.instance import Instance, RefusedFile
from grandrounds.data.dicom.parse import DicomReader
from grandrounds.data.table import numeric_columns, participants_of

_BATCH = 256  # files between two transactions of a first look
GONE = "is no longer in the archive: its volume was removed"
_HARMLESS = ("not DICOM", "not an image")
Tell = Callable[[str, int, int], None]


class CaseRefused(Exception):  # noqa: N818 - it is an answer
    """A case is not taken; the message says why, and names nobody."""


@dataclass(frozen=True)
class Ingestion:
    """One run of `ingest`: its settings, its table, the site's key, and whom to tell how far it is.

    `tell` takes what is done, how many of it are done, and how many there are (0: not known).
    """

    archive: Archive
    table: CaseTable
    pseudonyms: Pseudonyms
    parser: DicomReader | None
    tell: Tell

    @property
    def reader(self) -> DicomReader:
        assert self.parser  # only NIfTI volumes need none
        return self.parser

    @property
    def source(self) -> str:
        """Return by what a table that several archives share knows this one."""
        return self.pseudonyms.case(f"source {self.archive.folder or self.archive.url}")

    @property
    def converted(self) -> Path:
        return self.archive.private_folder / "converted"

    @property
    def fetched(self) -> Path:
        return self.archive.private_folder / "fetched"


class ArchiveSource(Protocol):
    """Finds cases, and brings the files of one."""

    @property
    def kind(self) -> str:
        """Return what was found by looking, in words."""
        ...

    def find(self, run: Ingestion) -> Mapping[str, int]:
        """Put every case into the table; return what was left out, in counts."""
        ...

    def bring(self, run: Ingestion, case: ArchiveCase) -> Sequence[Path]:
        """Return the files of a case. Raises `CaseRefused`, and `BadSite` where all must stop."""
        ...


def open_source(archive: Archive) -> ArchiveSource:
    """Find out what the archive is. Raises `BadSite`."""
    if archive.folder is None:
        if find_spec("requests") is None:
            raise BadInput(
                f"asking a PACS needs the package requests; install it with "
                f"{install_command('dicom')}"
            )
        return PacsSource()
    kind = kind_of(archive.folder)
    return (
        DicomFolder(archive.folder) if kind == "DICOM files" else NiftiFolder(archive.folder, kind)
    )


def gone(case: ArchiveCase) -> ArchiveCase:
    """Return a case whose files were taken out of the archive: its volume goes, too."""
    return replace(case, state="refused", reason=GONE, mark="", output="", quality=None)


@dataclass(frozen=True)
class DicomFolder:
    """DICOM files in any order or nesting; each is looked at once, unless it changes."""

    folder: Path
    kind: str = "DICOM files"

    def find(self, run: Ingestion) -> Mapping[str, int]:
        known, there = run.table.files(), dict(_stats(self.folder))
        own = {path for path in known if Path(path).is_relative_to(self.folder)}
        new = [p for p, (size, when) in there.items() if not _same(known.get(str(p)), size, when)]
        for number, batch in enumerate(_batches(new)):
            self._look(run, batch, there)
            run.tell("headers", number * _BATCH + len(batch), len(new))
        left = {known[path].base for path in own - {str(path) for path in there}} - {""}
        run.table.put_files({}, own - {str(path) for path in there})
        self._mark_anew(run, left)
        looked = run.table.files()
        return Counter(_LEFT_OUT for path in there if not looked[str(path)].base)

    def _look(
        self, run: Ingestion, batch: Sequence[Path], there: Mapping[Path, tuple[int, int]]
    ) -> None:
        seen, cases = dict[str, KnownFile](), dict[str, ArchiveCase]()
        for path, found in zip(batch, run.reader.headers(batch), strict=True):
            case = _case_of(run, found)
            if case and case.base not in cases:
                before = run.table.get(case.base)
                cases[case.base] = replace(before or case, source=run.source)
            seen[str(path)] = KnownFile(*there[path], case.base if case else "")
        run.table.put(*cases.values())
        run.table.put_files(seen)

    def _mark_anew(self, run: Ingestion, left: Collection[str]) -> None:
        """Note of each series which files it has now; where these changed it is done again.

        `left` are series of which files were taken away.
        """
        files: dict[str, list[tuple[str, int, int]]] = defaultdict(list)
        for path, file in run.table.files().items():
            if Path(path).is_relative_to(self.folder):
                place = str(Path(path).relative_to(self.folder))
                files[file.base].append((place, file.size, file.modified))
        own = [case for case in run.table.all() if case.source == run.source]
        marked: list[ArchiveCase] = []
        for case in own:
            if case.id == case.base and (found := files.get(case.base)):
                marked += _marked(case, _digest(found))
            elif case.id == case.base and (case.base in left or not case.patient):
                parts = [each for each in own if each.base == case.base]
                run.table.replace(case.base, [gone(each) for each in parts if each.patient])
        run.table.put(*marked)

    def bring(self, run: Ingestion, case: ArchiveCase) -> Sequence[Path]:
        paths = run.table.paths(case.base)
        return [path for path in paths if path.is_relative_to(self.folder)]


_LEFT_OUT = "files that are no DICOM image"


def _case_of(run: Ingestion, found: Instance | RefusedFile) -> ArchiveCase | None:
    """Return the case that a file belongs to; one that is damaged is a case of its own."""
    if isinstance(found, Instance):
        return case_of_series(run.pseudonyms, found)
    if found.trouble in _HARMLESS:
        return None
    id = run.pseudonyms.case(f"file {found.path}")
    return ArchiveCase(id, "", "", "", (), "", "refused", f"a file {found.reason}", files=1)


def case_of_series(pseudonyms: Pseudonyms, file: Instance) -> ArchiveCase:
    """Return the case of a file's series: whose it is, and when, in the site's own table alone."""
    id = pseudonyms.case(f"series {file.study_uid} {file.series_uid}")
    day = f"{file.study_date}{file.series_time}"
    return ArchiveCase(id, patient_of(pseudonyms, file), file.study_uid, day, (), "")


def patient_of(pseudonyms: Pseudonyms, file: Instance) -> str:
    """Return a patient's pseudonym; without an ID a study counts as a patient of its own."""
    return pseudonyms.patient(file.patient.id.strip() or f"study {file.study_uid}")


def _marked(case: ArchiveCase, mark: str) -> Sequence[ArchiveCase]:
    """Return a case with the mark of its files now, if that is another one."""
    again = case.patient and case.mark
    state = "found" if again else case.state
    return [replace(case, mark=mark, state=state)] if mark != case.mark else []


def _stats(folder: Path) -> Generator[tuple[Path, tuple[int, int]]]:
    for path in files_below(folder):
        try:
            found = path.stat(follow_symlinks=False)
        except OSError as error:
            raise BadSite(f"{path}: {error.strerror}; the archive must be readable") from None
        yield path, (found.st_size, found.st_mtime_ns)


def _same(known: KnownFile | None, size: int, modified: int) -> bool:
    return known is not None and (known.size, known.modified) == (size, modified)


def _batches(paths: Sequence[Path]) -> Generator[Sequence[Path]]:
    for begin in range(0, len(paths), _BATCH):
        yield paths[begin : begin + _BATCH]


def _digest(found: Iterable[object]) -> str:
    return hashlib.sha256(repr(sorted(map(repr, found))).encode()).hexdigest()


@dataclass(frozen=True)
class NiftiFolder:
    """NIfTI volumes: a BIDS tree, or others; a volume is a case."""

    folder: Path
    kind: str

    def find(self, run: Ingestion) -> Mapping[str, int]:
        tree = (bids_volumes if self.kind == "a BIDS tree" else plain_volumes)(self.folder)
        ages = _ages(self.folder)
        cases = [self._case(run, volume, ages) for volume in tree.volumes]
        known = {case.id: case for case in run.table.all()}
        there = {case.id for case in cases}
        left = [c for c in known.values() if c.source == run.source and c.id not in there]
        run.table.put(*(_seen(known.get(case.id), case) for case in cases), *map(gone, left))
        return tree.left_out

    def _case(self, run: Ingestion, volume: VolumeFile, ages: Mapping[str, float]) -> ArchiveCase:
        place = str(volume.path.relative_to(self.folder))
        sidecars = volume.path.parent.glob("*.json")
        mark = _digest([_stamp(volume.path), *sorted(map(_stamp, sidecars))])
        id = run.pseudonyms.case(f"volume {place}")
        patient = run.pseudonyms.patient(volume.patient) if volume.patient else ""
        study = f"session {volume.session}"
        return ArchiveCase(
            id, patient, study, by_number(volume.session), (place,), mark,
            state="refused" if volume.refusal else "found",
            reason=f"a volume {volume.refusal}" if volume.refusal else "",
            contrast=volume.contrast, why=volume.why, files=1, source=run.source,
            age=ages.get(f"sub-{volume.patient}"),
        )  # fmt: skip

    def bring(self, run: Ingestion, case: ArchiveCase) -> Sequence[Path]:  # noqa: ARG002
        return (self.folder / case.place[0],)


def _ages(folder: Path) -> Mapping[str, float]:
    """Return the ages that the tree's own table has, by its own names of patients."""
    table = participants_of(folder)
    columns: Mapping[str, Mapping[str, float]] = numeric_columns(table) if table else {}
    found = columns.get("age", dict[str, float]())
    return {patient: age for patient, age in found.items() if isfinite(age)}


def _seen(before: ArchiveCase | None, now: ArchiveCase) -> ArchiveCase:
    """Return a case that was found again: as it was, unless it changed in the archive."""
    if before is None or (before.mark, before.place) != (now.mark, now.place):
        return now
    return replace(before, source=now.source)


def _stamp(path: Path) -> tuple[str, int, int]:
    try:
        found = path.stat()
    except OSError:  # a link that leads nowhere: reading it says so
        return path.name, 0, 0
    return path.name, found.st_size, found.st_mtime_ns


@dataclass(frozen=True)
class PacsSource:
    """A PACS over DICOMweb; what it sent lies in a private folder until it is converted."""

    kind: str = "a PACS over DICOMweb"

    def find(self, run: Ingestion) -> Mapping[str, int]:
        from grandrounds.data.archive.fetching import pacs_of
        from grandrounds.data.archive.web import WebSeries

        def case_of(series: WebSeries) -> ArchiveCase:
            patient = series.patient or f"study {series.study}"
            return ArchiveCase(
                run.pseudonyms.case(f"series {series.study} {series.series}"),
                run.pseudonyms.patient(patient),
                series.study,
                series.day,
                (series.study, series.series),
                str(series.files),
                files=series.files,
                source=run.source,
            )

        query = run.archive.query
        for number, series in enumerate(pacs_of(run.archive).series(query, patients_of(query))):
            run.tell("series found", number, 0)
            case = case_of(series)
            before = run.table.get(case.id)
            if before != (seen := _seen(before, case)):
                run.table.put(seen)
        return {}

    def bring(self, run: Ingestion, case: ArchiveCase) -> Sequence[Path]:
        from grandrounds.data.archive.fetching import fetch_case, pacs_of

        into = run.fetched / case.base
        make_private_folder(into)
        try:
            return fetch_case(pacs_of(run.archive), run, case, into)
        except CaseRefused:
            shutil.rmtree(into)
            raise
