"""A session on its way through the preparation: its images, where they lie, what was done to them.

Arrays have the axes (slice, row, column) of `data.nifti`; an image of SimpleITK has the same voxels
and lies in its space, left, posterior, superior (LPS).
"""

# SimpleITK has no types of its own.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Protocol, TypeAlias

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from grandrounds.core.errors import BadImage
from grandrounds.core.sentence import phrase
from grandrounds.data.acquisition import read_acquisition
from grandrounds.data.masks import read_mask
from grandrounds.data.nifti import axis_codes, read_grid, read_voxels
from grandrounds.data.space import Affine

StepRecord: TypeAlias = Mapping[str, object]
Voxels3: TypeAlias = NDArray[np.float32]
MOST_PREPARED_VOXELS = 1 << 27  # of a volume, read or made: 512 x 512 x 512
_TO_LPS = np.diag([-1.0, -1.0, 1.0])


@dataclass(frozen=True)
class WorkingVolume:
    """An image or mask, and all that was done to it since its file.

    `digest` is the file's SHA-256. `transform` maps a place of the reference to this volume's own.
    """

    image: sitk.Image
    digest: str
    acquisition: StepRecord = field(default_factory=dict[str, object])
    transform: sitk.Transform | None = None
    steps: tuple[StepRecord, ...] = ()

    def after(self, record: StepRecord, image: sitk.Image | None = None) -> "WorkingVolume":
        """Return the volume after one more step."""
        return replace(self, image=image or self.image, steps=(*self.steps, record))

    def last(self, step: str) -> StepRecord:
        """Return the record of the last such step; empty where there was none."""
        found = (record for record in reversed(self.steps) if record["Step"] == step)
        return next(found, {})


@dataclass(frozen=True)
class SessionVolumes:
    """The volumes of a session by contrast, its masks by structure, and which is the reference."""

    reference: str
    images: Mapping[str, WorkingVolume]
    masks: Mapping[str, WorkingVolume] = field(default_factory=dict[str, WorkingVolume])

    @property
    def fixed(self) -> WorkingVolume:
        """Return the volume onto which the others are registered."""
        return self.images[self.reference]


def changed(
    session: SessionVolumes, change: Callable[[str, WorkingVolume], WorkingVolume]
) -> SessionVolumes:
    """Return a session whose contrasts are changed one by one; an error says which it was."""
    images: dict[str, WorkingVolume] = {}
    for name, volume in session.images.items():
        try:
            images[name] = change(name, volume)
        except BadImage as error:
            raise BadImage(f"{name} {error}", safe=error.safe) from None
    return replace(session, images=images)


class Step(Protocol):
    """One step of the preparation; each volume that it touches has its record afterwards."""

    def __call__(self, session: SessionVolumes) -> SessionVolumes:
        """Return the session after this step. Raises `BadImage`."""
        ...


def read_image(path: Path, digest: str) -> WorkingVolume:
    """Read a contrast, turned to canonical axes; its place in space stays. Raises `BadImage`."""
    voxels, record = _read(path)
    if voxels.min() == voxels.max():
        raise BadImage(
            f"{path}: every voxel is {voxels.min():g}; an image must show something.",
            safe=phrase("all voxels of a volume are equal"),
        )
    known, doubts = read_acquisition(path)
    said = {"Doubts": [str(each) for each in doubts]} if doubts else {}
    image = image_of(voxels, read_grid(path).affine)
    return WorkingVolume(image, digest, known.to_sidecar(), steps=(dict(record) | said,))


def read_outline(path: Path, digest: str) -> WorkingVolume:
    """Read a mask as `read_image` does. Raises `BadImage` where `data.masks` refuses it."""
    _check_size(path)
    read_mask(path)
    voxels, record = _read(path)
    return WorkingVolume(image_of(voxels, read_grid(path).affine), digest, steps=(record,))


def _read(path: Path) -> tuple[Voxels3, StepRecord]:
    _check_size(path)
    record = {"Step": "reorient", "From": axis_codes(path), "To": "RAS", "Interpolation": "none"}
    return read_voxels(path), record


