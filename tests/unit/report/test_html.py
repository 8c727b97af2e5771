import re
import shutil
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest

from grandrounds.core.errors import DiskFailed
from grandrounds.core.journal import Journal
from grandrounds.report.page.html import write_report
from tests.helpers.cycles import cycle
from tests.helpers.run_folders import (
    ARMS,
    FEDAVG,
    PFLSYNTH,
    real,
    run_folder,
    write_comparison,
    write_run,
)

VOID = {"meta", "link", "img", "br", "line", "rect", "path", "polyline", "polygon"}
MANY = pytest.param("many", marks=pytest.mark.slow)
HEADINGS = ("h1", "h2", "h3", "h4", "h5")


class Page(HTMLParser):
    """Collects elements, and refuses tags that do not close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.stack: list[str] = []
        self.feed(text)
        assert self.stack == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_report(write_comparison(tmp_path_factory.mktemp("comparison"))).read_text()


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    return Page(text)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Give the page of 22 arms with two seeds, one arm of which has not started."""
    folder = tmp_path_factory.mktemp("many")
    more = [replace(FEDAVG, name=f"m{n}", title=f"Method {n}", method="fedprox") for n in range(18)]
    arms = [replace(plan, pictured=(0, 1, 2)) for plan in (*ARMS, *more)]
    write_comparison(folder, arms, seeds=(7, 8))
    shutil.rmtree(folder / "arms" / "m17")
    for event in cycle(10):
        for name in ("fedavg", "m1", "m2"):
            Journal(run_folder(folder, name) / "journal.jsonl").append(event)
    return write_report(folder).read_text()


def report_of(folder: Path) -> str:
    return write_report(folder).read_text()


def test_nothing_on_the_page_is_loaded_from_anywhere(text: str, page: Page):
    links = [value for _, a in page.elements for k, value in a.items() if k in ("src", "href")]
    assert links
    assert all(link and link.startswith(("data:", "#")) for link in links)
    assert not re.search(r"url\(|@import|https?://", text)
    assert page.all("script") == []
    assert "default-src 'none'" in str(page.all("meta"))


def test_every_picture_has_its_own_words(page: Page):
    words = [image["alt"] for image in page.all("img")]
    assert len(words) == 4 * 2 * (2 + 4 * 2)  # sites, tasks, source and target, arms
    assert all(words)
    assert len(set(words)) == len(words)


def test_every_chart_has_a_description(page: Page):
    charts = [svg for svg in page.all("svg") if svg.get("role") == "img"]
    assert len(charts) == 5
    assert all("Validation score per round" in str(svg["aria-label"]) for svg in charts)


@pytest.mark.parametrize("which", ["text", MANY])
def test_every_drawing_is_named_or_hidden(which: str, request: pytest.FixtureRequest):
    found = Page(request.getfixturevalue(which)).all("svg")
    named = [svg for svg in found if svg.get("role") == "img" and svg.get("aria-label")]
    nested = [svg for svg in found if "x" in svg]  # a mark within a hidden drawing
    assert named
    assert all(svg.get("aria-hidden") == "true" or svg in named + nested for svg in found)


@pytest.mark.parametrize("which", ["text", MANY])
def test_headings_go_down_one_step_at_a_time(which: str, request: pytest.FixtureRequest):
    page = Page(request.getfixturevalue(which))
    levels = [HEADINGS.index(tag) for tag, _ in page.elements if tag in HEADINGS]
    assert levels[0] == 0
    assert all(after <= before + 1 for before, after in pairwise(levels))


@pytest.mark.parametrize("which", ["text", MANY])
def test_every_table_has_a_caption(which: str, request: pytest.FixtureRequest):
    page = Page(request.getfixturevalue(which))
    assert len(page.all("caption")) == len(page.all("table")) > 0


def test_every_header_cell_says_what_it_heads(page: Page):
    assert all(cell.get("scope") for cell in page.all("th"))


