"""What a NIfTI header says of space is read as it stands, before a library mends it."""

import gzip
import struct
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

MILLIMETRES = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}  # of a unit's code; 0 is unknown, taken as mm
_GZIP = b"\x1f\x8b"
_LONGEST = 540  # bytes of a NIfTI-2 header; NIfTI-1 has 348


@dataclass(frozen=True)
class SpaceHeader:
    """The voxel sizes, unit and codes of a header, unmended."""

    sizes: tuple[float, float, float]
    unit: int
    sform_code: int
    qform_code: int
    slope: float

    @property
    def sizes_are_lengths(self) -> bool:
        """Tell whether each voxel size is a finite number above 0."""
        return all(isfinite(size) and size > 0 for size in self.sizes)


@dataclass(frozen=True)
class _Layout:
    """Where NIfTI-1 or NIfTI-2 keeps its fields, and of which types they are."""

    length: int
    sizes: tuple[int, str]
    slope: tuple[int, str]
    codes: tuple[int, str]  # of the qform, followed by that of the sform
    unit: tuple[int, str]
    text: int  # where 80 bytes of free text begin


_LAYOUTS = (
    _Layout(348, (80, "3f"), (112, "f"), (252, "2h"), (123, "B"), 148),
    _Layout(540, (112, "3d"), (176, "d"), (344, "2i"), (500, "i"), 240),
)


def read_space(path: Path) -> SpaceHeader:
    """Read a NIfTI header's fields on space. Raises `OSError`, `EOFError` or `ValueError`."""
    return _parsed(*_header(path))


def read_text_of(path: Path) -> bytes:
    """Read a NIfTI header's free text. Raises `OSError`, `EOFError` or `ValueError`."""
    header, _, layout = _header(path)
    return header[layout.text : layout.text + 80].rstrip(b"\0")


def _header(path: Path) -> tuple[bytes, str, _Layout]:
    with path.open("rb") as file:
        compressed = file.read(2) == _GZIP
    with gzip.open(path) if compressed else path.open("rb") as file:
        header = file.read(_LONGEST)
    for layout in _LAYOUTS:
        for order in "<>":
            if len(header) >= layout.length and _get(header, order, (0, "i")) == [layout.length]:
                return header, order, layout
    raise ValueError("it begins with no NIfTI header")


def storage_problem(path: Path) -> str:
    """Say what a file is that has a volume's name and is none; empty where nothing is seen."""
    with path.open("rb") as file:
        start = file.read(64)
    if path.suffix == ".gz" and not start.startswith(_GZIP):
        if b"annex/objects" in start or start.startswith(b"version https://git-lfs"):
            return "it is a pointer of git-annex or Git LFS; get the file itself"
        if any(start[:4] == struct.pack(o + "i", each.length) for each in _LAYOUTS for o in "<>"):
            return "it is not compressed; name it .nii"
    if path.suffix == ".nii" and start.startswith(_GZIP):
        return "it is compressed; name it .nii.gz"
    return ""


def _parsed(header: bytes, order: str, layout: _Layout) -> SpaceHeader:
    first, second, third = map(float, _get(header, order, layout.sizes))
    qform_code, sform_code = map(int, _get(header, order, layout.codes))
    [unit], [slope] = (_get(header, order, field) for field in (layout.unit, layout.slope))
    # The three lowest bits are the unit of length; the next three are one of time.
    return SpaceHeader((first, second, third), int(unit) & 7, sform_code, qform_code, slope)


def _get(header: bytes, order: str, field: tuple[int, str]) -> list[float]:
    place, kind = field
    return list(struct.unpack_from(order + kind, header, place))
