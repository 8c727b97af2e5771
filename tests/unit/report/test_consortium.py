"""Sites' statistics side by side: the table, the score by its formula, and what would help."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from grandrounds.core.site_statistics import QuantileBin, SiteStatistics, statistics_from
from grandrounds.report.analysis.consortium import (
    QUANTITY_NAMES,
    Consortium,
    distribution_rows,
    in_range,
    unmet_rows,
)
from grandrounds.report.page.consortium import intensity_charts, render_consortium, write_consortium

BINS = 20


def histogram(*peak: int) -> tuple[float, ...]:
    """Equal shares in these bins."""
    return tuple(1 / len(peak) if place in peak else 0.0 for place in range(BINS))


def told(site: str, peak: tuple[int, ...], *, echo: float = 80.0) -> SiteStatistics:
    """What a site tells of two contrasts, the second of which too few people have."""
    none = {"T1w": None, "FLAIR": None}
    times = (QuantileBin(0.05, echo, echo + 20), QuantileBin(0.95, echo + 20, echo + 40))
    return SiteStatistics(
        site=site,
        floor=5,
        simulated=False,
        counts={"patients": 20, "T1w": 20, "FLAIR": None, "T1w->FLAIR": None},
        unmet={"spacing_through": {"T1w": None, "FLAIR": None}},
        quantiles={name: dict(none) for name in QUANTITY_NAMES}
        | {"echo_time": {**none, "T1w": times}},
        kinds={
            "sequence": {**none, "T1w": ("spin-echo",)},
            **{name: dict(none) for name in ("dimensions", "contrast_agent", "orientation")},
        },
        histograms={**none, "T1w": histogram(*peak)},
    )


def three(**changed: SiteStatistics) -> Consortium:
    """Three sites, of which some may be others than usual."""
    sites = {name: told(name, (3, 4)) for name in ("alder", "birch", "cedar")} | changed
    return Consortium("brains", "ab" * 32, 5, tuple(sites.values()))


def test_counts_stand_side_by_side_and_add_up():
    found = three(birch=replace(told("birch", (3, 4)), counts={"patients": 10, "T1w": 10}))
    assert found.row("T1w") == (20, 10, 20)
    assert found.total("T1w") == 50
    assert found.row("FLAIR") == (None, None, None)
    assert not found.asks(found.sites[1], "FLAIR")
    assert found.told_groups() == ("patients", "T1w", "FLAIR", "T1w->FLAIR")


def test_sites_that_are_alike_and_meet_everything_have_the_highest_score():
    assert [score.score for score in three().scores] == pytest.approx([100, 100, 100])
    assert three().help == ()


def test_the_score_is_the_mean_of_overlap_and_elements_met():
    odd = replace(told("cedar", (4, 5)), unmet={"spacing_through": {"T1w": 15, "FLAIR": None}})
    alder, _, cedar = three(cedar=odd).scores
    assert cedar.alike == pytest.approx(0.5)
    assert cedar.met == pytest.approx(0.5)
    assert cedar.score == pytest.approx(50)
    assert alder.alike == pytest.approx(0.75)  # half of the others' mean is its own


def test_a_site_that_is_alone_or_tells_nothing_has_no_overlap():
    alone = Consortium("brains", "ab" * 32, 5, (told("alder", (3,)),))
    assert alone.scores[0].alike is None
    silent = replace(told("birch", (3,)), histograms={"T1w": None, "FLAIR": None}, unmet={})
    assert three(birch=silent).scores[1].score is None


def test_a_minimum_is_met_by_what_is_told_of_so_many():
    found = replace(three(), minimum={"patients": 22, "T1w->FLAIR": 5})
    assert found.scores[0].met == pytest.approx(3 / 4)  # 20 is what is told of 22
    sentences = [sentence for site, sentence in found.help if site == "alder"]
    assert sentences == [
        "T1w->FLAIR: fewer than 5 patients, and the study asks for 5; find more.",
    ]


def test_what_would_help_is_said_of_each_site():
    odd = replace(
        told("cedar", (12, 13), echo=10.0),
        unmet={"spacing_through": {"T1w": 15, "FLAIR": None}},
    )
    found = replace(three(cedar=odd), tasks={"cedar": ("T1w->FLAIR",)})
    sentences = [sentence for site, sentence in found.help if site == "cedar"]
    assert [sentence.split(";")[0] for sentence in sentences] == [
        "T1w: at least 15 patients have a distance of slices outside of the study's",
        "T1w->FLAIR: fewer than 5 patients, or none",
        "T1w: its intensities overlap with the others' by 0 %",
        "T1w: echo time 10 to 50 ms, unlike every other site's",
    ]


def test_ranges_are_told_in_words():
    ends = QuantileBin(0.05, 60, 70), QuantileBin(0.95, 80, 90)
    assert in_range(ends, "years") == "60 to 90 years"
    middle = QuantileBin(0.5, 70, 80)
    assert in_range((ends[0], middle, ends[1]), "") == "60 to 90, median 70 to 80"
    assert in_range((QuantileBin(0.05, 0, 1e-6), QuantileBin(0.95, 0, 1e-6)), "ml") == "0 ml"


def test_rows_have_a_text_for_each_site_that_tells_one():
    rows = {(row.label, row.group): row.texts for row in distribution_rows(three())}
    assert rows["Echo time", "T1w"] == ("80 to 120 ms",) * 3
    assert rows["Sequence", "T1w"] == ("spin-echo",) * 3
    assert ("Echo time", "FLAIR") not in rows
    [slices, _] = unmet_rows(three())
    assert slices.texts == ("", "", "")


def test_the_page_says_what_is_not_told_and_has_no_markup_of_a_site(tmp_path: Path):
    found = three()
    page = render_consortium(replace(found, name="<script>"))
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert page.count("fewer than 5") >= 6
    assert write_consortium(found, tmp_path / "page.html").read_text("utf-8").startswith("<!doc")
    assert write_consortium(found, tmp_path / "page.html").exists()


def test_a_chart_has_a_line_for_each_site_that_tells_its_intensities():
    silent = replace(told("birch", (3,)), histograms={"T1w": None, "FLAIR": None})
    [chart] = intensity_charts(three(birch=silent))
    assert chart.title == "T1w"
    assert len(chart.lines) == 2
    assert "Alder is highest at 0.17" in chart.description
    assert chart.lines[0].style != chart.lines[1].style


def test_statistics_come_back_from_json_as_they_were():
    site = told("alder", (3, 4))
    assert statistics_from(json.loads(json.dumps(asdict(site)))) == site
