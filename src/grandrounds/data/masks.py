"""A mask's file marks one structure; labels, grey values and half-hearted marks are refused."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from grandrounds.core.errors import BadImage
from grandrounds.core.sentence import phrase
from grandrounds.data.nifti import read_voxels

HALF = 0.5  # of a probability, above which a voxel belongs to the structure
_EQUAL = 1e-3  # relative difference of values that count as one: masks are stored with scaling
_LISTED = 6  # values spelled out in one message


@dataclass(frozen=True)
class Mask:
    """Where a structure is, in a file's own voxels.

    `mark` is the value that means it: 1, where a file has it with 0 or with probabilities, else the
    only other value (255). `soft` are probabilities.
    """

    voxels: NDArray[np.bool_]
    mark: float
    soft: bool


def read_mask(path: Path) -> Mask:
    """Read a mask: one value beside 0, or probabilities, which count above one half.

    Raises `BadImage` where it has several labels, grey values or values below 0, and where it marks
    voxels of which none passes one half.
    """
    voxels = read_voxels(path)
    values = _distinct(voxels)
    if values.size and values[0] < 0:
        raise BadImage(
            f"{path}: has values below 0, such as {values[0]:g}; a mask has 0 outside and one "
            "value above it inside.",
            safe=phrase("a mask has values below 0"),
        )
    if not values.size:
        return Mask(voxels > HALF, 1.0, soft=False)
    if values[-1] <= 1 + _EQUAL:
        return _probable(path, voxels, values)
    if len(values) > 1:
        raise _several(path, values)
    return Mask(voxels > 0, float(values[0]), soft=False)


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
    soft = len(values) > 1
    return Mask(inside, 1.0 if soft else round(float(values[0]), 3), soft)


def _several(path: Path, values: NDArray[np.float64]) -> BadImage:
    if len(values) <= _LISTED:
        found = f"the labels {', '.join(f'{value:g}' for value in values)}"
    else:
        found = f"{len(values)} values from {values[0]:g} to {values[-1]:g}, as an image has"
    return BadImage(
        f"{path}: has {found}; a mask has 0 outside and one value inside, so keep the label that "
        "is meant.",
        safe=phrase("a mask has {number} labels; it must have one", number=len(values)),
    )
