"""The curves of the page: which arms, over which seeds, and where they lie."""

from dataclasses import replace
from pathlib import Path

import pytest

from grandrounds.report.analysis.facts import read_facts
from grandrounds.report.page import charts
from tests.helpers.run_folders import ARMS, FEDAVG, PFLSYNTH, write_comparison, write_run

MORE = [replace(FEDAVG, name=f"m{n}", title=f"Method {n}", method="fedprox") for n in range(4)]


def test_there_is_a_chart_for_all_hospitals_and_one_for_each(tmp_path: Path):
    found = charts.charts(read_facts(write_comparison(tmp_path / "c")))
    names = ["All hospitals, weighted", "alder", "birch", "cedar", "dogwood"]
    assert [chart.title for chart in found] == names
    assert [len(chart.lines) for chart in found] == [4] * 5
    assert "pFLSynth from 20.2 to 25.1" in found[1].description


def test_curves_and_bands_stay_inside_the_chart(tmp_path: Path):
    folder = write_comparison(tmp_path / "c", [replace(PFLSYNTH, drift=1.0)], seeds=(7, 8))
    for chart in charts.charts(read_facts(folder)):
        [line] = chart.lines
        places = [place.split(",") for place in f"{line.points} {line.band}".split()]
        assert len(places) == 10 + 2 * 10
        assert all(charts.LEFT <= float(x) <= charts.RIGHT for x, _ in places)
        assert all(charts.TOP <= float(y) <= charts.BOTTOM for _, y in places)


def test_no_curve_no_chart(tmp_path: Path):
    plan = replace(PFLSYNTH, rounds=0)
    assert charts.charts(read_facts(write_run(tmp_path / "run", plan))) == []


def test_a_curve_over_seeds_is_their_mean_with_their_range():
    found = charts.over_seeds([((1, 10.0), (2, 20.0)), ((1, 14.0), (2, 21.0), (3, 30.0))])
    assert found == ((1, 12.0, 10.0, 14.0), (2, 20.5, 20.0, 21.0))


def test_a_seed_without_any_round_is_not_waited_for():
    assert charts.over_seeds([(), ((1, 5.0),)]) == ((1, 5.0, 5.0, 5.0),)
    assert charts.over_seeds([(), ()]) == ()


def test_one_seed_has_no_band(tmp_path: Path):
    [first, *_] = charts.charts(read_facts(write_run(tmp_path / "run", PFLSYNTH)))
    assert first.lines[0].band == ""


def test_of_many_arms_five_are_drawn_together_and_each_other_one_apart(tmp_path: Path):
    central = replace(FEDAVG, name="central", title="Pooled", method="central")
    best = replace(MORE[0], levels=dict.fromkeys(FEDAVG.levels, 24.0))
    arms = [*ARMS, best, *MORE[1:], central]
    facts = read_facts(write_comparison(tmp_path / "c", arms))
    names = [arm.name for arm in facts.notable]
    assert names == ["pflsynth", "fedavg", "local-plain", "m0", "central"]
    assert {len(chart.lines) for chart in charts.charts(facts)} == {5}
    folded = charts.folded_charts(facts)
    assert [chart.title for chart in folded] == [arm.title for arm in facts.others]
    assert all(len(chart.lines) == 2 for chart in folded)


def test_axes_have_names_and_units(tmp_path: Path):
    [chart, *_] = charts.charts(read_facts(write_run(tmp_path / "run", PFLSYNTH)))
    assert (chart.across, chart.up) == ("round", "validation PSNR, dB")


def test_ticks_and_markers_stand_where_validation_was(tmp_path: Path):
    [chart, *_] = charts.charts(read_facts(write_run(tmp_path / "run", PFLSYNTH)))
    assert [text for _, text in chart.x_ticks] == ["2", "4", "6", "8", "10"]
    [line] = chart.lines
    assert len(line.marks) == 10
    assert line.marks[-1][0] == charts.RIGHT


@pytest.mark.parametrize(
    ("rounds", "found"),
    [([], ()), ([5], (5,)), ([5, 10, 15], (5, 10, 15)), (list(range(1, 14)), (1, 4, 7, 10, 13))],
)
def test_rounds_are_thinned_evenly_and_keep_the_last(rounds: list[int], found: tuple[int, ...]):
    assert charts.thinned(rounds, 6) == found
