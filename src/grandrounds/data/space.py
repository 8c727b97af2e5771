"""A volume's transforms decide where its voxels lie; contradictory ones are refused."""

from dataclasses import dataclass, replace
from itertools import permutations
from math import isinf, radians, sin
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from grandrounds.core.errors import BadImage
from grandrounds.core.sentence import phrase
from grandrounds.data.header import MILLIMETRES, SpaceHeader

Affine: TypeAlias = NDArray[np.float64]
Remark: TypeAlias = Literal[
    "transforms differ", "a transform is void", "sizes differ", "unit", "identity"
]
PLANE_SIZES = (0.02, 50.0)  # mm of a pixel; outside, a header's unit or number is wrong
SLICE_SIZES = (0.02, 1000.0)
_MOST_SHEAR = sin(radians(1))  # the cosine between rows and columns, of 0 if they are at 90 degrees
_MOST_UNLIKE = 0.1  # relative difference of a pixel's size from what its transform says
_UNLIKE = 0.01
_APART = 0.1  # mm between the corners of two transforms that count as one


@dataclass(frozen=True)
class Forms:
    """The transforms of a header that have a code, as they stand; None where one cannot be read."""

    sform: Affine | None
    qform: Affine | None


@dataclass(frozen=True)
class Space:
    """A volume's transforms as its file has them, those that are valid, and the one that counts.

    `affine` is in millimetres.
    """

    header: SpaceHeader
    sform: Affine | None
    qform: Affine | None
    affine: Affine
    remarks: tuple[Remark, ...]


@dataclass(frozen=True)
class AxisTurn:
    """Which voxel axis becomes slice, row and column, and whether it is reversed (step -1)."""

    order: tuple[int, int, int]
    steps: tuple[int, int, int]


def turn_of(affine: Affine) -> AxisTurn:
    """Find the voxel axes nearest to up, to the patient's back and to the patient's left."""
    unit = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    towards = np.stack([unit[2], -unit[1], -unit[0]])
    first, second, third = max(permutations(range(3)), key=lambda o: _alignment(towards, o))
    signs = np.sign([towards[0, first], towards[1, second], towards[2, third]])
    return AxisTurn((first, second, third), (int(signs[0]), int(signs[1]), int(signs[2])))


def _alignment(towards: Affine, order: tuple[int, ...]) -> float:
    return float(np.abs(towards[[0, 1, 2], list(order)]).sum())


def place(path: Path, header: SpaceHeader, forms: Forms, shape: tuple[int, ...]) -> Space:
    """Decide where a volume's voxels lie. Raises `BadImage` where its header leaves that open."""
    if isinf(header.slope):
        raise BadImage(
            f"{path}: its values are scaled by an infinite number (scl_slope); convert it again.",
            safe=phrase("the values of a volume are scaled by an infinite number"),
        )
    if header.unit not in MILLIMETRES:
        raise BadImage(
            f"{path}: its unit of length has the code {header.unit}; NIfTI has 1 (metre), "
            "2 (millimetre) and 3 (micron).",
            safe=phrase("a volume's unit of length is none"),
        )
    sform = _valid(forms.sform)
    qform = _valid(forms.qform) if header.sizes_are_lengths else None
    chosen = qform if sform is None else sform
    if chosen is None:
        raise _unplaced(path, header)
    affine = chosen.copy()
    affine[:3] *= MILLIMETRES[header.unit]
    _check_plane(path, affine, header)
    found = Space(header, sform, qform, affine, ())
    return replace(found, remarks=_remarks(path, found, shape))


def _valid(affine: Affine | None) -> Affine | None:
    """Return a transform that is one: finite, and its three axes span a volume."""
    if affine is None:
        return None
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if not (np.isfinite(affine).all() and lengths.all()):
        return None
    return affine if abs(np.linalg.det(affine[:3, :3] / lengths)) > _UNLIKE else None


