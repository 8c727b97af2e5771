import base64
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from grandrounds.report import figures
from grandrounds.report.facts import read_facts
from grandrounds.report.folder import Panel
from tests.unit.report_folder import ARMS, PFLSYNTH, write_comparison, write_run


def opened(uri: str) -> Image.Image:
    kind, _, data = uri.partition(",")
    assert kind == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


def panel(error: float) -> Panel:
    target = np.full((2, 3), 0.5, np.float32)
    return Panel("s", "t", "p", target, target, target + np.float32(error))


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


def test_there_is_a_chart_for_all_hospitals_and_one_for_each(tmp_path: Path):
    charts = figures.charts(read_facts(write_comparison(tmp_path / "c")))
    names = ["All hospitals, weighted", "alder", "birch", "cedar", "dogwood"]
    assert [chart.title for chart in charts] == names
    assert [len(chart.lines) for chart in charts] == [4] * 5
    assert "pFLSynth from 20.2 to 25.1" in charts[1].description


def test_curves_stay_inside_the_chart(tmp_path: Path):
    for chart in figures.charts(read_facts(write_run(tmp_path / "run", PFLSYNTH))):
        places = [place.split(",") for place in chart.lines[0].points.split()]
        assert len(places) == 10
        assert all(figures.LEFT <= float(x) <= figures.RIGHT for x, _ in places)
        assert all(figures.TOP <= float(y) <= figures.BOTTOM for _, y in places)


def test_no_curve_no_chart(tmp_path: Path):
    plan = replace(PFLSYNTH, rounds=0)
    assert figures.charts(read_facts(write_run(tmp_path / "run", plan))) == []


def test_arms_differ_in_colour_dash_and_marker():
    looks = [figures.style(number) for number in range(5)]
    for part in ("colour", "dash", "marker"):
        assert len({getattr(look, part) for look in looks}) == 5


def test_arms_with_the_same_patient_share_a_row_and_others_do_not(tmp_path: Path):
    folder = write_comparison(tmp_path / "c", ARMS[:3])
    path = folder / "arms" / "fedavg" / "sites" / "alder" / "panels.npz"
    arrays = dict(np.load(path))
    arrays["0/patient"] = np.array("alder-5")
    np.savez(path, **arrays)  # pyright: ignore[reportArgumentType]
    facts = read_facts(folder)
    rows = figures.panel_rows(facts, "alder", task="T1w->T2w", limit=0.2)
    titles = [[view.arm.entry.name for view in row.shown] for row in rows]
    assert titles == [["pflsynth", "local"], ["fedavg"]]
    assert len(figures.panel_rows(facts, "birch", task="T1w->T2w", limit=0.2)) == 1
