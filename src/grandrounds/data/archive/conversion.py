"""The files of a case become volumes with a clean header, or the case is refused with a reason."""

import gzip
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from grandrounds.core.errors import BadImage
from grandrounds.core.files import write_bytes, write_text
from grandrounds.core.sentence import Sentence
from grandrounds.data.acquisition import Acquisition, from_sidecar, read_acquisition, sidecar_of
from grandrounds.data.archive.deidentification import count_findings, refusal_of
from grandrounds.data.archive.sources import CaseRefused, Ingestion
from grandrounds.data.archive.states import ArchiveCase, CaseQuality
from grandrounds.data.archive.trees import inherited_sidecar
from grandrounds.data.dicom.contrast import recognise_contrast
from grandrounds.data.dicom.instance import Instance, RefusedFile
from grandrounds.data.dicom.series import RefusedSeries, Series, find_series
from grandrounds.data.dicom.volume import write_volume
from grandrounds.data.nifti import read_grid, read_voxels, to_nifti
from grandrounds.data.remarks import header_notes
from grandrounds.data.session_files import MASKS, NAME

_FAST = 4  # of gzip's levels: half the time of 6 for 2 % more bytes
_NO_REASON = "cannot be read"


def convert_files(run: Ingestion, case: ArchiveCase, paths: Sequence[Path]) -> list[ArchiveCase]:
    """Convert the DICOM files of a series into the volumes that it holds.

    Raises `CaseRefused` where the series as a whole is not taken.
    """
    looked = list(run.reader.headers(paths))
    files = [each for each in looked if isinstance(each, Instance)]
    bad = [each for each in looked if isinstance(each, RefusedFile)]
    if not files:
        raise CaseRefused(f"its file {bad[0].reason}" if bad else "has no files any more")
    if len({(file.patient.id.strip(), file.patient.issuer) for file in files}) > 1:
        raise CaseRefused("its files are of more than one patient")
    findings = count_findings(files)
    case = replace(
        case, findings=findings, files=len(paths), age=files[0].age, sex=files[0].sex.strip()[:1]
    )
    if refusal := refusal_of(findings, identified=run.archive.identified):
        return [_refused(case, refusal)]
    notes = (
        (f"{len(bad)} of its files could not be used: the first {bad[0].reason}",) if bad else ()
    )
    if not files[0].patient.id.strip():
        notes += ("has no patient ID: its study counts as a patient of its own",)
    return _volumes_of(run, replace(case, notes=notes), files)


def _volumes_of(run: Ingestion, case: ArchiveCase, files: Sequence[Instance]) -> list[ArchiveCase]:
    found = find_series(files)
    each = [*found.series, *found.refused]
    if not each:
        raise CaseRefused("holds no picture that makes a volume")
    numbered = [
        replace(case, id=f"{case.base}.{number}" if number else case.base)
        for number in range(len(each))
    ]
    return [_volume(run, own, one) for own, one in zip(numbered, each, strict=True)]


def _volume(run: Ingestion, case: ArchiveCase, found: Series | RefusedSeries) -> ArchiveCase:
    if isinstance(found, RefusedSeries):
        return _refused(case, found.reason)
    recognised = recognise_contrast(found, run.archive.contrast)
    case = replace(case, contrast=recognised.contrast or "", why=str(recognised.reason))
    if not recognised.contrast:
        return _refused(case, recognised.reason)
    try:
        volume = run.reader.volume(found)
    except BadImage as error:
        return _refused(case, error.safe)
    write_volume(volume, converted_file(run, case))
    quality = CaseQuality(
        derived=any("DERIVED" in kind for kind in (found.frame.image_type, found.first.image_type)),
        dimensions=volume.acquisition.dimensions or 2,
        voxel=round(float(abs(np.linalg.det(volume.affine[:3, :3]))), 4),
        slices=volume.voxels.shape[2],
    )
    notes = (*case.notes, *map(str, volume.remarks))
    return replace(case, state="converted", reason="", quality=quality, notes=notes)


def convert_volume(run: Ingestion, case: ArchiveCase, path: Path) -> list[ArchiveCase]:
    """Write a NIfTI volume anew, with nothing of its header but where its voxels lie.

    Raises `CaseRefused`.
    """
    try:
        voxels, grid = read_voxels(path), read_grid(path)
        acquisition, doubts = _acquired(run, path)
        content = to_nifti(voxels, like=path)
    except BadImage as error:
        raise CaseRefused(str(error.safe or _NO_REASON)) from None
    if case.contrast.endswith("Gd"):
        acquisition = replace(acquisition, contrast_agent=True)
    _write(run, case, gzip.compress(content, _FAST, mtime=0), acquisition)
    quality = CaseQuality(
        derived=False,
        dimensions=acquisition.dimensions or 2,
        voxel=round(float(np.prod(grid.spacing)), 4),
        slices=grid.shape[0],
    )
    notes = tuple(str(each) for each in (*header_notes([grid]), *doubts))
    return [replace(case, state="converted", reason="", quality=quality, notes=notes)]


def _acquired(run: Ingestion, path: Path) -> tuple[Acquisition, tuple[Sentence, ...]]:
    root = run.archive.folder
    assert root
    match = NAME.fullmatch(path.name)
    if match and match["kind"] in MASKS:
        return Acquisition(), ()
    if "anat" in path.parts:
        return from_sidecar(inherited_sidecar(path, root)).checked()
    return read_acquisition(path)


def _write(run: Ingestion, case: ArchiveCase, volume: bytes, acquisition: Acquisition) -> None:
    path = converted_file(run, case)
    write_text(sidecar_of(path), f"{json.dumps(acquisition.to_sidecar(), indent=2)}\n")
    write_bytes(path, volume)


def converted_file(run: Ingestion, case: ArchiveCase) -> Path:
    """Return where a volume lies between its conversion and its publication."""
    return run.converted / f"{case.id}.nii.gz"


def _refused(case: ArchiveCase, reason: Sentence | None) -> ArchiveCase:
    return replace(case, state="refused", reason=str(reason or _NO_REASON))
