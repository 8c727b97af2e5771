"""Whether a volume of a head probably shows a face is told by its outline alone."""

from typing import cast

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage  # pyright: ignore[reportMissingTypeStubs]

_FOREHEAD = (20.0, 70.0)  # mm below the top of the head
_FACE = (105.0, 140.0)
_MIDDLE = 25.0  # mm to either side of the middle of the head
_BEHIND = 5.0  # mm by which nose and mouth may lie behind the forehead; a cut face lies farther
_ABOVE_AIR = 0.15  # of the 99th percentile: what is darker is air
_PATCH = 40.0  # mm2 of a slice that are above air where the head begins


def shows_face(voxels: NDArray[np.float32], spacing: tuple[float, float, float]) -> bool:
    """Tell whether a head's outline reaches as far to the front where nose and mouth are.

    `voxels` are (slice, row, column) from the feet up, anterior first; `spacing` is in mm. A volume
    without what lies 105 mm below the top of the head, one without a skull, and one whose face was
    cut away show none.
    """
    head = _head(voxels)
    slice_mm, row_mm, column_mm = spacing
    areas = head.sum(axis=(1, 2)) * row_mm * column_mm
    inside = np.flatnonzero(areas >= max(_PATCH, 0.05 * float(areas.max())))
    if not inside.size:
        return False
    front = _front(head, column_mm) * row_mm
    below_top = np.asarray((int(inside[-1]) - np.arange(len(head))) * slice_mm, np.float64)
    forehead = _foremost(front, below_top, _FOREHEAD)
    face = _foremost(front, below_top, _FACE)
    return bool(np.isfinite(forehead) and np.isfinite(face) and face <= forehead + _BEHIND)


def _head(voxels: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return the largest connected part that is brighter than air."""
    above = voxels > _ABOVE_AIR * float(np.percentile(voxels, 99))
    opened: NDArray[np.bool_] = ndimage.binary_opening(above, np.ones((1, 3, 3), bool))  # pyright: ignore
    labels, count = cast(tuple[NDArray[np.int32], int], ndimage.label(opened))  # pyright: ignore
    if count == 0:
        return np.zeros_like(above)
    return labels == 1 + int(np.argmax(np.bincount(labels.ravel())[1:]))


def _front(head: NDArray[np.bool_], column_mm: float) -> NDArray[np.float64]:
    """Return, of each slice, the foremost row near the middle in which the head is, else inf."""
    columns = np.flatnonzero(head.any(axis=(0, 1)))
    if not columns.size:
        return np.full(len(head), np.inf)
    middle, reach = (columns[0] + columns[-1]) / 2, _MIDDLE / column_mm
    near = head[:, :, max(0, round(middle - reach)) : round(middle + reach) + 1]
    rows = near.sum(axis=2) >= 2
    return np.where(rows.any(axis=1), rows.argmax(axis=1), np.inf)


def _foremost(
    front: NDArray[np.float64], below_top: NDArray[np.float64], level: tuple[float, float]
) -> float:
    there = front[(below_top >= level[0]) & (below_top <= level[1])]
    return float(there.min()) if there.size else np.inf
