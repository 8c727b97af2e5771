import numpy as np
import pytest

from grandrounds.data.resample import Pixels, in_plane, nearest, smooth


def line(values: list[float]) -> np.ndarray:
    return np.array(values, dtype=np.float32).reshape(1, 1, -1)


def test_equal_spacing_and_size_change_nothing():
    values = np.random.default_rng(0).random((2, 5, 6), dtype=np.float32)
    same = in_plane(values, Pixels(0.7, 5, 0.7), Pixels(0.9, 6, 0.9), by=smooth)
    assert np.array_equal(same, values)


@pytest.mark.parametrize("by", [smooth, nearest])
def test_a_larger_size_pads_and_a_smaller_one_crops_about_the_centre(by):
    values = line([1, 2, 3, 4])
    assert by(values, 2, Pixels(1, 8, 1)).ravel().tolist() == [0, 0, 1, 2, 3, 4, 0, 0]
    assert by(values, 2, Pixels(1, 2, 1)).ravel().tolist() == [2, 3]


def test_half_a_pixel_apart_a_ramp_stays_a_ramp():
    ramp = line(list(range(10)))
    assert smooth(ramp, 2, Pixels(1, 5, 1)).ravel().tolist() == [2.5, 3.5, 4.5, 5.5, 6.5]


def test_a_constant_stays_constant_at_any_spacing():
    values = np.full((1, 30, 30), 7, dtype=np.float32)
    for wanted in (0.3, 0.8, 1.3, 2.7):
        small = in_plane(values, Pixels(1, 8, wanted), Pixels(1, 8, wanted), by=smooth)
        assert small == pytest.approx(7, rel=1e-6)


def test_a_coarser_grid_keeps_the_centre_of_a_blob_in_mm():
    x = np.arange(64) - 31.5
    blob = line(np.exp(-((x - 5.2) ** 2) / 50).tolist())
    coarse = smooth(blob, 2, Pixels(0.7, 32, 1.5)).ravel()
    middle = (np.arange(32) - 15.5) * 1.5
    assert (coarse * middle).sum() / coarse.sum() == pytest.approx(5.2 * 0.7, abs=0.01)


def test_detail_finer_than_the_new_pixels_turns_grey_instead_of_aliasing():
    stripes = line([0, 1] * 50)
    coarse = smooth(stripes, 2, Pixels(1, 20, 2.2)).ravel()
    assert coarse == pytest.approx(0.5, abs=0.03)
    assert set(nearest(stripes, 2, Pixels(1, 20, 2.2)).ravel()) == {0.0, 1.0}


def test_labels_are_taken_from_the_nearest_pixel():
    values = line([1, 2, 3])
    assert nearest(values, 2, Pixels(1, 6, 0.5)).ravel().tolist() == [1, 1, 2, 2, 3, 3]
