"""Where a stack of pictures lies follows from their positions, and not from a stated thickness.

Positions are DICOM's: the patient's left, back and head are positive; an affine's are NIfTI's,
where right to left and back to front are reversed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import atan2, degrees

import numpy as np
from numpy.typing import NDArray

from grandrounds.core.sentence import Sentence, phrase
from grandrounds.data.dicom.instance import Frame, Instance
from grandrounds.data.space import Affine

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_ODD = 0.01  # of a direction's length from 1, and of two directions' cosine from 0
SAME_PLACE = 0.01  # mm within which two pictures lie at one position
_OFF = 0.1  # mm, and share of a step, by which a slice may lie off its place
_DRIFT = 0.2  # mm of a whole stack, from where on it is sheared
_STEEPEST = 45.0  # degrees of a shear
_THIN = 2.5  # thicknesses between two slices, from where on a gap is told


class Impossible(Exception):  # noqa: N818 - it is an answer
    """Pictures make no volume; the sentence says why."""

    def __init__(self, reason: Sentence) -> None:
        super().__init__(str(reason))
        self.reason = reason


@dataclass(frozen=True)
class PlacedFrame:
    """One frame of a file, as a slice of a volume."""

    instance: Instance
    frame: Frame


@dataclass(frozen=True)
class VolumeGrid:
    """Where voxels (column, row, slice) lie: their shape and affine to mm.

    `shear` is by how many pixels (along columns, along rows) each slice is shifted against the one
    before; the affine is of the grid without it.
    """

    shape: tuple[int, int, int]
    affine: Affine
    shear: tuple[float, float] = (0.0, 0.0)
    remarks: tuple[Sentence, ...] = ()


@dataclass(frozen=True)
class _Plane:
    """The directions of growing column and row, the normal, and the pixel's lengths along each."""

    along: NDArray[np.float64]
    down: NDArray[np.float64]
    normal: NDArray[np.float64]
    lengths: tuple[float, float]


def arrange(pictures: Sequence[PlacedFrame]) -> tuple[tuple[PlacedFrame, ...], VolumeGrid]:
    """Put pictures of one orientation in order, and say where they lie. Raises `Impossible`."""
    plane = _plane_of(pictures[0].frame)
    places = np.array([_position(each.frame) for each in pictures])
    heights = places @ plane.normal
    order = np.argsort(heights, kind="stable")
    ordered = tuple(pictures[int(k)] for k in order)
    first = ordered[0].instance
    shape = (*picture_size(first), len(ordered))
    thickness = None if first.tiles and len(ordered) > 1 else _thickness(ordered)
    grid = _grid(plane, places[order], heights[order], shape, thickness)
    return ordered, replace(grid, remarks=(*grid.remarks, *_numbering(ordered)))


def picture_size(instance: Instance) -> tuple[int, int]:
    """Return the columns and rows of a picture, or of one tile of a mosaic."""
    side = int(np.ceil(np.sqrt(instance.tiles))) if instance.tiles else 1
    return instance.columns // side, instance.rows // side


def height_of(frame: Frame) -> float:
    """Return where a picture lies along its own normal, in mm. Raises `Impossible`."""
    return float(_position(frame) @ _plane_of(frame).normal)


def _position(frame: Frame) -> NDArray[np.float64]:
    if frame.position is None or len(frame.position) != 3:
        raise Impossible(phrase("a picture has no position in space"))
    return np.array(frame.position, dtype=np.float64)


def _plane_of(frame: Frame) -> _Plane:
    if frame.orientation is None or len(frame.orientation) != 6:
        raise Impossible(phrase("a picture has no orientation in space"))
    if frame.spacing is None or len(frame.spacing) != 2 or min(frame.spacing) <= 0:
        raise Impossible(phrase("a picture's pixels have no size"))
    along, down = np.array(frame.orientation, dtype=np.float64).reshape(2, 3)
    lengths = np.linalg.norm(along), np.linalg.norm(down)
    if max(abs(float(each) - 1) for each in lengths) > _ODD:
        raise Impossible(phrase("a picture's orientation has directions that are none"))
    along, down = along / lengths[0], down / lengths[1]
    if abs(float(along @ down)) > _ODD:
        raise Impossible(phrase("a picture's rows and columns are not at right angles"))
    normal = np.cross(along, down)
    between_rows, between_columns = frame.spacing
    return _Plane(along, down, normal / np.linalg.norm(normal), (between_columns, between_rows))