def _unplaced(path: Path, header: SpaceHeader) -> BadImage:
    if header.qform_code and not header.sizes_are_lengths:
        sizes = " x ".join(f"{size:g}" for size in header.sizes)
        return BadImage(
            f"{path}: its voxel sizes are {sizes}, and no valid sform gives others; each must be a "
            "length above 0, so convert it again from its DICOM series.",
            safe=phrase("a volume's voxel sizes are no lengths"),
        )
    return BadImage(
        f"{path}: has no orientation (sform and qform are unset or degenerate), so left and "
        "right are unknown; convert it again from its DICOM series.",
        safe=phrase("a volume has no orientation (sform and qform)"),
    )


def _check_plane(path: Path, affine: Affine, header: SpaceHeader) -> None:
    """Refuse voxels of a size that no scanner has, and slices whose pixels are no rectangles."""
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    between, rows, columns = turn_of(affine).order
    limits = {between: SLICE_SIZES, rows: PLANE_SIZES, columns: PLANE_SIZES}
    for axis, (least, most) in limits.items():
        if not least <= lengths[axis] <= most:
            unit = "" if header.unit else "; its header names no unit"
            raise BadImage(
                f"{path}: its voxels are {lengths[axis]:g} mm long, which no scanner's are; the "
                f"header's unit or its voxel sizes must be corrected{unit}.",
                safe=phrase("a volume's voxels have a size that no scanner's have"),
            )
    shear = float(affine[:3, rows] @ affine[:3, columns] / (lengths[rows] * lengths[columns]))
    if abs(shear) > _MOST_SHEAR:
        angle = float(np.degrees(np.arccos(abs(shear))))
        raise BadImage(
            f"{path}: its rows and columns meet at {angle:.0f} degrees, not at 90 (the sform is "
            "sheared); resample it onto a grid with right angles.",
            safe=phrase("rows and columns of a volume are not at right angles"),
        )


def _remarks(path: Path, found: Space, shape: tuple[int, ...]) -> tuple[Remark, ...]:
    """Say what is odd about a header. Raises `BadImage` where it contradicts itself."""
    header, sform, qform = found.header, found.sform, found.qform
    scale = MILLIMETRES[header.unit]
    remarks: list[Remark] = ["unit"] if scale != 1 else []
    if np.array_equal(found.affine, np.eye(4)):
        remarks.append("identity")
    void = header.qform_code and qform is None and header.sizes_are_lengths
    if void or (header.sform_code and sform is None):
        remarks.append("a transform is void")
    if sform is None:
        return tuple(remarks)
    if qform is not None and turn_of(sform) != turn_of(qform):
        raise BadImage(
            f"{path}: its sform and its qform contradict each other about the axes, such as left "
            "and right; set both to the one that is right.",
            safe=phrase("a volume's sform and qform contradict each other about left and right"),
        )
    unlike = _unlike_sizes(path, header, sform)
    if qform is not None and scale * apart(sform, qform, shape) > _APART:
        remarks.append("transforms differ")
    elif unlike:
        remarks.append("sizes differ")
    return tuple(remarks)


def _unlike_sizes(path: Path, header: SpaceHeader, sform: Affine) -> bool:
    """Tell whether the voxel sizes beside an sform are others. Raises `BadImage` if far from it."""
    if not header.sizes_are_lengths:
        return True
    lengths = np.linalg.norm(sform[:3, :3], axis=0)
    unlike = np.abs(np.array(header.sizes) / lengths - 1)
    _, rows, columns = turn_of(sform).order
    if max(unlike[rows], unlike[columns]) > _MOST_UNLIKE:
        pairs = (" x ".join(f"{size:.4g}" for size in sizes) for sizes in (header.sizes, lengths))
        sizes, expected = pairs
        raise BadImage(
            f"{path}: its voxel sizes (pixdim) are {sizes}, but those of its sform {expected}; one "
            "of the two is wrong and must be corrected.",
            safe=phrase("a volume's voxel sizes are not those of its sform"),
        )
    return bool(max(unlike) > _UNLIKE)


def apart(affine: Affine, other: Affine, shape: tuple[int, ...]) -> float:
    """Return the largest distance between the same corners of a volume under two transforms."""
    corners = np.indices((2, 2, 2)).reshape(3, 8) * (np.array(shape)[:, None] - 1)
    shifts = (affine - other) @ np.vstack([corners, np.ones(8)])
    return float(np.linalg.norm(shifts[:3], axis=0).max())
