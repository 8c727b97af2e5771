"""Siemens puts the slices of a volume as tiles into one large picture, a mosaic.

Where the first tile lies follows from the picture's own position and the formula of Brett et al.
(https://nipy.org/nibabel/dicom/dicom_mosaic.html): half of what the picture is larger by than a
tile, in each direction. How the slices follow each other is told by the CSA header.
"""

import struct
from collections.abc import Mapping
from math import ceil, sqrt
from typing import cast

import numpy as np
from pydicom.dataset import Dataset

_COUNT, _CSA = (0x0019, 0x100A), (0x0029, 0x1010)
_MOST_TILES, _MOST_TAGS = 1024, 1000


def tiles(found: Dataset, frame: Mapping[str, object]) -> list[Mapping[str, object]] | None:
    """Return each tile as a frame with a position of its own; None where the header is silent."""
    csa = read_csa(_bytes(found, _CSA))
    count = _count(found, csa)
    place = _plane(frame)
    if count is None or place is None or "Rows" not in found or "Columns" not in found:
        return None
    side = grid_side(count)
    rows, columns = int(found.Rows) // side, int(found.Columns) // side
    corner, along, down, (between_rows, between_columns) = place
    larger = np.array([(found.Columns - columns) / 2, (found.Rows - rows) / 2])
    first = corner + along * between_columns * larger[0] + down * between_rows * larger[1]
    step = _normal(csa, along, down) * _between_slices(found)
    return [
        {**frame, "number": k, "position": tuple(map(float, first + k * step))}
        for k in range(count)
    ]


def grid_side(count: int) -> int:
    """Return how many tiles a mosaic has in a row and in a column."""
    return ceil(sqrt(count))


def _count(found: Dataset, csa: Mapping[str, list[str]]) -> int | None:
    told = csa.get("NumberOfImagesInMosaic") or [None]
    value: object = found[_COUNT].value if _COUNT in found else told[0]
    try:
        count = int(str(value))
    except ValueError:
        return None
    return count if 0 < count <= _MOST_TILES else None


def _plane(
    frame: Mapping[str, object],
) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[float, float]] | None:
    position, orientation, spacing = (
        cast("tuple[float, ...]", frame[name] or ())
        for name in ("position", "orientation", "spacing")
    )
    if (len(position), len(orientation), len(spacing)) != (3, 6, 2):
        return None
    directions = np.array(orientation).reshape(2, 3)
    return np.array(position), directions[0], directions[1], (spacing[0], spacing[1])


def _between_slices(found: Dataset) -> float:
    value = found.get("SpacingBetweenSlices") or found.get("SliceThickness")
    return float(value) if value else 1.0


def _normal(csa: Mapping[str, list[str]], along: np.ndarray, down: np.ndarray) -> np.ndarray:
    """Return in which direction the tiles follow each other; the CSA header knows its sign."""
    normal = np.cross(along, down)
    try:
        told = np.array([float(each) for each in csa.get("SliceNormalVector", [])])
    except ValueError:
        return normal
    return -normal if told.shape == (3,) and told @ normal < 0 else normal


def read_csa(data: bytes) -> Mapping[str, list[str]]:
    """Return the tags of a CSA header ("SV10"); empty where it is none or is damaged."""
    if data[:4] != b"SV10" or len(data) < 16:
        return {}
    try:
        return _tags(data)
    except (struct.error, ValueError):
        return {}


def _tags(data: bytes) -> Mapping[str, list[str]]:
    found: dict[str, list[str]] = {}
    count, at = min(struct.unpack_from("<I", data, 8)[0], _MOST_TAGS), 16
    for _ in range(count):
        name, _, _, _, items, _ = struct.unpack_from("<64si4siii", data, at)
        at += 84
        values: list[str] = []
        for _ in range(min(max(items, 0), _MOST_TAGS)):
            length = struct.unpack_from("<4i", data, at)[1]
            if not 0 <= length <= len(data) - at:
                raise ValueError("an item is longer than its header")
            at += 16
            values.append(data[at : at + length].split(b"\0")[0].decode("latin-1").strip())
            at += (length + 3) // 4 * 4
        found[name.split(b"\0")[0].decode("latin-1")] = [each for each in values if each]
    return found


def _bytes(found: Dataset, tag: tuple[int, int]) -> bytes:
    value: object = found[tag].value if tag in found else b""
    return value if isinstance(value, bytes) else b""
