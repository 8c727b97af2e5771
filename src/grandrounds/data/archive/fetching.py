"""A series is fetched file by file, so that a stop loses at most the file that was on its way."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from grandrounds.core.errors import DiskFailed
from grandrounds.core.sentence import Reason, phrase
from grandrounds.data.archive.settings import Archive
from grandrounds.data.archive.sources import CaseRefused, Ingestion, patient_of
from grandrounds.data.archive.states import ArchiveCase
from grandrounds.data.archive.web import BrokenOff, Pacs, WebSeries, fits_pattern
from grandrounds.data.dicom.instance import Instance, RefusedFile

_LONGEST_WAIT = 60.0  # seconds between two tries


def pacs_of(archive: Archive) -> Pacs:
    """Return the PACS that the settings name."""
    assert archive.url
    return Pacs(archive.url, archive.access)


def fetch_case(pacs: Pacs, run: Ingestion, case: ArchiveCase, into: Path) -> Sequence[Path]:
    """Fetch what is missing of a series, and return all its files.

    Raises `CaseRefused` where the PACS sends what was not asked for, and `PacsTrouble` where files
    are still missing after all tries.
    """
    fetch = _Fetch(pacs, run, case, into)
    wanted = pacs.files(fetch.series)
    if not wanted:
        raise CaseRefused("the PACS lists no file of it")
    for attempt in range(pacs.access.retries + 1):
        if attempt:
            time.sleep(min(pacs.access.pause * 2 ** (attempt - 1), _LONGEST_WAIT))
        if fetch.attempt(wanted, last=attempt == pacs.access.retries):
            return sorted(fetch.seen)
    raise CaseRefused(f"the PACS does not send all of the {len(wanted)} files that it lists")


@dataclass
class _Fetch:
    """A series on its way: what of it came, and what a parser found in that."""

    pacs: Pacs
    run: Ingestion
    case: ArchiveCase
    into: Path
    seen: dict[Path, Instance | RefusedFile] = field(
        default_factory=dict[Path, Instance | RefusedFile]
    )

    @property
    def series(self) -> WebSeries:
        study, series = self.case.place
        return WebSeries("", study, series, "", self.case.files)

    def attempt(self, wanted: Sequence[str], *, last: bool) -> bool:
        """Fetch what is missing; tell whether all is there now."""
        try:
            if not self._has_all(wanted):
                self._fetch_missing(wanted)
        except BrokenOff:
            if last:
                raise
        except OSError as error:
            raise _disk_refused(self.into, error) from None
        return self._has_all(wanted)

    def _fetch_missing(self, wanted: Sequence[str]) -> None:
        """Fetch the whole series where nothing of it is there, otherwise the files that lack."""
        if not self.seen:
            self.pacs.fetch_series(self.series, self.into)
            return
        there = {found.sop_uid for found in self.seen.values() if isinstance(found, Instance)}
        for file in wanted:
            if file not in there:
                self.pacs.fetch_file(self.series, file, self.into)

    def _has_all(self, wanted: Sequence[str]) -> bool:
        """Look at files that are new; tell whether each that was listed is there.

        One that no parser can read has no UID, and counts for one that is missing.
        """
        new = sorted(path for path in self.into.glob("part-*.dcm") if path not in self.seen)
        for path, found in zip(new, self.run.reader.headers(new), strict=True):
            if isinstance(found, Instance):
                _check_asked(self.run, self.case, found)
            self.seen[path] = found
        instances = {found.sop_uid for found in self.seen.values() if isinstance(found, Instance)}
        unread = sum(isinstance(found, RefusedFile) for found in self.seen.values())
        return len(set(wanted) - instances) <= unread


def _check_asked(run: Ingestion, case: ArchiveCase, file: Instance) -> None:
    if (file.study_uid, file.series_uid) != case.place:
        raise CaseRefused("the PACS sent a file of another series than was asked for")
    part = run.archive.query.body_part
    if part and not fits_pattern(file.body_part, part):
        raise CaseRefused("shows another part of the body than was asked for")
    if patient_of(run.pseudonyms, file) != case.patient:
        raise CaseRefused("the PACS sent a file of another patient than was asked for")


def _disk_refused(folder: Path, error: OSError) -> DiskFailed:
    return DiskFailed(
        f"{folder}: cannot be written ({error.strerror}); free some space, then run the command "
        "again, for what came is kept",
        safe=phrase("the disk refused a file ({why})", why=Reason.of(error)),
    )
