import base64
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from grandrounds.report.analysis.facts import read_facts
from grandrounds.report.analysis.folder import StoredPanel
from grandrounds.report.page import style as figures
from tests.helpers.run_folders import PFLSYNTH, write_comparison


def opened(uri: str) -> Image.Image:
    kind, _, data = uri.partition(",")
    assert kind == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


def panel(error: float) -> StoredPanel:
    target = np.full((2, 3), 0.5, np.float32)
    return StoredPanel("s", "t", "p", target, target, target + np.float32(error))


def test_a_grey_picture_keeps_every_pixel():
    image = np.array([[0.0, 1.0, 0.2], [0.4, 2.0, -1.0]], np.float32)
    assert np.asarray(opened(figures.grey(image))).tolist() == [[0, 255, 51], [102, 255, 0]]


@pytest.mark.parametrize(("error", "colour"), [(0.0, (255, 255, 255)), (-0.3, (84, 12, 36))])
def test_an_error_map_runs_from_white_to_the_darkest_colour(
    error: float, colour: tuple[int, int, int]
):
    drawn = opened(figures.error_map(panel(error), 0.2)).convert("RGB")
    assert drawn.size == (3, 2)
    assert drawn.getpixel((0, 0)) == colour


def test_what_is_only_right_or_wrong_has_no_shades():
    slightly, badly = (figures.error_map(panel(e), 1.0, graded=False) for e in (0.3, 0.9))
    assert slightly == badly != figures.error_map(panel(0.0), 1.0, graded=False)


def test_a_tint_runs_from_white_to_a_blue():
    assert [figures.tint(share) for share in (0.0, 0.5, 1.0)] == ["#ffffff", "#cae2ed", "#96c6db"]


def test_error_colours_grow_darker_all_the_way():
    luminance = [0.2126 * r + 0.7152 * g + 0.0722 * b for r, g, b in figures.RAMP]
    assert luminance == sorted(luminance, reverse=True)


@pytest.mark.parametrize(
    ("errors", "limit"), [([0.02], 0.1), ([0.02, 0.25], 0.3), ([3.0], 1.0), ([], 0.1)]
)
def test_one_round_limit_holds_all_errors(errors: list[float], limit: float):
    assert figures.error_limit(panel(error) for error in errors) == limit


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ([17.2, 25.5], (16.0, 18.0, 20.0, 22.0, 24.0, 26.0)),
        ([0.0, 1.0], (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)),
        ([3.0], (3.0, 3.001)),
    ],
)
def test_an_axis_has_round_ticks_that_hold_all_values(
    values: list[float], ticks: tuple[float, ...]
):
    found = figures.axis(values)
    assert found.ticks == ticks
    assert all(0 <= found.share(value) <= 1 for value in values)


def test_an_axis_of_rounds_has_whole_ticks():
    assert figures.axis([0, 1], smallest_step=1).ticks == (0.0, 1.0)


def test_arms_differ_in_colour_dash_and_marker():
    looks = [figures.style(number) for number in range(5)]
    for part in ("colour", "dash", "marker"):
        assert len({getattr(look, part) for look in looks}) == 5


def test_labels_are_legible_on_white():
    for colour in figures.COLOURS:
        parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        light = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        luminance = 0.2126 * light[0] + 0.7152 * light[1] + 0.0722 * light[2]
        assert 1.05 / (luminance + 0.05) >= 4.5


def test_a_large_picture_is_thinned_to_what_a_page_has_room_for():
    large = np.zeros((512, 384), np.float32)
    large[0, 0] = 1.0
    drawn = np.asarray(opened(figures.grey(large)))
    assert drawn.shape == (171, 128)
    assert drawn[0, 0] == 255


@pytest.mark.slow
def test_thirty_arms_look_different(tmp_path: Path):
    arms = [replace(PFLSYNTH, name=f"a{number}", sites=("alder",)) for number in range(30)]
    looks = figures.styles(read_facts(write_comparison(tmp_path / "c", arms)))
    assert len({(look.colour, look.dash, look.marker) for look in looks.values()}) == 30
