"""A session's volumes are resampled onto one grid, each once, by all that moves it at a time."""

# SimpleITK has no types of its own.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import log, prod, sqrt
from typing import Literal

import numpy as np
import SimpleITK as sitk

from grandrounds.core.errors import BadImage
from grandrounds.core.sentence import phrase
from grandrounds.data.preparation.volumes import (
    MOST_PREPARED_VOXELS,
    SessionVolumes,
    StepRecord,
    WorkingVolume,
    affine_of,
    changed,
    resampled,
    same_grid,
    spacing_of,
    voxels_of,
)

_INTERPOLATORS: Mapping[str, int] = {"linear": sitk.sitkLinear, "b-spline": sitk.sitkBSpline}
_TOLERANCE = 0.1  # mm between corners of a mask's grid and of the contrast it was drawn on
_SQUARE = 1e-3  # how far a grid's axes may be from right angles, as a difference of cosines
_FWHM = sqrt(8 * log(2))  # of a Gaussian, in standard deviations


@dataclass(frozen=True)
class Resample:
    """Onto the reference's grid, or onto one of `spacing` (mm) around it.

    Images are interpolated as asked, and smoothed before where voxels become longer, so that a
    thick voxel averages what it covers (the standard deviation is in the record); a B-spline's
    overshoot is cut at the image's own range. Masks take the nearest voxel's value, and move with
    the contrast that they were drawn on.
    """

    spacing: tuple[float, float, float] | None = None
    interpolation: Literal["linear", "b-spline"] = "linear"
    drawn_on: str | None = None

    def __call__(self, session: SessionVolumes) -> SessionVolumes:
        """Return the session on one grid."""
        grid = grid_around(session.fixed.image, self.spacing)
        return replace(
            changed(session, lambda _, volume: self._image(volume, grid)),
            masks={name: self._mask(v, grid, session) for name, v in session.masks.items()},
        )

    def _image(self, volume: WorkingVolume, grid: sitk.Image) -> WorkingVolume:
        if volume.transform is None and same_grid(volume.image, grid):
            return volume.after(_record("none, its own grid stays", grid))
        voxels = voxels_of(volume.image)
        low, high = float(voxels.min()), float(voxels.max())
        smoothing = _smoothing(volume.image, grid)
        smooth, outside = _smoothed(volume.image, smoothing), min(low, 0.0)
        moved = resampled(
            smooth, grid, volume.transform, _INTERPOLATORS[self.interpolation], outside
        )
        if self.interpolation == "b-spline":
            moved = sitk.Clamp(moved, sitk.sitkFloat32, min(low, outside), high)
        more = {"SmoothingInMm": smoothing, "Outside": outside}
        return volume.after(_record(self.interpolation, grid) | more, moved)

    def _mask(
        self, mask: WorkingVolume, grid: sitk.Image, session: SessionVolumes
    ) -> WorkingVolume:
        wanted = self.drawn_on
        name = wanted if wanted and wanted in session.images else _drawn_on(mask, session)
        drawn = session.images[name]
        more: StepRecord = {"DrawnOn": name}
        if drawn.transform is not None:
            found = drawn.last("registration")
            keys = ("Transform", "Parameters", "FixedParameters")
            more = dict(more) | {key: found[key] for key in keys}
        elif same_grid(mask.image, grid):
            return mask.after(_record("none, its own grid stays", grid) | dict(more))
        moved = resampled(mask.image, grid, drawn.transform, sitk.sitkNearestNeighbor)
        return mask.after(_record("nearest", grid) | dict(more), moved)


def _drawn_on(mask: WorkingVolume, session: SessionVolumes) -> str:
    """Find the contrast on whose grid a mask lies, the reference first, and for want of any."""
    others = (name for name in session.images if name != session.reference)
    for name in (session.reference, *others):
        if same_grid(mask.image, session.images[name].image, _TOLERANCE):
            return name
    return session.reference


def _record(interpolation: str, grid: sitk.Image) -> dict[str, object]:
    return {
        "Step": "resample",
        "Interpolation": interpolation,
        "Size": list(grid.GetSize()),
        "SpacingInMm": [round(length, 6) for length in spacing_of(grid)],
        "SlicesRowsColumnsToRas": affine_of(grid).tolist(),
    }


def grid_around(image: sitk.Image, spacing: tuple[float, float, float] | None = None) -> sitk.Image:
    """Return an empty image whose grid has right angles and this spacing, and covers an image.

    It is the image's own grid where that has right angles and no other spacing is asked for. Raises
    `BadImage` where the grid has too many voxels.
    """
    direction = np.array(image.GetDirection()).reshape(3, 3)
    square = bool(np.abs(direction.T @ direction - np.eye(3)).max() < _SQUARE)
    if square and spacing is None:
        return image
    left, _, right = np.linalg.svd(direction)
    turned = direction if square else left @ right  # the nearest axes at right angles
    lengths = np.array(spacing or image.GetSpacing())
    first, extent = _box(image, turned)
    size = np.maximum(np.ceil(np.round(extent / lengths, 3)), 1).astype(int)
    if prod(size.tolist()) > MOST_PREPARED_VOXELS:
        asked = " x ".join(map(str, size.tolist()))
        raise BadImage(
            f"would have {asked} voxels; a prepared volume has at most {MOST_PREPARED_VOXELS}, so "
            "choose a larger prepare.spacing.",
            safe=phrase(
                "a prepared volume would have more than {most} voxels", most=MOST_PREPARED_VOXELS
            ),
        )
    grid = sitk.Image(size.tolist(), sitk.sitkUInt8)
    grid.SetSpacing(lengths.tolist())
    grid.SetDirection(turned.ravel().tolist())
    start = first + (extent - size * lengths) / 2 + lengths / 2
    grid.SetOrigin((turned @ start).tolist())
    return grid


def _box(image: sitk.Image, axes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return where an image's voxels begin, along these axes, and how far they reach, in mm."""
    ends = np.array(image.GetSize()) - 0.5
    indices = [np.where(bits, ends, -0.5).tolist() for bits in np.ndindex(2, 2, 2)]
    corners = np.array([image.TransformContinuousIndexToPhysicalPoint(i) for i in indices]) @ axes
    return corners.min(axis=0), np.ptp(corners, axis=0)


def _smoothing(image: sitk.Image, grid: sitk.Image) -> list[float]:
    """Return the standard deviation in mm along each axis that turns short voxels into long ones.

    A voxel's profile is taken as a Gaussian whose full width at half maximum is its length.
    """
    pairs = zip(spacing_of(image), spacing_of(grid), strict=True)
    return [round(sqrt(max(new**2 - old**2, 0.0)) / _FWHM, 4) for old, new in pairs]


def _smoothed(image: sitk.Image, deviations: list[float]) -> sitk.Image:
    for axis, (deviation, length) in enumerate(zip(deviations, image.GetSpacing(), strict=True)):
        if deviation > 0.1 * length and image.GetSize()[axis] > 3:
            image = sitk.RecursiveGaussian(image, deviation, direction=axis)
    return image