def _thickness(pictures: Sequence[PlacedFrame]) -> float | None:
    thickness = pictures[0].frame.thickness
    return thickness if thickness is not None and thickness > 0 else None


def _grid(
    plane: _Plane,
    places: NDArray[np.float64],
    heights: NDArray[np.float64],
    shape: tuple[int, int, int],
    thickness: float | None,
) -> VolumeGrid:
    if len(places) == 1:
        step = thickness or 1.0
        note = phrase("a single slice: it counts as {step} mm thick", step=round(step, 3))
        return VolumeGrid(shape, _affine(plane, places[0], step), remarks=(note,))
    _check_steps(heights)
    step = float(heights[-1] - heights[0]) / (len(heights) - 1)
    shear, remarks = _shear(plane, places, step)
    if thickness is not None and step > _THIN * thickness:
        gap = phrase(
            "slices lie {step} mm apart and are {thickness} mm thick: some may be missing",
            step=round(step, 3),
            thickness=round(thickness, 3),
        )
        remarks = (*remarks, gap)
    return VolumeGrid(shape, _affine(plane, places[0], step), shear, remarks)


def _affine(plane: _Plane, origin: NDArray[np.float64], step: float) -> Affine:
    affine = np.eye(4)
    affine[:3, 0] = plane.along * plane.lengths[0]
    affine[:3, 1] = plane.down * plane.lengths[1]
    affine[:3, 2] = plane.normal * step
    affine[:3, 3] = origin
    return _LPS_TO_RAS @ affine


def _check_steps(heights: NDArray[np.float64]) -> None:
    """Refuse slices that are missing, repeated, or not equally far apart."""
    steps = np.diff(heights)
    if float(steps.min()) < SAME_PLACE:
        raise Impossible(
            phrase("several pictures lie at one position, and nothing tells them apart")
        )
    line = heights[0] + np.arange(len(heights)) * (heights[-1] - heights[0]) / len(steps)
    mean = float(steps.mean())
    if float(np.abs(heights - line).max()) <= min(_OFF, _OFF * mean):
        return
    usual = float(np.median(steps))
    if usual > 1.5 * float(steps.min()):  # more are missing than are there
        usual = float(steps.min())
    multiples = np.rint(steps / usual)
    missing = int((multiples - 1).sum())
    whole = bool((np.abs(steps / usual - multiples) <= _OFF).all())
    if whole and 0 < missing < len(heights):
        before = int(np.argmax(multiples > 1)) + 1
        raise Impossible(
            phrase(
                "{missing} of {all} slices are missing, the first after slice {before}",
                missing=missing,
                all=int(multiples.sum()) + 1,
                before=before,
            )
        )
    raise Impossible(
        phrase(
            "slices are not equally far apart: from {least} to {most} mm",
            least=round(float(steps.min()), 3),
            most=round(float(steps.max()), 3),
        )
    )


def _shear(
    plane: _Plane, places: NDArray[np.float64], step: float
) -> tuple[tuple[float, float], tuple[Sentence, ...]]:
    """Return by how many pixels each slice is shifted against the one before it, as of a gantry."""
    flat = np.stack([places @ plane.along, places @ plane.down], axis=1)
    shifts = flat - flat[0]
    per_slice = shifts[-1] / (len(places) - 1)
    off = np.abs(shifts - np.arange(len(places))[:, None] * per_slice).max()
    if off > max(_DRIFT, _OFF * min(plane.lengths)):
        raise Impossible(
            phrase(
                "slices do not lie in a row: one is {off} mm beside the others",
                off=round(float(off), 2),
            )
        )
    if float(np.linalg.norm(shifts[-1])) <= _DRIFT:
        return (0.0, 0.0), ()
    angle = degrees(atan2(float(np.linalg.norm(per_slice)), step))
    if angle > _STEEPEST:
        raise Impossible(
            phrase("slices are sheared by {angle} degrees, which is no tilt", angle=round(angle))
        )
    columns, rows = per_slice / plane.lengths
    return (float(columns), float(rows)), (
        phrase(
            "slices were sheared by {angle} degrees (a tilted gantry): shifted onto a grid with "
            "right angles, by linear interpolation",
            angle=round(angle, 1),
        ),
    )


def _numbering(pictures: Sequence[PlacedFrame]) -> tuple[Sentence, ...]:
    numbers = {each.instance.instance_number for each in pictures}
    first = min((each for each in numbers if each is not None), default=1)
    if first <= 1 or len(numbers) != len(pictures) or len(pictures) < 2:
        return ()
    return (phrase("pictures are numbered from {first} on: some may be missing", first=first),)
