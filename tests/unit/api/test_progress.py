"""What people see while a run goes on."""

import io
import sys
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from grandrounds.api.progress import ProgressBars, progress_bars
from grandrounds.core.errors import BadSite
from grandrounds.core.events import (
    Event,
    Failed,
    GroupPolicy,
    PolicySet,
    RoundFinished,
    RoundLost,
    SiteExchanged,
    SiteMissed,
    SiteMonitored,
    SiteReady,
    SiteTested,
    SiteTrained,
    SiteTuned,
    SiteValidated,
    StoppedEarly,
)

MISSED = SiteMissed("birch", 2, "train", "OSError", "no [more] space.", "Free some", ("a.py:1 f",))


def shown(*events: Event, colour: bool = False) -> str:
    """All that a terminal is told."""
    file = io.StringIO()
    system = "truecolor" if colour else None
    with ProgressBars(
        Console(file=file, width=200, force_terminal=colour, color_system=system, markup=False)
    ) as bars:
        bars.add("arm", "FedAvg", 3)
        for event in events:
            bars.show("arm", event)
    return file.getvalue()


@pytest.mark.parametrize(
    ("event", "words"),
    [
        (SiteTrained(1, "alder", 0.1, 8, 2, 0, 0), "alder trained"),
        (SiteValidated(1, "alder", 0.1, 8, 20.0), "alder validated"),
        (SiteMonitored(1, "birch", "alder", 0.1, 8, 20.0), "alder scored after birch"),
        (SiteExchanged(1, "alder", "merge", 0.1, 0, 0), "alder: merge"),
        (SiteTuned(1, "alder", 0.1, 4, "ab"), "alder fine-tuned"),
        (SiteTested(1, "alder", 0.1, 8), "alder tested"),
        (StoppedEarly(3, 1), "stopped early; best round 1"),
        (Failed("alder", 1, "train", "OSError", "x", ""), "stopped"),
        (RoundFinished(1, "ab", 0.87654, 1, 0.1), "score 0.8765"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else "",
)
def test_a_bar_says_what_happened_last(event: Event, words: str):
    assert words in shown(event)


@pytest.mark.parametrize(("simulated", "times"), [(False, 1), (True, 0)])
def test_what_is_odd_at_a_site_with_files_is_told_once(simulated: bool, times: int):
    event = SiteReady("alder", ("T1w->T2w",), {}, {}, {}, {}, simulated, ("2 of 7 [lack] a mask",))
    told = shown(event, event)
    assert told.count("site 'alder': 2 of 7 [lack] a mask\n") == times


def test_what_becomes_of_every_parameter_group_is_told():
    groups = (
        GroupPolicy("encoder", "private", 9, 1),
        GroupPolicy("bottleneck_late", "shared", 6, 1),
        GroupPolicy("running statistics", "reset", 2, 1),
        GroupPolicy("decoder", "shared", 8, 1),
    )
    said = shown(PolicySet(groups, "reset", 0))
    assert "private: encoder; shared: bottleneck late, decoder; reset: running statistics" in said


def test_a_score_stays_while_a_round_is_not_validated():
    said = shown(RoundFinished(1, "a", 21.5, 1, 0.1), RoundFinished(2, "b", None, 1, 0.1))
    assert "2/3 rounds" in said
    assert "score 21.5" in said


def test_a_missed_site_is_told_with_its_cards_sentence():
    said = shown(MISSED)
    assert (
        "went on without an answer: site 'birch' failed in round 2 (train): "
        "OSError: no [more] space. Free some"
    ) in said
    assert "a.py" not in said


def test_a_missed_site_is_told_in_yellow():
    assert "\x1b[33mwent on without an answer" in shown(MISSED, colour=True)


def terminal() -> tuple[io.StringIO, Console]:
    file = io.StringIO()
    return file, Console(file=file, width=100, force_terminal=True)


def test_a_refusal_has_no_empty_bar_above_it():
    file, console = terminal()
    bars = ProgressBars(console)
    bars.add("arm", "FedAvg", 3)
    with pytest.raises(BadSite), bars:
        raise BadSite("no")
    assert file.getvalue() == ""


def test_patients_are_prepared_with_a_bar_before_that_of_the_run():
    file, console = terminal()
    with ProgressBars(console) as bars:
        bars.add("arm", "FedAvg", 3)
        for done in range(4):
            bars.prepare("alder", done, 3)
        before = file.getvalue()
        bars.show("arm", RoundFinished(1, "ab", 0.5, 1, 0.1))
    assert "preparing patients of alder" in before
    assert "0/3" in before
    assert "patients" in before
    assert "FedAvg" not in before
    assert "FedAvg" in file.getvalue()


def test_into_a_pipe_each_hospital_is_named_once():
    file = io.StringIO()
    with ProgressBars(Console(file=file, width=100)) as bars:
        for done in range(3):
            bars.prepare("alder", done, 2)
    assert file.getvalue() == "preparing patients of alder\n"


def test_a_bar_is_whole_at_80_columns():
    file = io.StringIO()
    with ProgressBars(Console(file=file, width=80)) as bars:
        bars.add("arm", "Local only (personalised network)", 40)
        bars.show("arm", RoundFinished(14, "ab", 21.82, 1, 0.1))
        bars.show("arm", SiteTrained(15, "elder", 0.1, 8, 2, 0, 0))
    said = file.getvalue()
    assert "\u2026" not in said
    assert "14/40 rounds" in said
    assert "elder trained" in said


def finished(bars: ProgressBars) -> None:
    with bars:
        bars.note("odd")
        bars.prepare("alder", 0, 2)
        bars.add("arm", "FedAvg", 3)
        bars.show("arm", RoundFinished(3, "ab", 0.5, 3, 0.1))
        bars.show("arm", RoundLost("coordinator", 3, "its file is damaged"))


def test_without_bars_nothing_is_printed_nor_warned_of(capfd: pytest.CaptureFixture[str]):
    finished(progress_bars(False))
    assert capfd.readouterr() == ("", "")


def test_bars_are_printed_on_stderr(capfd: pytest.CaptureFixture[str]):
    finished(progress_bars(True))
    out, err = capfd.readouterr()
    assert out == ""
    for words in ("note: odd", "preparing patients of alder", "3/3 rounds", "is damaged"):
        assert words in err


def test_a_console_of_ones_own_is_printed_on():
    file = io.StringIO()
    finished(progress_bars(Console(file=file, width=100)))
    assert "3/3 rounds" in file.getvalue()


class Cell:
    """What a notebook's cell shows: outputs, one of which may be drawn anew."""

    def __init__(self) -> None:
        self.outputs = list[dict[str, str]]()
        self.drawn = 0

    def display(self, shown: Any, *, raw: bool = False, display_id: bool = False) -> "Output":
        self.outputs.append(shown if raw else shown._repr_mimebundle_([], []))
        return Output(self, len(self.outputs) - 1)


@dataclass(frozen=True)
class Output:
    cell: Cell
    place: int

    def update(self, shown: dict[str, str], *, raw: bool) -> None:
        self.cell.outputs[self.place] = shown
        self.cell.drawn += 1


@pytest.fixture
def cell(monkeypatch: pytest.MonkeyPatch) -> Cell:
    """A cell of a notebook in which this process seems to run."""
    cell = Cell()
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    monkeypatch.setitem(sys.modules, "IPython", ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=cell.display))  # pyright: ignore[reportArgumentType]
    return cell


def test_a_notebook_has_one_output_of_bars_without_widgets_and_control_codes(
    cell: Cell, capfd: pytest.CaptureFixture[str]
):
    finished(progress_bars(True))
    [bars] = [each for each in cell.outputs if "FedAvg" in each["text/plain"]]
    assert "3/3 rounds" in bars["text/plain"]
    assert bars["text/html"].startswith("<pre")
    assert not any("\x1b" in text for text in bars.values())
    others = [each["text/plain"] for each in cell.outputs if each is not bars]
    assert len(others) == 2
    assert "odd" in others[0]
    assert "is damaged" in others[1]
    assert capfd.readouterr() == ("", "")


def test_bars_of_a_notebook_are_drawn_a_few_times_a_second(cell: Cell):
    with progress_bars(True) as bars:
        bars.add("arm", "FedAvg", 1000)
        for round in range(1, 1001):
            bars.show("arm", RoundFinished(round, "ab", 0.5, 3, 0.1))
    assert "1000/1000 rounds" in cell.outputs[0]["text/plain"]
    assert 0 < cell.drawn < 100


def test_a_notebook_is_left_empty_above_a_refusal_after_patients_were_prepared(cell: Cell):
    with progress_bars(True) as bars:
        bars.prepare("alder", 0, 2)
        assert "preparing patients of alder" in cell.outputs[0]["text/plain"]
    assert cell.outputs == [{"text/plain": ""}]


def test_without_bars_a_notebook_shows_nothing(cell: Cell):
    finished(progress_bars(False))
    assert cell.outputs == []
