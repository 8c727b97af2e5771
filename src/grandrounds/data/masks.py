"""A mask's file marks one structure; grey values and half-hearted marks are refused."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from grandrounds.core.errors import BadImage
from grandrounds.core.sentence import phrase
from grandrounds.data.nifti import read_voxels

HALF = 0.5  # of a probability, above which a voxel belongs to the structure
_EQUAL = 1e-3  # relative difference of values that count as one: masks are stored with scaling
MOST_LABELS = 6  # with more values, a file is no mask


@dataclass(frozen=True)
class Mask:
    """Where a structure is, in a file's own voxels.

    `labels` are the values that mean it, one in most files: 1, also for probabilities, or 255.
    `soft` are probabilities.
    """

    voxels: NDArray[np.bool_]
    labels: tuple[float, ...] = (1.0,)
    soft: bool = False


def read_mask(path: Path) -> Mask:
    """Read a mask: one value beside 0, a few labels, or probabilities, which count above one half.

    Raises `BadImage` where it has grey values or values below 0, where it marks voxels of which
    none passes one half, and where it marks the volume's corners, as the whole volume does.
    """
    mask = _read(path)
    _check_corners(path, mask)
    return mask


def _read(path: Path) -> Mask:
    voxels = read_voxels(path)
    values = _distinct(voxels)
    if values.size and values[0] < 0:
        raise BadImage(
            f"{path}: has values below 0, such as {values[0]:g}; a mask has 0 outside and one "
            "value above it inside.",
            safe=phrase("a mask has values below 0"),
        )
    if not values.size:
        return Mask(voxels > HALF)
    if values[-1] <= 1 + _EQUAL:
        return _probable(path, voxels, values)
    labels = tuple(round(float(value), 3) for value in values)
    if len(labels) > MOST_LABELS or (len(labels) > 1 and any(v != round(v) for v in labels)):
        raise BadImage(
            f"{path}: has {len(labels)} values from {labels[0]:g} to {labels[-1]:g}, as an image "
            "has; a mask has 0 outside and one value inside.",
            safe=phrase("a mask has {number} values, as an image has", number=len(labels)),
        )
    return Mask(voxels > 0, labels)


def _check_corners(path: Path, mask: Mask) -> None:
    """Refuse a mask of what lies around a structure, or of everything: air is in the corners."""
    ends = np.ix_(*((0, -1) for _ in mask.voxels.shape))
    if not mask.voxels[ends].all():
        return
    marked, total = int(np.count_nonzero(mask.voxels)), mask.voxels.size
    problem = "all of its voxels" if marked == total else "all corners of the volume"
    raise BadImage(
        f"{path}: marks {problem} ({marked} of {total} voxels); a mask outlines one structure, so "
        "draw it, turn 0 and 1 around where they were exchanged, or take the file away.",
        safe=phrase(
            "a mask marks {marked} of {total} voxels, all corners of the volume among them",
            marked=marked,
            total=total,
        ),
    )


def _distinct(voxels: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the values that are not 0, sorted, each of those that are nearly equal once."""
    values = np.unique(voxels[voxels != 0]).astype(np.float64)
    new = np.diff(values, prepend=-np.inf) > _EQUAL * np.abs(values)
    return values[new]


def _probable(path: Path, voxels: NDArray[np.float32], values: NDArray[np.float64]) -> Mask:
    inside = voxels > HALF
    if not inside.any():
        raise BadImage(
            f"{path}: marks {np.count_nonzero(voxels)} voxels, but none with more than "
            f"{voxels.max():g}; a voxel belongs to a mask above {HALF:g}, so this one would be "
            "empty.",
            safe=phrase("a mask marks voxels, but none with more than one half"),
        )
    return Mask(inside, soft=len(values) > 1)