@pytest.mark.parametrize("which", ["text", MANY])
def test_every_id_is_used_once_and_every_link_arrives(which: str, request: pytest.FixtureRequest):
    page = Page(request.getfixturevalue(which))
    ids = Counter(a["id"] for _, a in page.elements if "id" in a)
    assert set(ids.values()) == {1}
    arrivals = [str(a["href"])[1:] for a in page.all("a")]
    arrivals += [str(a["aria-labelledby"]) for _, a in page.elements if "aria-labelledby" in a]
    assert set(arrivals) <= set(ids)


@pytest.mark.parametrize("which", ["text", MANY])
def test_every_region_has_its_own_name(which: str, request: pytest.FixtureRequest):
    page = Page(request.getfixturevalue(which))
    names = [a["aria-label"] for _, a in page.elements if a.get("role") == "region"]
    assert names
    assert [name for name, times in Counter(names).items() if times > 1] == []


def test_the_page_has_landmarks_and_one_title(page: Page):
    tags = Counter(tag for tag, _ in page.elements)
    assert [tags[tag] for tag in ("header", "nav", "main", "footer", "h1")] == [1] * 5


def test_what_a_table_hides_at_the_side_can_be_reached_by_keyboard(page: Page):
    regions = [div for div in page.all("div") if div.get("class") == "scroll"]
    assert all(div.get("tabindex") == "0" and div.get("aria-label") for div in regions)


def test_one_block_of_pictures_is_open_and_all_other_details_are_folded(page: Page):
    found = page.all("details")
    assert sum("open" in details for details in found) == 1
    pictures, scores, work, record = 8, 4, 4, 4
    reading, curves, views = 1, 1, 1
    assert len(found) == pictures + scores + work + record + reading + curves + views


def test_there_is_one_legend_for_all_pictures(text: str):
    assert text.count('<div class="bar"') == text.count("One scale for the whole report") == 1
    assert text.count("chosen by rule, not by eye") == 1


def test_the_mean_comes_first(text: str):
    [first, *_] = re.findall(r"<dt>(.*?)</dt>", text)
    assert first == "PSNR, pFLSynth"
    [heads] = re.findall(r"<thead>(.*?)</thead>", text[text.index('id="results"') :])[:1]
    assert re.findall(r">([^<]+)</th>", heads)[:2] == ["Arm", "Mean"]


@pytest.mark.slow
def test_with_one_patient_a_hospital_nothing_is_said_of_intervals_and_tests(tmp_path: Path):
    arms = [replace(plan, patients=1, pictured=(0,)) for plan in ARMS]
    text = report_of(write_comparison(tmp_path / "c", arms))
    shown = text.partition("</style>")[2]
    for absent in ("interval", "Wilcoxon", "Holm", ">too few<", "±", "not clear", "SD over"):
        assert absent not in shown, absent
    assert "that is too few for a statistical test" in text


def test_a_simulated_image_is_called_target(text: str):
    assert ">Target<" in text
    assert "eal image" not in text


def test_an_arm_has_one_colour_and_one_marker(text: str):
    looks = re.findall(r'<path [^>]*d="([^"]+)" fill="(#[^"]+)"', text)
    by_marker: dict[str, set[str]] = {}
    for marker, colour in looks:
        by_marker.setdefault(marker, set()).add(colour)
    assert len(by_marker) == 4
    assert all(len(colours - {"#fff"}) == 1 for colours in by_marker.values())


@pytest.mark.slow
def test_of_many_arms_the_others_are_folded(many: str):
    assert sum("open" in details for details in Page(many).all("details")) == 1
    assert "The other 18 arms, each beside pFLSynth" in many
    assert "What the 22 arms are" in many


@pytest.mark.slow
def test_an_arm_that_has_not_started_is_named_in_every_list(many: str):
    assert many.count("Method 17") == 3
    assert '<td class="left" colspan="8">has not started</td>' in many


