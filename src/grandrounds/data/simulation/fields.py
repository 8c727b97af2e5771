"""Smooth Gaussian random fields are computed only at the places where they are needed.

Every operation is elementwise in a fixed order, so the number of threads cannot change a bit.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Axes = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]
HALF_EXTENT = (27.0, 112.0, 112.0)  # mm from the middle; in the plane, fields repeat beyond
_STEP = 1.25  # widths between nodes: the field's variance between them then differs by under 1 %
TAPS = 6  # nodes that reach a place; the next one would weigh less than 0.1 %


@dataclass(frozen=True)
class Taps:
    """How values at the nodes of an axis become values at positions.

    `first` is the first node that reaches each position, `weights` are (tap, position).
    """

    first: NDArray[np.intp]
    weights: Array

    def along(self, values: Array, axis: int) -> Array:
        """Replace the nodes of one axis by positions; the nodes repeat."""
        shape = [-1 if other == axis else 1 for other in range(values.ndim)]
        first, *others = (
            values.take(self.first + tap, axis, mode="wrap") * weight.reshape(shape)
            for tap, weight in enumerate(self.weights)
        )
        for other in others:
            first += other
        return first


def linear_taps(positions: NDArray[np.float64], start: float, step: float) -> Taps:
    """Interpolate linearly between nodes at `start`, `start + step`, ... ."""
    place = (positions - start) / step
    first = np.floor(place)
    share = place - first
    return Taps(first.astype(np.intp), np.stack([1 - share, share]).astype(np.float32))


def gaussian_taps(positions: NDArray[np.float64], start: float, width: float) -> Taps:
    """Add up a Gaussian bump of standard deviation `width` for each node.

    White noise keeps its variance. The first `TAPS` / 2 - 1 nodes lie before `start`.
    """
    place = (positions - start) / (_STEP * width) + TAPS // 2 - 1
    first = np.floor(place) - (TAPS // 2 - 1)
    distance = _STEP * (place - first - np.arange(TAPS)[:, None])
    bumps = np.exp(-0.5 * distance * distance)
    bumps /= np.sqrt((bumps * bumps).sum(axis=0))
    return Taps(first.astype(np.intp), bumps.astype(np.float32))


def blurred(images: Array, width: float) -> Array:
    """Blur the last two axes by a Gaussian of standard deviation `width` in pixels.

    The edges wrap around, as in an image that is measured by its frequencies.
    """
    if width == 0:
        return images
    reach = int(np.ceil(3 * width))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1)[:, None] / width) ** 2)
    weights = (kernel / kernel.sum()).astype(np.float32)
    for axis in (images.ndim - 2, images.ndim - 1):
        first = np.arange(images.shape[axis], dtype=np.intp) - reach
        images = Taps(first, weights).along(images, axis)
    return images


def random_field(rng: np.random.Generator, axes: Axes, width: float) -> Array:
    """Draw white noise smoothed by a Gaussian of standard deviation `width` in mm, with variance 1.

    `axes` are positions in mm from the middle of the head (up, forward, right). The result has a
    value for each combination, and a place has the same value whichever others are computed.
    """
    counts = [int(np.ceil(2 * half / (_STEP * width))) + TAPS for half in HALF_EXTENT]
    field = rng.standard_normal(counts, dtype=np.float32)
    for axis, (positions, half) in enumerate(zip(axes, HALF_EXTENT, strict=True)):
        field = gaussian_taps(positions, -half, width).along(field, axis)
    return field
