"""Who pulls against whom: the angles of each round, the sentences, and the section of the page."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from grandrounds.core.events import UpdatesCompared
from grandrounds.core.journal import Journal
from grandrounds.report.analysis.cosines import ComparedUpdates, compared_updates, own_way
from grandrounds.report.analysis.facts import read_facts
from grandrounds.report.page.html import write_report
from grandrounds.report.page.style import pull
from grandrounds.report.prose.cosines import conflicts, cosine, direction
from tests.helpers.cosines import angles_of, compared
from tests.helpers.run_folders import FEDAVG, SITES, run_folder, write_comparison, write_run

NEAR_ZERO = {"mapper": 0.05, "decoder": -0.02, "all": 0.01}


def folder_with(folder: Path, *events: UpdatesCompared) -> Path:
    """A run that wrote these events down."""
    write_run(folder, FEDAVG)
    for event in events:
        Journal(folder / "journal.jsonl").append(event)
    return folder


def found_in(folder: Path) -> ComparedUpdates:
    [found] = compared_updates(read_facts(folder))
    return found


def test_a_run_that_compared_nothing_has_no_section(tmp_path: Path):
    page = write_report(write_run(tmp_path / "run", FEDAVG)).read_text("utf-8")
    assert "pulls" not in page
    assert compared_updates(read_facts(tmp_path / "run")) == []


def test_angles_are_means_over_the_seeds_that_have_the_round(tmp_path: Path):
    write_comparison(tmp_path, [FEDAVG], seeds=(7, 8))
    for seed, value in ((7, 0.25), (8, -0.75)):
        journal = Journal(run_folder(tmp_path, "fedavg", seed) / "journal.jsonl")
        journal.append(compared(4, mapper=value))
        if seed == 7:
            journal.append(compared(8, mapper=value))
    found = found_in(tmp_path)
    assert found.rounds == (4, 8)
    assert set(found.of(4, "mapper").values()) == {-0.25}
    assert set(found.of(8, "mapper").values()) == {0.25}
    assert found.between(4, "mapper", "birch", "alder") == -0.25


def test_the_group_of_everything_comes_last_and_is_no_part(tmp_path: Path):
    found = found_in(folder_with(tmp_path / "run", compared(10, all=0.5, mapper=0.25)))
    assert found.groups == ("mapper", "all")
    assert list(found.parts(10)) == ["mapper"]


def test_a_mean_of_four_updates_at_right_angles_keeps_a_quarter_and_of_equal_ones_all():
    assert own_way(angles_of(SITES, 0.0)) == 0.25
    assert own_way(angles_of(SITES, 1.0)) == 1.0
    assert own_way(angles_of(SITES[:2], -1.0)) == 0.0
    assert own_way(angles_of(SITES[:2], 0.5)) == 0.75


@pytest.mark.parametrize(
    ("whole", "stand", "kept"),
    [
        (0.02, "stand nearly at right angles (mean cosine +0.02 over 6 pairs)", "26"),
        (-0.09, "stand nearly at right angles (mean cosine \u22120.09 over 6 pairs)", "18"),
        (0.4, "partly agree (mean cosine +0.40 over 6 pairs)", "55"),
        (-0.2, "pull against each other (mean cosine \u22120.20 over 6 pairs)", "10"),
    ],
)
def test_a_sentence_says_how_updates_stand_and_what_a_mean_keeps(
    tmp_path: Path, whole: float, stand: str, kept: str
):
    found = found_in(folder_with(tmp_path / "run", compared(10, all=whole, mapper=0.0)))
    assert direction(found) == (
        f"In round 10 the hospitals' updates {stand}: a plain mean of 4 such updates of one length "
        f"keeps {kept}\u00a0% of each hospital's own way. At right angles it would keep 25\u00a0%; "
        "all of it if all moved alike."
    )


def test_a_sentence_counts_what_is_near_zero_positive_and_negative_and_names_the_ends(
    tmp_path: Path,
):
    event = UpdatesCompared(
        10,
        {
            "mapper": {"alder": {"birch": 0.3, "cedar": 0.05}, "birch": {"cedar": -0.02}},
            "bottleneck_late": {"alder": {"birch": -0.15}},
            "all": {"alder": {"birch": -0.9}},
        },
    )
    assert conflicts(found_in(folder_with(tmp_path / "run", event))) == (
        "The round has 4 cosines by part and pair: 2 within 0.1 of zero, 1 positive, 1 negative. "
        "The lowest is \u22120.15 (bottleneck late, Alder and Birch), the highest +0.30 "
        "(mapper, Alder and Birch)."
    )


def test_it_is_said_where_nobody_pulls_against_anybody(tmp_path: Path):
    found = found_in(folder_with(tmp_path / "run", compared(10, **NEAR_ZERO)))
    said = "12 within 0.1 of zero, 0 positive, 0 negative. No hospital pulls against another."
    assert said in conflicts(found)


def test_a_cosine_has_its_sign_and_zero_has_none():
    assert [cosine(value) for value in (0.123, -0.5, -0.001, 1.0)] == [
        *("+0.12", "\u22120.50", "0.00", "+1.00")
    ]


def test_a_right_angle_is_white_agreement_blue_conflict_orange():
    assert pull(0.0) == "#ffffff"
    assert pull(0.5) == pull(1.0) == "#96c6db"
    assert pull(-0.5) == pull(-1.0) == "#f4aa70"
    assert pull(-0.25) == "#fad4b8"


def cells_of(page: str, caption: str) -> Sequence[str]:
    """The cells of the last table with this caption, as a reader sees them."""
    table = page.split(f"<caption><b>{caption}</b>")[-1].partition("</table>")[0]
    cells = re.findall(r"<td[^>]*>(.*?)</td>", table)
    return [re.sub(r"<span class=.hidden.>.*?</span>|<[^>]+>", "", cell) for cell in cells]


def test_the_page_has_a_map_of_each_part_whose_absent_site_is_a_gap(tmp_path: Path):
    rows: Mapping[str, Mapping[str, float]] = {
        "alder": {"birch": 0.25, "dogwood": -0.5},
        "birch": {"dogwood": 0.0},
    }
    folder = folder_with(tmp_path / "run", UpdatesCompared(10, {"decoder": rows}))
    page = write_report(folder).read_text("utf-8")
    assert cells_of(page, "Decoder") == [
        *("", "+0.25", "\u2013", "\u22120.50"),
        *("+0.25", "", "\u2013", "0.00"),
        *("\u2013", "\u2013", "", "\u2013"),
        *("\u22120.50", "0.00", "\u2013", ""),
    ]
    assert '<a href="#pulls">' in page


def test_the_page_shows_six_rounds_at_most_the_last_one_open(tmp_path: Path):
    events = [compared(number, **NEAR_ZERO) for number in range(1, 11)]
    page = write_report(folder_with(tmp_path / "run", *events)).read_text("utf-8")
    section = page.partition('<section id="pulls"')[2].partition("</section>")[0]
    assert re.findall(r'<th scope="col">Round (\d+)</th>', section) == ["2", "4", "6", "8", "10"]
    assert "Pair by pair, round 10" in section
    assert re.findall(r"<h4>Round (\d+)</h4>", section) == ["2", "4", "6", "8"]