@pytest.mark.slow
def test_all_arms_stand_in_the_tables_of_results(many: str):
    [results] = re.findall(r'<section id="results".*?</section>', many, re.DOTALL)
    for number in range(17):
        assert len(re.findall(rf"Method {number}</th>", results)) == 3
    assert "2 of 2" in results
    assert "corrected by Holm&#39;s rule over these 20 arms" in results or (
        "corrected by Holm's rule over these 20 arms" in results
    )


def test_what_an_arm_cost_is_told(text: str):
    plain = text.replace("\u00a0", " ")
    cells = ("545,569", "720", "720", "137.0 MB", "22.0 s", "76.0 s", "14.4 TFLOP")
    assert "".join(f"<td>{cell}</td>" for cell in cells) in plain
    assert "<td>nothing</td>" in plain


def test_the_terms_of_a_comparison_are_told(text: str):
    assert "<b>The terms.</b> Equal for all arms: data and seeds." in text


@pytest.mark.slow
def test_a_report_of_many_arms_stays_small(many: str):
    assert len(many) < 8e6


def test_the_page_says_it_all(text: str):
    for said in (
        "Simulated data.",
        "Birch would have been better off alone.",
        "1 dB more means",
        "Not a medical device",
        "9f2c9f2c",
        "10ab10ab",
        "batch_size = 4",
    ):
        assert said in text


def test_words_from_outside_cannot_become_markup(tmp_path: Path):
    plan = replace(PFLSYNTH, title="<script>alert(1)</script>", description="a <b>bold</b> claim")
    text = report_of(write_comparison(tmp_path / "c", [plan, FEDAVG]))
    assert "<script" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "a &lt;b&gt;bold&lt;/b&gt; claim" in text


def test_no_patient_is_named(tmp_path: Path):
    text = report_of(write_run(tmp_path / "run", real(PFLSYNTH)))
    assert "alder-3" not in text
    assert "Simulated data." not in text


def test_a_single_run_is_a_report_too(tmp_path: Path):
    text = report_of(write_run(tmp_path / "run", PFLSYNTH))
    assert Page(text).all("details")
    assert (
        "pflsynth reached 24.2\u00a0dB (PSNR, 95 % interval 23.92 to 24.54) on average over" in text
    )


@pytest.mark.parametrize("rounds", [0, 1, 4])
def test_an_unfinished_run_still_gives_a_report(tmp_path: Path, rounds: int):
    folder = write_run(tmp_path / "run", PFLSYNTH, until=rounds)
    text = report_of(folder)
    Page(text)
    assert f"{rounds} of 10 rounds done so far" in text
    assert "All arms at a glance" not in text
    assert "Hospital by hospital" not in text


def test_a_comparison_under_way_names_what_has_not_started(tmp_path: Path):
    folder = write_comparison(tmp_path / "c", ARMS[:2])
    (run_folder(folder, "pflsynth") / "journal.jsonl").unlink()
    assert "pFLSynth: Not started." in report_of(folder)


@pytest.mark.slow
def test_a_training_that_ended_while_scores_rose_is_told(tmp_path: Path):
    rising, over = (
        report_of(write_run(tmp_path / str(rounds), replace(PFLSYNTH, rounds=rounds)))
        for rounds in (9, 10)
    )
    assert "still rising when training ended" in rising
    assert "still rising" not in over


@pytest.mark.slow
def test_a_report_replaces_the_one_before_and_leaves_nothing_else(tmp_path: Path):
    folder = write_run(tmp_path / "run", PFLSYNTH)
    assert report_of(folder) == report_of(folder)
    assert [path.name for path in folder.glob("report*")] == ["report.html"]


def test_a_report_that_cannot_be_written_is_a_failed_disk(tmp_path: Path):
    folder = write_run(tmp_path / "run", PFLSYNTH)
    (folder / "report.html").mkdir()
    with pytest.raises(DiskFailed, match="the report cannot be written"):
        write_report(folder)
