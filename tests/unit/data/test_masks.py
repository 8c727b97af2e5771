"""What a mask's values mean; the reports are named at each."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from grandrounds.core.errors import BadImage
from grandrounds.data.masks import read_mask

SaveVolume = Callable[..., Path]


def mask_of(save: SaveVolume, folder: Path, values: Sequence[float]) -> Path:
    voxels = np.zeros((4, 4, 4), np.float32)
    voxels[0, 0, : len(values)] = values[:4]
    voxels[1, 0, : len(values[4:8])] = values[4:8]
    return save(folder / "sub-1_lesionmask.nii", voxels)


@pytest.mark.parametrize(
    ("values", "labels", "soft", "inside"),
    [
        ([], (1.0,), False, 0),
        ([1, 1], (1.0,), False, 2),
        ([0.99999], (1.0,), False, 1),
        ([1, 1.0000001], (1.0,), False, 2),
        ([255], (255.0,), False, 1),
        ([2, 2, 2], (2.0,), False, 3),
        ([1, 2], (1.0, 2.0), False, 2),
        ([1, 2, 4], (1.0, 2.0, 4.0), False, 3),
        ([0.2, 0.5, 0.6, 1], (1.0,), True, 2),
    ],
)
def test_a_mask_marks_what_its_values_mean(
    tmp_path: Path,
    save_volume: SaveVolume,
    values: list[float],
    labels: tuple[float, ...],
    soft: bool,
    inside: int,
):
    mask = read_mask(mask_of(save_volume, tmp_path, values))
    assert (mask.labels, mask.soft, int(mask.voxels.sum())) == (labels, soft, inside)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([0.4, 0.5], "none with more than 0.5"),
        ([1, -1], "values below 0, such as -1"),
        ([-0.04, 0.3, 1.08], "values below 0"),  # resampled by cubic splines: macapype PR#209
        ([-1024, 40, 300], "values below 0"),  # the image as its own label: nnUNet#1007
        ([1, 1.5, 2], "3 values from 1 to 2"),  # labels resampled: dhcp-structural-pipeline#3
        ([1, 2, 3, 4, 5, 6, 7], "7 values from 1 to 7"),
    ],
)
def test_what_is_no_mask_is_refused(
    tmp_path: Path, save_volume: SaveVolume, values: list[float], words: str
):
    path = mask_of(save_volume, tmp_path, values)
    with pytest.raises(BadImage) as caught:
        read_mask(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert words in str(caught.value)
