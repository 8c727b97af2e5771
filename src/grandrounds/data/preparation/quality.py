"""What a person should look at: numbers that tell a bad session, and pictures that show it."""

# SimpleITK has no types of its own.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any, cast

import numpy as np
import PIL.Image
import SimpleITK as sitk
from numpy.typing import NDArray

from grandrounds.data.preparation.registration import agreement, around_head, working
from grandrounds.data.preparation.volumes import (
    SessionVolumes,
    head_in,
    resampled,
    spacing_of,
    voxels_of,
)

COMPARED_GRID = 2.0  # mm between voxels that are compared
PICTURE_PIXEL = 1.0  # mm of a picture's pixel
SQUARE_LENGTH = 24.0  # mm of a checkerboard's square
PICTURE_WIDTH = 260.0  # mm of a head that a picture shows


@dataclass(frozen=True)
class ContrastQuality:
    """How one contrast lies on the reference; pairs are before and after; lengths in mm.

    `spacing` is the source's. `information` is normalised mutual information (1 to 2), `overlap`
    Dice of the two heads, `shift` the largest distance that a place of the head moved. `pictures`
    are data: URIs of a checkerboard of both.
    """

    spacing: tuple[float, float, float]
    information: tuple[float, float] | None = None
    overlap: tuple[float, float] | None = None
    shift: float = 0.0
    pictures: tuple[str, str] | None = None


@dataclass(frozen=True)
class SessionQuality:
    """A session's contrasts, its grid in mm, and its brain mask's volume in ml and origin."""

    reference: str
    spacing: tuple[float, float, float]
    contrasts: Mapping[str, ContrastQuality]
    brain: float | None = None
    brain_is_own: bool = False
    alone: str = ""


def assess(placed: SessionVolumes, done: SessionVolumes) -> SessionQuality:
    """Measure a session: before it is resampled (`placed`), and when it is finished."""
    fixed = working(placed.fixed.image, COMPARED_GRID)
    head = head_in(fixed)
    contrasts = {
        name: _assessed(name, placed, fixed, head)
        if name != placed.reference
        else ContrastQuality(spacing_of(volume.image))
        for name, volume in placed.images.items()
    }
    brain = done.masks.get("brain")
    return SessionQuality(
        placed.reference,
        spacing_of(done.fixed.image),
        contrasts,
        None if brain is None else _millilitres(brain.image),
        "brain" in placed.masks,
        _picture([_slices(placed.fixed.image, _middle(fixed, head))]),
    )


def _assessed(
    name: str, placed: SessionVolumes, fixed: sitk.Image, head: sitk.Image
) -> ContrastQuality:
    volume = placed.images[name]
    moving = working(volume.image, COMPARED_GRID)
    inside, other, middle = around_head(fixed), head_in(moving), _middle(fixed, head)
    reference = _slices(placed.fixed.image, middle)
    information, overlap, pictures = list[float](), list[float](), list[str]()
    for transform in (None, volume.transform):
        information.append(agreement(fixed, moving, inside, transform))
        overlap.append(_dice(head, other, transform))
        moved = _slices(volume.image, middle, transform)
        pictures.append(_picture([reference, moved]))
    shift = float(cast(Any, volume.last("registration").get("LargestShiftInMm", 0.0)))
    return ContrastQuality(
        spacing_of(volume.image),
        (information[0], information[1]),
        (overlap[0], overlap[1]),
        shift,
        (pictures[0], pictures[1]),
    )


def _dice(head: sitk.Image, other: sitk.Image, transform: sitk.Transform | None) -> float:
    """Return the overlap of two heads in the part of space that the second's volume covers."""
    moved, covered = (
        voxels_of(resampled(each, head, transform, sitk.sitkNearestNeighbor)) > 0
        for each in (other, other * 0 + 1)
    )
    mine = (voxels_of(head) > 0) & covered
    both = int(np.count_nonzero(mine)) + int(np.count_nonzero(moved))
    return round(2 * int(np.count_nonzero(mine & moved)) / both, 4) if both else 0.0


def _millilitres(mask: sitk.Image) -> float:
    voxel = float(np.prod(mask.GetSpacing())) / 1000
    return round(int(np.count_nonzero(voxels_of(mask) > 0)) * voxel, 1)


def _middle(fixed: sitk.Image, head: sitk.Image) -> Sequence[float]:
    shape = sitk.LabelShapeStatisticsImageFilter()
    shape.Execute(sitk.Cast(head, sitk.sitkUInt8))
    if not shape.GetNumberOfLabels():
        size = [(length - 1) / 2 for length in fixed.GetSize()]
        return fixed.TransformContinuousIndexToPhysicalPoint(size)
    return shape.GetCentroid(1)


def _slices(
    image: sitk.Image, middle: Sequence[float], transform: sitk.Transform | None = None
) -> NDArray[np.float32]:
    """Return an axial and a sagittal picture through a place, side by side, greys in [0, 1]."""
    pixels = int(PICTURE_WIDTH / PICTURE_PIXEL)
    planes: list[NDArray[np.float32]] = []
    for axis in (2, 0):
        size = [1 if each == axis else pixels for each in range(3)]
        target = sitk.Image(size, sitk.sitkUInt8)
        target.SetSpacing([PICTURE_PIXEL] * 3)
        half = [0.0 if each == axis else PICTURE_WIDTH / 2 for each in range(3)]
        target.SetOrigin(np.subtract(middle, half).tolist())
        shown = voxels_of(resampled(image, target, transform))
        planes.append(shown[0] if axis == 2 else shown[::-1, :, 0])
    values = voxels_of(image)
    high = float(np.percentile(values[values > values.mean()], 90))  # fat may burn out
    return np.clip(np.concatenate(planes, axis=1) / max(high, 1e-6), 0, 1)


def _picture(parts: Sequence[NDArray[np.float32]]) -> str:
    """Draw one picture, or a checkerboard of two, as a data: URI; empty margins are cut."""
    rows, columns = np.indices(parts[0].shape) * PICTURE_PIXEL // SQUARE_LENGTH
    odd = (rows + columns) % 2 == 1
    drawn = np.where(odd, parts[-1], parts[0])
    shown = np.flatnonzero((parts[0] > 0.08).any(axis=1))
    if shown.size:
        drawn = drawn[max(shown[0] - 8, 0) : shown[-1] + 9]
    file = BytesIO()
    picture = PIL.Image.fromarray(np.rint(drawn * 255).astype(np.uint8))
    picture.save(file, "WEBP", quality=70, method=4)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"
