"""A volume to start from is a NIfTI file, or a folder with one DICOM series."""

import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from grandrounds.core.errors import BadImage
from grandrounds.data.session_cache import file_digest

if TYPE_CHECKING:
    from grandrounds.data.dicom.series import Series

MOST_SERIES_FILES = 20_000  # of a series' folder


@dataclass(frozen=True)
class SourceVolume:
    """What was given, the NIfTI volume of it, and its DICOM series where it was one.

    `remarks` say what was decided when the series was read; `looks_like` is the contrast that its
    acquisition has, where that is known.
    """

    given: Path
    volume: Path
    series: "Series | None" = None
    remarks: tuple[str, ...] = ()
    looks_like: str = ""

    @property
    def digest(self) -> str:
        """Return the SHA-256 of the file, or of which pictures the series has."""
        return self.series.identity if self.series else file_digest(self.volume)


@contextmanager
def opened_source(given: Path) -> Generator[SourceVolume, None, None]:
    """Open a NIfTI volume, or read a DICOM series into one that is removed afterwards.

    Raises `BadImage`, and `BadInput` where a package for DICOM is missing.
    """
    if not given.is_dir():
        yield SourceVolume(given, given)
        return
    with tempfile.TemporaryDirectory(prefix="grandrounds-") as scratch:  # its owner's alone
        yield _read(given, Path(scratch) / "source.nii")


def _read(folder: Path, volume: Path) -> SourceVolume:
    from grandrounds.data.dicom.contrast import recognise_contrast
    from grandrounds.data.dicom.parse import read_series
    from grandrounds.data.dicom.volume import write_volume

    series = _only_series(folder)
    read = read_series(series)
    write_volume(read, volume)
    known = recognise_contrast(series).contrast
    return SourceVolume(folder, volume, series, tuple(map(str, read.remarks)), known or "")


def _only_series(folder: Path) -> "Series":
    """Return the one series in a folder. Raises `BadImage` where there are none or several."""
    from grandrounds.data.dicom.instance import Instance, RefusedFile
    from grandrounds.data.dicom.parse import read_headers
    from grandrounds.data.dicom.series import find_series

    paths = _files(folder)
    headers = list(read_headers(paths))
    found = find_series(each for each in headers if isinstance(each, Instance))
    damaged = [
        each
        for each in headers
        if isinstance(each, RefusedFile) and each.trouble not in ("not DICOM", "not an image")
    ]
    if damaged:
        raise BadImage(
            f"{damaged[0].path}: {damaged[0].reason}; a series with {len(damaged)} such files is "
            "not whole, so get it from the archive again."
        )
    if found.refused:
        raise BadImage(f"{folder}: its DICOM series cannot be used: {found.refused[0].reason}.")
    if len(found.series) != 1:
        raise BadImage(
            f"{folder}: holds {len(found.series)} volumes of DICOM series in {len(paths)} files; "
            "give the folder of one series with one volume."
        )
    return found.series[0]


def _files(folder: Path) -> list[Path]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    if len(paths) > MOST_SERIES_FILES:
        raise BadImage(
            f"{folder}: holds {len(paths)} files, more than any series ({MOST_SERIES_FILES}); give "
            "the folder of one series."
        )
    return paths
