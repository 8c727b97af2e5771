"""How well outlined structures agree with the real ones, over all slices of a case.

Empty masks follow one rule: where both are empty, Dice is 1 and HD95 0; where one is, Dice is 0 and
HD95 the image's diagonal.
"""

# Names end in the shape: N slice, S structure, H, W.
# ruff: noqa: N803, N806

from collections.abc import Sequence
from math import hypot

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage  # pyright: ignore[reportMissingTypeStubs]
from torch import Tensor

PERCENTILE = 95.0


def dice(found_NSHW: Tensor, real_NSHW: Tensor) -> Tensor:
    """Twice the overlap over both sizes, (S,), of boolean masks; 1 where both are empty.

    Dice 1945.
    """
    overlap_S = (found_NSHW & real_NSHW).sum((0, 2, 3)).double()
    sizes_S = (found_NSHW.sum((0, 2, 3)) + real_NSHW.sum((0, 2, 3))).double()
    return torch.where(sizes_S > 0, 2 * overlap_S / sizes_S.clamp_min(1), 1.0)


def hd95(found_NSHW: Tensor, real_NSHW: Tensor, spacing: Sequence[float]) -> Tensor:
    """95th percentile of the Hausdorff distance in mm, (S,), of boolean masks.

    Each surface pixel's distance to the other mask's surface in the same slice, pooled over all
    slices; the larger percentile of both directions. A slice where only one mask has a pixel counts
    with the image's diagonal. `spacing` is that of rows and columns in mm. Huttenlocher et al.
    1993.
    """
    pairs = [(found_NSHW[:, s], real_NSHW[:, s]) for s in range(found_NSHW.shape[1])]
    values = [_hd95(one.cpu().numpy(), other.cpu().numpy(), spacing) for one, other in pairs]
    return torch.tensor(values, dtype=torch.float64)


def _hd95(
    found_NHW: NDArray[np.bool_], real_NHW: NDArray[np.bool_], spacing: Sequence[float]
) -> float:
    there = [_distances(*pair, spacing) for pair in zip(found_NHW, real_NHW, strict=True)]
    back = [_distances(*pair, spacing) for pair in zip(real_NHW, found_NHW, strict=True)]
    pools = [np.concatenate(distances) for distances in (there, back)]
    return max((float(np.percentile(pool, PERCENTILE)) for pool in pools if pool.size), default=0.0)


def _distances(
    own_HW: NDArray[np.bool_], other_HW: NDArray[np.bool_], spacing: Sequence[float]
) -> NDArray[np.float64]:
    """Measure from each surface pixel of one mask to the nearest one of the other."""
    surface = _surface(own_HW)
    if not other_HW.any():
        height, width = own_HW.shape
        diagonal = hypot(height * spacing[0], width * spacing[1])
        return np.full(np.count_nonzero(surface), diagonal)
    return _to_nearest(_surface(other_HW), spacing)[surface]


def _surface(mask_HW: NDArray[np.bool_]) -> NDArray[np.bool_]:
    inside: NDArray[np.bool_] = ndimage.binary_erosion(mask_HW)  # pyright: ignore
    return mask_HW & ~inside


def _to_nearest(surface_HW: NDArray[np.bool_], spacing: Sequence[float]) -> NDArray[np.float64]:
    distances = ndimage.distance_transform_edt(~surface_HW, sampling=spacing)  # pyright: ignore
    return np.asarray(distances, np.float64)
