"""From an archive to a flat folder of volumes; a run does what is missing, and can be stopped."""

import hashlib
import os
import shutil
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from grandrounds.core.errors import BadSite
from grandrounds.core.files import make_folder, make_private_folder
from grandrounds.core.processes import hold
from grandrounds.data.archive.conversion import convert_files, convert_volume
from grandrounds.data.archive.pseudonyms import open_pseudonyms
from grandrounds.data.archive.publication import (
    publish_session,
    published_path,
    remove_old,
    write_participants,
)
from grandrounds.data.archive.settings import Archive
from grandrounds.data.archive.sources import (
    ArchiveSource,
    CaseRefused,
    Ingestion,
    NiftiFolder,
    PacsSource,
    Tell,
    open_source,
)
from grandrounds.data.archive.states import ArchiveCase, CaseTable, open_table
from grandrounds.data.dicom.parse import DicomReader
from grandrounds.data.dicom.parser import USUAL_LIMITS, Limits

CONVERTER_VERSION = 1  # raise it where a volume would come out otherwise: all is done again
_MOST_LOST = 3  # sessions in a row that a PACS does not deliver, before it is left alone
_KEY_CHECK = "key"


def ingest(archive: Archive, tell: Tell, limits: Limits = USUAL_LIMITS) -> None:
    """Bring every case of an archive as far as it goes; what was done before stays done.

    `limits` are those of the processes that parse DICOM files. Raises `BadSite` where
    nothing can be done, or another run is at work.
    """
    make_private_folder(archive.private_folder)
    make_folder(archive.volumes)
    with _alone(archive), open_table(archive.table) as table, ExitStack() as stack:
        source = open_source(archive)
        is_dicom = not isinstance(source, NiftiFolder)
        reader = stack.enter_context(DicomReader(limits)) if is_dicom else None
        make_private_folder(archive.private_folder / "converted")
        first = table.fact(_KEY_CHECK) is None
        pseudonyms = open_pseudonyms(archive.key_file, make=first)
        _check_key(archive, table, pseudonyms.check)
        run = Ingestion(archive, table, pseudonyms, reader, tell)
        table.note_left_out(source.find(run))
        table.note("kind", source.kind)
        table.number_sessions()
        _sweep(run)
        lost = _work(run, source)
        write_participants(run)
        _check_any(archive, source, table.all(), lost)


@contextmanager
def _alone(archive: Archive) -> Generator[None]:
    """Let one run at a time work on a table."""
    held = hold(archive.private_folder / "in-use.lock")
    if held is None:
        raise BadSite(f"{archive.private_folder}: another ingest is at work here; let it end first")
    try:
        yield
    finally:
        os.close(held)


def _check_key(archive: Archive, table: CaseTable, check: str) -> None:
    noted = table.fact(_KEY_CHECK)
    if noted is None:
        table.note(_KEY_CHECK, check)
    elif noted != check:
        raise BadSite(
            f"{archive.key_file}: is another key than the one by which this table's patients have "
            "their names; bring the right one back from a backup"
        )


def _sweep(run: Ingestion) -> None:
    """Remove what a killed run left of cases that were done: a PACS' files name people."""
    states = {case.id: case.state for case in run.table.all()}
    open_ = {id.partition(".")[0] for id, state in states.items() if state in ("found", "fetched")}
    for folder in run.fetched.glob("*"):
        if folder.name not in open_ and not run.archive.keep_fetched:
            shutil.rmtree(folder)
    for path in run.converted.glob("*"):
        if states.get(path.name.removesuffix(".nii.gz").removesuffix(".json")) != "converted":
            path.unlink()


