"""Dice and HD95 against values worked out by hand, against MONAI's, and where masks are empty."""

import math

import pytest
import torch
from monai.metrics.hausdorff_distance import compute_hausdorff_distance
from monai.metrics.meandice import compute_dice
from torch import Tensor

from grandrounds.tasks.metrics import dice, hd95, hd95_3d

EMPTY = torch.zeros(2, 6, 8, dtype=torch.bool)
DIAGONAL = math.hypot(6 * 1.0, 8 * 2.0)
SPACING = (1.0, 2.0)


def mask(*boxes: tuple[int, slice, slice], slices: int = 2) -> Tensor:
    """Boxes of pixels, each in a slice, on 6 x 8 pixels; one structure."""
    found = torch.zeros(slices, 1, 6, 8, dtype=torch.bool)
    for number, rows, columns in boxes:
        found[number, 0, rows, columns] = True
    return found


SQUARE = mask((0, slice(1, 3), slice(1, 3)))
RIGHT = mask((0, slice(1, 3), slice(2, 4)))
NOTHING = mask()


@pytest.mark.parametrize(
    ("found", "real", "value"),
    [
        (SQUARE, SQUARE, 1.0),
        (SQUARE, RIGHT, 2 * 2 / (4 + 4)),
        (mask((0, slice(0, 3), slice(0, 4))), SQUARE, 2 * 4 / (12 + 4)),
        (mask((1, slice(1, 3), slice(1, 3))), SQUARE, 0.0),
        (NOTHING, SQUARE, 0.0),
        (SQUARE, NOTHING, 0.0),
        (NOTHING, NOTHING, 1.0),
    ],
)
def test_dice_is_twice_the_overlap_over_both_sizes(found: Tensor, real: Tensor, value: float):
    assert dice(found, real).tolist() == [value]


@pytest.mark.parametrize(
    ("found", "real", "value"),
    [
        (SQUARE, SQUARE, 0.0),
        # Two of four surface pixels of either square are one column of 2 mm off the other's.
        (SQUARE, RIGHT, 2.0),
        (mask((0, slice(2, 4), slice(1, 3))), SQUARE, 1.0),
        (NOTHING, SQUARE, DIAGONAL),
        (SQUARE, NOTHING, DIAGONAL),
        (NOTHING, NOTHING, 0.0),
        # Found in another slice: no distance within a slice, so the diagonal.
        (mask((1, slice(1, 3), slice(1, 3))), SQUARE, DIAGONAL),
    ],
)
def test_hd95_is_in_millimetres_within_the_slices(found: Tensor, real: Tensor, value: float):
    assert hd95(found, real, SPACING).tolist() == pytest.approx([value])


def test_a_slice_that_lacks_its_counterpart_counts_by_the_pixels_of_its_surface():
    """Of 49 surface pixels one has no counterpart in its slice: under 5 %, so HD95 stays 0."""
    whole = [(n, slice(1, 5), slice(1, 7)) for n in range(3)]
    real = mask(*whole, slices=4)
    speck = mask(*whole, (3, slice(0, 1), slice(0, 1)), slices=4)
    row = mask(*whole, (3, slice(0, 1), slice(0, 8)), slices=4)
    assert hd95(speck, real, SPACING).tolist() == [0.0]
    assert hd95(row, real, SPACING).tolist() == pytest.approx([DIAGONAL])


def test_the_worse_direction_counts():
    """All that was found is real, but most of what is real was not found."""
    line = mask((0, slice(2, 3), slice(0, 8)))
    dot = mask((0, slice(2, 3), slice(0, 1)))
    far = hd95(dot, line, SPACING).item()
    assert far == hd95(line, dot, SPACING).item()
    assert far == pytest.approx(torch.quantile(torch.arange(8.0) * 2, 0.95).item())


def test_each_structure_has_values_of_its_own():
    found, real = torch.cat([SQUARE, NOTHING, RIGHT], 1), torch.cat([RIGHT, NOTHING, RIGHT], 1)
    assert dice(found, real).tolist() == [0.5, 1.0, 1.0]
    assert hd95(found, real, SPACING).tolist() == [2.0, 0.0, 0.0]


@pytest.mark.filterwarnings("ignore:monai.metrics.utils:FutureWarning")
@pytest.mark.parametrize("seed", range(3))
def test_one_slice_with_both_masks_is_what_monai_computes(seed: int):
    draw = torch.Generator().manual_seed(seed)
    found, real = (torch.rand(1, 2, 24, 20, generator=draw) > 0.7 for _ in range(2))
    expected = compute_hausdorff_distance(
        found, real, include_background=True, percentile=95, spacing=SPACING
    )
    torch.testing.assert_close(hd95(found, real, SPACING).float(), expected[0])
    torch.testing.assert_close(dice(found, real).float(), compute_dice(found, real)[0])


def test_hd95_in_space_crosses_slices_that_are_far_apart_or_left_out():
    """A voxel moved by two slices of 5 mm and three rows of 2 mm."""
    real, found = torch.zeros(2, 4, 1, 8, 8, dtype=torch.bool)
    real[0, 0, 1, 1] = found[2, 0, 4, 1] = True
    heights = (10.0, 15.0, 20.0, 25.0)
    assert hd95_3d(found, real, (2, 2), heights).tolist() == pytest.approx([136**0.5])
    assert hd95_3d(real, real, (2, 2), heights).tolist() == [0.0]
    gap = (10.0, 15.0, 30.0, 35.0)  # two slices between them were not kept
    assert hd95_3d(found, real, (2, 2), gap).tolist() == pytest.approx([436**0.5])


@pytest.mark.filterwarnings("ignore:monai.metrics.utils:FutureWarning")
@pytest.mark.parametrize("seed", range(3))
def test_hd95_in_space_is_what_monai_computes_of_volumes(seed: int):
    draw = torch.Generator().manual_seed(seed)
    found, real = (torch.rand(6, 2, 12, 10, generator=draw) > 0.8 for _ in range(2))
    expected = compute_hausdorff_distance(
        found.movedim(0, 1)[None],
        real.movedim(0, 1)[None],
        include_background=True,
        percentile=95,
        spacing=(5.0, *SPACING),
    )
    heights = tuple(5.0 * place for place in range(6))
    torch.testing.assert_close(hd95_3d(found, real, SPACING, heights).float(), expected[0])


def test_a_miss_in_space_costs_the_volumes_diagonal():
    real, nothing = torch.zeros(2, 4, 2, 8, 8, dtype=torch.bool)
    real[0, :, 1, 1] = True
    found = hd95_3d(nothing, real, (2, 2), (0.0, 5.0, 10.0, 15.0))
    assert found.tolist() == pytest.approx([(16**2 + 16**2 + 20**2) ** 0.5] * 2)
    assert hd95_3d(nothing, nothing, (2, 2), (0.0, 5.0, 10.0, 15.0)).tolist() == [0, 0]
