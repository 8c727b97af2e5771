"""Volumes of real DICOM files beside what SimpleITK and dcm2niix make of the same files."""

import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from pydicom.data.data_manager import DATA_ROOT

from grandrounds.core.errors import BadImage
from grandrounds.data.dicom.contrast import recognise_contrast
from grandrounds.data.dicom.instance import Instance, RefusedFile
from grandrounds.data.dicom.parse import DicomReader
from grandrounds.data.dicom.series import Series, find_series
from grandrounds.data.dicom.volume import Volume

NEAR, ALIKE = 0.001, 1e-6  # mm; of the largest value
SAMPLES = Path(DATA_ROOT)
VENDORS = ("ge_epi", "ge_fse_pd_axial", "siemens_epi_mosaic", "uih_t1_gre_sag")
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Conversion:
    """One volume: what it was made of, and how far it is from what the others make of it."""

    name: str
    files: int
    shape: tuple[int, ...]
    contrast: str
    itk: str
    dcm2niix: str
    remarks: tuple[str, ...]


@dataclass(frozen=True)
class Conversions:
    volumes: tuple[Conversion, ...]
    refused: tuple[tuple[str, str, int], ...]  # source, reason, files


def dcm2niix_program() -> str | None:
    beside = Path(sys.executable).with_name("dcm2niix")
    return str(beside) if beside.exists() else shutil.which("dcm2niix")


def convert_all(real: Path, only: Sequence[str] = ()) -> Conversions:
    """Convert the vendors' series and odd files, and each of pydicom's test files."""
    sets = [(name, sorted((real / "dicom" / name).glob("*.dcm"))) for name in VENDORS]
    sets += [(f"misc/{f.name}", [f]) for f in sorted((real / "dicom" / "misc").glob("*.dcm"))]
    sets += [(f"ge_epi/{f.name}", [f]) for f in sorted((real / "dicom" / "ge_epi").glob("*01.dcm"))]
    tests = SAMPLES / "test_files"
    sets += [(f"pydicom {f.name}", [f]) for f in sorted(tests.glob("*.dcm"))]
    for folder in sorted({f.parent for f in (tests / "dicomdirtests").rglob("*") if f.is_file()}):
        files = sorted(f for f in folder.iterdir() if f.is_file())
        sets.append((f"pydicom {folder.relative_to(tests)}", files))
    volumes: list[Conversion] = []
    refused: Counter[tuple[str, str]] = Counter()
    with DicomReader() as reader:
        for name, files in sets:
            if only and name not in only:
                continue
            for found in _converted(reader, name, files):
                if isinstance(found, Conversion):
                    volumes.append(found)
                else:
                    refused[name, found[0]] += found[1]
    return Conversions(tuple(volumes), tuple((*key, n) for key, n in refused.items()))


def _converted(
    reader: DicomReader, name: str, files: Sequence[Path]
) -> Iterator[Conversion | tuple[str, int]]:
    found = list(reader.headers(files))
    for each in found:
        if isinstance(each, RefusedFile):
            yield str(each.reason), 1
    grouped = find_series(each for each in found if isinstance(each, Instance))
    for refused in grouped.refused:
        yield str(refused.reason), len(refused.instances)
    for series in grouped.series:
        try:
            volume = reader.volume(series)
        except BadImage as error:
            yield str(error.safe), len(series.instances)
        else:
            yield _compared(name, series, volume)


def _compared(name: str, series: Series, volume: Volume) -> Conversion:
    return Conversion(
        name if series.parts == 1 else f"{name} ({series.part} of {series.parts})",
        len(series.instances),
        volume.voxels.shape,
        recognise_contrast(series).contrast or "",
        _apart(series, volume, _by_itk(series)),
        _apart(series, volume, _by_dcm2niix(series)),
        tuple(str(each) for each in volume.remarks),
    )