def _work(run: Ingestion, source: ArchiveSource) -> Sequence[str]:
    """Work session by session; return why series could not be fetched."""
    lost: list[str] = []
    in_a_row = 0
    settings = _settings(run.archive)
    studies = run.table.studies()
    for number, study in enumerate(studies):
        run.tell("sessions", number, len(studies))
        has_work = bool(_to_do(run, study, settings))
        failed = _session(run, source, study, settings)
        lost += failed
        in_a_row = in_a_row + 1 if failed else 0 if has_work else in_a_row
        if in_a_row >= _MOST_LOST:
            break
    run.tell("sessions", len(studies), len(studies))
    return lost


def _session(
    run: Ingestion, source: ArchiveSource, of: tuple[str, str], settings: str
) -> Sequence[str]:
    lost: list[str] = []
    while True:
        for case in _to_do(run, of, settings):
            try:
                _convert(run, source, case, settings)
            except _NotFetched as error:
                lost.append(str(error))
                run.table.put(replace(case, state="found", reason=str(error)))
        if not publish_session(run, *of) and not lost:
            continue
        if not lost:  # else what was fetched before stays until it is replaced
            remove_old(run, *of)
        return lost


class _NotFetched(Exception):  # noqa: N818 - it ends inside this module
    """One series could not be fetched; others may be."""


def _to_do(run: Ingestion, of: tuple[str, str], settings: str) -> Sequence[ArchiveCase]:
    """Return one case of each series that is not done, or whose volume is gone."""
    own = [case for case in run.table.of_study(*of) if case.source == run.source]
    open_ = {case.base: case for case in own if _is_open(run, case, settings)}
    return [replace(case, id=case.base) for case in open_.values()]


def _is_open(run: Ingestion, case: ArchiveCase, settings: str) -> bool:
    if case.state in ("found", "fetched"):
        return True
    if case.state == "checked" and not published_path(run, case).exists():
        return True
    return case.settings not in ("", settings)


def _convert(run: Ingestion, source: ArchiveSource, case: ArchiveCase, settings: str) -> None:
    base = replace(
        case,
        state="found",
        reason="",
        session=run.table.session(case.patient, case.study),
        output="",
        quality=None,
        notes=(),
        settings=settings,
    )
    try:
        cases = _converted(run, source, base)
    except CaseRefused as refused:
        cases = [replace(base, state="refused", reason=str(refused))]
    run.table.replace(case.base, cases)
    if isinstance(source, PacsSource) and not run.archive.keep_fetched:
        shutil.rmtree(run.fetched / case.base, ignore_errors=True)


def _converted(run: Ingestion, source: ArchiveSource, case: ArchiveCase) -> list[ArchiveCase]:
    paths = _brought(run, source, case)
    if isinstance(source, PacsSource):
        run.table.put(replace(case, state="fetched"))
    if isinstance(source, NiftiFolder):
        return convert_volume(run, case, paths[0])
    return convert_files(run, case, paths)


def _brought(run: Ingestion, source: ArchiveSource, case: ArchiveCase) -> Sequence[Path]:
    try:
        return source.bring(run, case)
    except BadSite as error:
        if getattr(error, "of_all", True):
            raise
        raise _NotFetched(str(error)) from None


def _settings(archive: Archive) -> str:
    """Return what the state of a case depends on beside its files."""
    told = (CONVERTER_VERSION, archive.identified, archive.contrast)
    return hashlib.sha256(repr(told).encode()).hexdigest()[:16]


def _check_any(
    archive: Archive, source: ArchiveSource, cases: Sequence[ArchiveCase], lost: Sequence[str]
) -> None:
    if lost:
        series = "1 series" if len(lost) == 1 else f"{len(lost)} series"
        raise BadSite(f"{series} could not be fetched yet: {lost[0]}")
    if not cases:
        where = archive.folder or "the PACS"
        raise BadSite(f"{where}: no series was found ({source.kind}); is archive.query too narrow?")
    if not any(case.state == "checked" for case in cases):
        reason = next(case.reason for case in cases if case.reason)
        raise BadSite(f"none of {len(cases)} series became a volume: the first {reason}")
