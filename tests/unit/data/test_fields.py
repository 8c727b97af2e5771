"""Random fields: their variance, their smoothness, and what they do not depend on."""

import numpy as np
import pytest

from grandrounds.data.simulation.fields import Array, Axes, blurred, linear_taps, random_field

LINE = np.arange(-100, 100, 0.5)


def field_on(axes: Axes, width: float = 4.0, seed: int = 3) -> Array:
    return random_field(np.random.default_rng(seed), axes, width)


@pytest.mark.slow
def test_a_field_has_variance_one_everywhere() -> None:
    places = (np.zeros(1), np.array([-3.0, 0.1, 2.5]), np.array([0.0, 1.0]))
    draws = np.stack([field_on(places, width=10.0, seed=seed) for seed in range(2000)])
    assert draws.var(axis=0) == pytest.approx(np.ones((1, 3, 2)), abs=0.12)


def test_a_field_is_as_smooth_as_its_width_says() -> None:
    field = field_on((np.array([-20.0, 0.0, 20.0]), LINE, LINE), width=2.0).astype(np.float64)
    far = 8  # positions half a millimetre apart: 4 mm, two widths
    found = float((field[..., far:] * field[..., :-far]).mean() / (field**2).mean())
    assert found == pytest.approx(np.exp(-1), abs=0.04)


def test_a_value_does_not_depend_on_what_else_is_asked_for() -> None:
    whole = field_on((np.array([-5.0, 5.0]), LINE, LINE))
    part = field_on((np.array([5.0]), LINE[7:9], LINE[100:]))
    np.testing.assert_array_equal(whole[1:, 7:9, 100:], part)


def test_linear_taps_reproduce_a_straight_line() -> None:
    nodes = np.array([[1.0, 3.0, 5.0, 7.0]], np.float32)
    positions = np.array([-4.0, -1.0, 3.0])
    found = linear_taps(positions, start=-4.0, step=4.0).along(nodes, 1)
    np.testing.assert_allclose(found, [[1.0, 2.5, 4.5]])


def test_a_blur_spreads_a_point_and_keeps_its_sum() -> None:
    point = np.zeros((1, 15, 15), np.float32)
    point[0, 7, 7] = 1
    spread = blurred(point, 0.8)
    assert spread.sum() == pytest.approx(1, abs=1e-6)
    assert spread[0, 7, 8] / spread[0, 7, 7] == pytest.approx(np.exp(-0.5 / 0.64), abs=1e-6)
    np.testing.assert_array_equal(blurred(point, 0.0), point)