def _by_itk(series: Series) -> nib.Nifti1Image | None:
    if series.first.tiles:
        return None  # it knows no mosaics
    files = [str(each.path) for each in series.instances]
    try:
        if len(files) == 1:
            image = sitk.ReadImage(files[0])
        else:
            reader = sitk.ImageSeriesReader()
            reader.SetFileNames(files)
            image = reader.Execute()
    except RuntimeError:
        return None
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    voxels = sitk.GetArrayFromImage(image).astype(np.float64).transpose(2, 1, 0)
    return nib.Nifti1Image(voxels, np.diag([-1, -1, 1, 1]) @ affine)


def _by_dcm2niix(series: Series) -> nib.Nifti1Image | None:
    program = dcm2niix_program()
    assert program
    with tempfile.TemporaryDirectory() as folder:
        put, got = Path(folder) / "in", Path(folder) / "out"
        put.mkdir()
        got.mkdir()
        for number, each in enumerate(series.instances):
            shutil.copyfile(each.path, put / f"{number:04d}.dcm")
        command = [program, "-b", "n", "-m", "n", "-o", str(got), str(put)]
        subprocess.run(command, capture_output=True, check=False)
        made = sorted(got.glob("*.nii"))
        if len(made) != 1:
            return None
        image = nib.load(made[0])
        assert isinstance(image, nib.Nifti1Image)
        return nib.Nifti1Image(image.get_fdata(), image.affine)


def _apart(series: Series, volume: Volume, other: nib.Nifti1Image | None) -> str:
    """Say how far apart the corners lie and the voxels are, but those that are padding."""
    if other is None or other.shape[3:]:
        return "not read"
    ours = nib.as_closest_canonical(
        nib.Nifti1Image(volume.voxels.astype(np.float64), volume.affine)
    )
    theirs = nib.as_closest_canonical(other)
    if ours.shape != theirs.shape:
        return "other shape"
    a, b = ours.get_fdata(), theirs.get_fdata()
    corners = np.indices((2, 2, 2)).reshape(3, 8) * (np.array(a.shape)[:, None] - 1)
    shift = (ours.affine - theirs.affine) @ np.vstack([corners, np.ones(8)])
    millimetres = float(np.linalg.norm(shift[:3], axis=0).max())
    counted = ~_padding(series, b)
    difference = float(np.abs(a - b)[counted].max(initial=0))
    near = "same place" if millimetres < NEAR else f"{millimetres:.2f} mm"
    alike = difference <= ALIKE * max(1.0, float(np.abs(b).max()))
    return f"{near}, {'equal' if alike else f'up to {difference:.4g}'}"


def _padding(series: Series, values: Array) -> NDArray[np.bool_]:
    if not series.first.padding:
        return np.zeros(values.shape, dtype=bool)
    low, high = series.first.padding
    stored = (values - series.frame.intercept) / series.frame.slope
    return (stored >= low) & (stored <= high)


def as_table(found: Conversions) -> str:
    """The volumes and the refusals as two tables of Markdown."""
    lines = [
        "| files | volume | SimpleITK | dcm2niix | contrast | remarks |",
        "|---|---|---|---|---|---|",
    ]
    for each in found.volumes:
        size = " x ".join(map(str, each.shape))
        names = f"{each.name}" + (f", {each.files} files" if each.files > 1 else "")
        remarks = "; ".join(each.remarks)
        lines.append(
            f"| {names} | {size} | {each.itk} | {each.dcm2niix} | {each.contrast} | {remarks} |"
        )
    reasons: dict[str, Counter[str]] = {}
    for name, reason, count in found.refused:
        reasons.setdefault(reason, Counter())[name] += count
    lines += ["", "| refused, as it | files | such as |", "|---|---|---|"]
    for reason, names in sorted(reasons.items()):
        some = ", ".join(sorted(names)[:3])
        lines.append(f"| {reason} | {sum(names.values())} | {some} |")
    return "\n".join(lines) + "\n"