def _check_size(path: Path) -> None:
    """Refuse a volume whose header promises more than memory should hold, before it is read."""
    shape = read_grid(path).shape
    if prod(shape) > MOST_PREPARED_VOXELS:
        raise BadImage(
            f"{path}: has {' x '.join(map(str, shape))} voxels; a volume to prepare has at most "
            f"{MOST_PREPARED_VOXELS}.",
            safe=phrase("a volume has more than {most} voxels", most=MOST_PREPARED_VOXELS),
        )


def image_of(voxels: NDArray[np.float32], affine: Affine) -> sitk.Image:
    """Return an image of SimpleITK from voxels (slice, row, column) and these axes' affine."""
    axes = _TO_LPS @ affine[:3, :3][:, ::-1]  # SimpleITK counts columns first
    spacing = np.linalg.norm(axes, axis=0)
    image = sitk.GetImageFromArray(np.ascontiguousarray(voxels))
    image.SetSpacing(spacing.tolist())
    image.SetDirection((axes / spacing).ravel().tolist())
    image.SetOrigin((_TO_LPS @ affine[:3, 3]).tolist())
    return image


def affine_of(image: sitk.Image) -> Affine:
    """Return the affine of (slice, row, column) to mm: right, anterior, superior."""
    direction = np.array(image.GetDirection(), dtype=np.float64).reshape(3, 3)
    affine = np.eye(4)
    affine[:3, :3] = (_TO_LPS @ (direction * np.array(image.GetSpacing())))[:, ::-1]
    affine[:3, 3] = _TO_LPS @ np.array(image.GetOrigin())
    return affine


def voxels_of(image: sitk.Image) -> Voxels3:
    """Return an image's voxels as (slice, row, column)."""
    return sitk.GetArrayFromImage(image).astype(np.float32, copy=False)


def spacing_of(image: sitk.Image) -> tuple[float, float, float]:
    """Return the mm between voxels to the right, forward and up."""
    right, forward, up = map(float, image.GetSpacing())
    return right, forward, up


def same_grid(image: sitk.Image, other: sitk.Image, tolerance: float = 1e-4) -> bool:
    """Tell whether voxels of two images lie at the same places, to `tolerance` in mm."""
    if image.GetSize() != other.GetSize():
        return False
    ends = [0, 0, 0], [length - 1 for length in image.GetSize()]
    corners = [[ends[b][axis] for axis, b in enumerate(bits)] for bits in np.ndindex(2, 2, 2)]
    apart = (
        np.subtract(
            image.TransformIndexToPhysicalPoint(corner), other.TransformIndexToPhysicalPoint(corner)
        )
        for corner in corners
    )
    return all(float(np.linalg.norm(each)) <= tolerance for each in apart)


def resampled(
    image: sitk.Image,
    grid: sitk.Image,
    transform: sitk.Transform | None = None,
    interpolator: int = sitk.sitkLinear,
    outside: float = 0.0,
) -> sitk.Image:
    """Resample an image onto a grid, through a transform of its places; float32."""
    moved = transform or sitk.Transform(3, sitk.sitkIdentity)
    return sitk.Resample(image, grid, moved, interpolator, outside, sitk.sitkFloat32)


def head_in(image: sitk.Image) -> sitk.Image:
    """Return where there is a head: above Otsu's threshold, without holes, the largest piece.

    Otsu, IEEE Trans. Syst. Man Cybern. 1979, on the logarithm, since a head's greys span decades.
    """
    values = sitk.Log(sitk.Clamp(image, sitk.sitkFloat32, 0.0) + _tenth(image))
    above = sitk.OtsuThreshold(values, 0, 1, 128)
    largest = sitk.RelabelComponent(sitk.ConnectedComponent(above), sortByObjectSize=True) == 1
    return sitk.BinaryFillhole(sitk.BinaryMorphologicalClosing(largest, _radius(image, 4.0)))


def _tenth(image: sitk.Image) -> float:
    return max(float(np.percentile(voxels_of(image), 99)) / 10, 1e-6)


def _radius(image: sitk.Image, millimetres: float) -> Sequence[int]:
    return [round(millimetres / length) for length in image.GetSpacing()]


def grown(mask: sitk.Image, millimetres: float) -> sitk.Image:
    """Return a mask grown by so many mm, or shrunk by them where they are below 0."""
    distance = sitk.SignedMaurerDistanceMap(
        mask, insideIsPositive=False, squaredDistance=False, useImageSpacing=True
    )
    return distance <= millimetres
