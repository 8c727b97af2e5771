"""A volume is resampled axis by axis to exact spacing, and its centre stays where it is."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Voxels: TypeAlias = NDArray[np.float32]


@dataclass(frozen=True)
class Pixels:
    """How an axis is resampled: from pixels `spacing` mm apart to `size`, `wanted` mm apart."""

    spacing: float
    size: int
    wanted: float

    def positions(self, length: int) -> NDArray[np.float64]:
        """Return where each new pixel's centre lies among the `length` old ones."""
        steps = np.arange(self.size, dtype=np.float64) - (self.size - 1) / 2
        return np.asarray(steps * (self.wanted / self.spacing) + (length - 1) / 2, dtype=np.float64)

    def within(self, length: int) -> NDArray[np.bool_]:
        """Tell which of the old pixels have their middle in the window of the new ones."""
        middles = (np.arange(length) - (length - 1) / 2) * self.spacing
        return np.abs(middles) <= self.size * self.wanted / 2


Resampler: TypeAlias = Callable[[Voxels, int, Pixels], Voxels]


def in_plane(values: Voxels, rows: Pixels, columns: Pixels, *, by: Resampler) -> Voxels:
    """Resample the rows and columns of a volume (slice, row, column); its slices stay."""
    return by(by(values, 1, rows), 2, columns)


def smooth(values: Voxels, axis: int, pixels: Pixels) -> Voxels:
    """Resample grey values by cubic convolution (Keys 1981, a = -0.5), with 0 outside the volume.

    The kernel widens by the factor of a downsampling, so that fine detail does not alias.
    """
    length, width = values.shape[axis], max(1.0, pixels.wanted / pixels.spacing)
    positions, reach = pixels.positions(length), int(np.ceil(2 * width))
    taps = np.floor(positions)[:, None] + np.arange(1.0 - reach, reach + 1)
    weights = _keys(np.abs(positions[:, None] - taps) / width) * _within(taps, length)
    weights /= np.where(_within(positions, length), weights.sum(axis=1), np.inf)[:, None]
    shape = list(values.shape)
    shape[axis] = pixels.size
    result = np.zeros(shape, dtype=np.float32)
    # Tap by tap, so that the order of the sum is fixed; a matrix product does not guarantee that.
    for tap, weight in zip(taps.T, weights.astype(np.float32).T, strict=True):
        result += _take(values, axis, tap) * _along(axis, weight)
    return result


def nearest(values: Voxels, axis: int, pixels: Pixels) -> Voxels:
    """Resample labels by the nearest old pixel, with 0 outside the volume."""
    length = values.shape[axis]
    positions = np.floor(pixels.positions(length) + 0.5)
    inside = _within(positions, length).astype(np.float32)
    return _take(values, axis, positions) * _along(axis, inside)


def _keys(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    near = 1 - 2.5 * distance**2 + 1.5 * distance**3
    far = 2 - 4 * distance + 2.5 * distance**2 - 0.5 * distance**3
    return np.where(distance < 1, near, np.where(distance < 2, far, 0.0))


def _within(positions: NDArray[np.float64], length: int) -> NDArray[np.bool_]:
    return (positions >= -0.5) & (positions < length - 0.5)


def _take(values: Voxels, axis: int, positions: NDArray[np.float64]) -> Voxels:
    return np.take(values, positions.clip(0, values.shape[axis] - 1).astype(np.intp), axis=axis)


def _along(axis: int, weights: Voxels) -> Voxels:
    return weights.reshape([-1 if other == axis else 1 for other in range(3)])
