"""Simulated heads as NIfTI files, as scanners leave them: shaded, and not quite in one place."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from grandrounds.data.elements import Elements
from grandrounds.data.nifti import canonical_nifti
from grandrounds.data.preparation.volumes import affine_of, image_of, resampled, voxels_of
from grandrounds.data.simulation.simulate import Scanner, simulate_session

SPACING = (3.0, 3.5, 3.5)  # mm between slices, rows, columns
SIZE = (17, 56, 56)


@dataclass(frozen=True)
class Head:
    """A simulated patient: contrasts, and masks of the brain and of white matter, on one grid."""

    contrasts: Mapping[str, sitk.Image]
    masks: Mapping[str, sitk.Image]


def affine(size: tuple[int, int, int] = SIZE) -> NDArray[np.float64]:
    """Slices run up, rows back, columns to the left; the middle of the head is the origin."""
    axes = np.array([[0, 0, -1], [0, -1, 0], [1, 0, 0]]) * SPACING
    found = np.eye(4)
    found[:3, :3] = axes
    found[:3, 3] = -axes @ ((np.array(size) - 1) / 2)
    return found


@cache
def head(
    patient: str = "sub-1", contrasts: tuple[str, ...] = ("T1w", "T2w"), bias: float = 0.0
) -> Head:
    """Simulate a patient; `bias` is the coil's shading, as a scanner of the simulator has it."""
    elements, scanner = Elements(contrasts, SIZE[1:], SPACING[1:]), Scanner(bias=bias)
    found = simulate_session(3, "oak", patient, scanner, elements, slices=SIZE[0])
    images = {n: image_of(found.images[:, i], affine()) for i, n in enumerate(contrasts)}
    masks = {
        name: image_of(np.asarray(found.masks[name], dtype=np.float32), affine())
        for name in ("brain", "white")
    }
    return Head(images, masks)


def rigid(
    rotation: tuple[float, float, float], shift: tuple[float, float, float]
) -> sitk.Transform:
    """A turn in degrees about the middle of the head, and a shift in mm."""
    found = sitk.Euler3DTransform()
    found.SetRotation(*np.radians(rotation).tolist())
    found.SetTranslation(shift)
    return found


def displaced(image: sitk.Image, by: sitk.Transform) -> sitk.Image:
    """Return an image in which what lay at a place lies where the transform takes that place."""
    return resampled(image, image, by.GetInverse(), sitk.sitkBSpline)


def save(path: Path, image: sitk.Image, kind: type = np.float32) -> Path:
    """Write an image as a NIfTI file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(canonical_nifti(voxels_of(image).astype(kind), affine_of(image)))
    return path


def save_session(
    folder: Path, who: str = "sub-1", moved: sitk.Transform | None = None, *, mask: bool = True
) -> Head:
    """Write a session of T1w and T2w, of which T2w is displaced, and the brain's mask."""
    found = head(who.partition("_")[0])
    save(folder / f"{who}_T1w.nii.gz", found.contrasts["T1w"])
    second = found.contrasts["T2w"]
    save(folder / f"{who}_T2w.nii.gz", displaced(second, moved) if moved else second)
    if mask:
        save(folder / f"{who}_brainmask.nii.gz", found.masks["brain"], np.uint8)
    return found


def loaded(path: Path) -> nib.Nifti1Image:
    """Read a NIfTI file as it stands."""
    found = nib.load(path)
    assert isinstance(found, nib.Nifti1Image)
    return found


def apart(one: sitk.Transform, other: sitk.Transform, mask: sitk.Image) -> NDArray[np.floating]:
    """Return how far apart two transforms take the places of a mask, in mm."""
    places = np.argwhere(voxels_of(mask) > 0)[::101, ::-1]
    points = [mask.TransformIndexToPhysicalPoint(place.tolist()) for place in places]
    pairs = ((one.TransformPoint(p), other.TransformPoint(p)) for p in points)
    return np.array([np.linalg.norm(np.subtract(*pair)) for pair in pairs])
