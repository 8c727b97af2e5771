"""A DICOM file's pixels are decoded frame by frame; it runs in a process with limits.

Each frame is rescaled by its own slope and intercept and written at its place in the volume; what
is padding becomes NaN, and the one who asked decides what stands there.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from pydicom.pixels.utils import iter_pixels

from grandrounds.data.dicom.instance import Unusable
from grandrounds.data.dicom.mosaic import grid_side
from grandrounds.data.dicom.reading import parse_dataset

_FLOAT = 4  # bytes of a voxel


def write_frames(file: BinaryIO, plan: Mapping[str, Any], out: int) -> None:
    """Decode an open file's frames and write each into the file `out`. Raises `Unusable`.

    The plan has what the header told: rows, columns, syntax and bits; of each frame its number, its
    place in the volume, its slope and its intercept.
    """
    size, modified, begin = plan["stored"]
    facts = os.fstat(file.fileno())
    if (facts.st_size, facts.st_mtime_ns) != (size, modified):
        raise Unusable("changed")
    numbers = [0] if plan["tiles"] else [int(frame[0]) for frame in plan["frames"]]
    pictures = _native(file, plan, begin, numbers) if begin else _decoded(file, plan, numbers)
    if plan["tiles"]:
        pictures = _tiles(next(pictures), plan["tiles"], [frame[0] for frame in plan["frames"]])
    for picture, (_, place, slope, intercept) in zip(pictures, plan["frames"], strict=True):
        values = _rescaled(picture, plan, slope, intercept)
        os.pwrite(out, values.tobytes(), int(place) * values.size * _FLOAT)


def _native(
    file: BinaryIO, plan: Mapping[str, Any], begin: int, numbers: Sequence[int]
) -> Iterator[NDArray[Any]]:
    """Yield frames that lie in the file as they are in memory."""
    kind = np.dtype(f"<{'i' if plan['signed'] else 'u'}{plan['bits'][0] // 8}")
    shape = (int(plan["rows"]), int(plan["columns"]))
    length = shape[0] * shape[1] * kind.itemsize
    for number in numbers:
        content = os.pread(file.fileno(), length, begin + number * length)
        if len(content) != length:
            raise Unusable("pixels")
        yield np.frombuffer(content, kind).reshape(shape)


def _decoded(
    file: BinaryIO, plan: Mapping[str, Any], numbers: Sequence[int]
) -> Iterator[NDArray[Any]]:
    """Yield frames that a decoder must read."""
    found = parse_dataset(file, pixels=True)
    if "PixelData" not in found and "FloatPixelData" not in found:
        raise Unusable("no-pixels")
    for picture in iter_pixels(found, raw=True, indices=list(numbers)):
        if picture.shape != (plan["rows"], plan["columns"]):
            raise Unusable("pixels")
        yield picture


def _tiles(whole: NDArray[Any], count: int, wanted: Sequence[int]) -> Iterator[NDArray[Any]]:
    side = grid_side(count)
    rows, columns = whole.shape[0] // side, whole.shape[1] // side
    for number in wanted:
        top, left = number // side * rows, number % side * columns
        yield whole[top : top + rows, left : left + columns]


def _rescaled(
    stored: NDArray[Any], plan: Mapping[str, Any], slope: float, intercept: float
) -> NDArray[np.float32]:
    if not (padding := plan["padding"]) and (slope, intercept, plan["inverted"]) == (1, 0, False):
        return stored.astype(np.float32)
    values = stored.astype(np.float64)
    if plan["inverted"]:  # of signed values -1 turns the least into the most
        values = (-1.0 if plan["signed"] else 2.0 ** plan["bits"][1] - 1) - values
    values = values * slope + intercept
    if padding:
        values[(stored >= padding[0]) & (stored <= padding[1])] = np.nan
    return values.astype(np.float32)
