import json
import os
from itertools import product
from pathlib import Path

import pytest

from grandrounds.core.errors import BadFolder, DiskFailed
from grandrounds.core.events import (
    EVENT_KINDS,
    BudgetReached,
    Event,
    Failed,
    GroupPolicy,
    Interrupted,
    PolicySet,
    RoundFinished,
    RoundLost,
    RunFinished,
    RunResumed,
    RunStarted,
    SiteExchanged,
    SiteJoined,
    SiteMissed,
    SiteMonitored,
    SiteReady,
    SiteTested,
    SiteTrained,
    SiteTuned,
    SiteValidated,
    StoppedEarly,
    TopologySet,
    UpdatesCompared,
    UpdatesJudged,
    WorkSet,
)
from grandrounds.core.journal import Journal, finished_rounds, read_journal, without_superseded

COUNTS = {"train": 2, "test": 8}
EVENTS: list[Event] = [
    RunStarted("s", "a", 7, 3, ("x", "y"), "ab", "0.1.0", "2.8.0", "cpu", "fp32", 1),
    RunResumed(0, ("site 'x' has other data",)),
    SiteReady("x", ("t",), COUNTS, COUNTS, COUNTS, {"t": COUNTS}, True, ("thin",)),
    PolicySet((GroupPolicy("mapper", "shared", 2, 10),), "shared", 80),
    TopologySet("star", 160, "the slowest site's time", {"server": "updates"}),
    SiteTrained(1, "x", 0.5, 16, 4, 40, 40, {"generator": 0.25}),
    SiteExchanged(1, "x", "merge", 0.2, 80, 0),
    SiteMissed("y", 1, "train", "OSError", "gone", "", ("site.py:1 begin",)),
    SiteValidated(1, "x", 0.1, 3, 20.5),
    SiteMonitored(1, "y", "x", 0.1, 3, 19.5, 40),
    RoundFinished(1, "cd", None, 1, 0.7),
    StoppedEarly(1, 1),
    BudgetReached("x", 1),
    Interrupted(1),
    Failed("x", 2, "train", "ValueError", "naïve\u2028message", "look again", ("a.py:3 f",)),
    WorkSet(112_366, 139_557_504),
    SiteTuned(1, "x", 0.4, 4, "ef", {"generator": 0.2}),
    SiteTested(1, "x", 0.2, 8, {"psnr": 21.0}),
    RunFinished(1, 1, "cd", 2.0, 1000),
    RoundLost("x", 2, "damaged"),
    SiteJoined("y", 2),
    UpdatesJudged(2, {"x": 1.5, "y": 9.0}, {"y": "its update is long"}, ("y",)),
    UpdatesCompared(1, {"mapper": {"x": {"y": -0.25, "z": 0.5}}, "all": {}}),
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.jsonl"


def events(path: Path) -> list[Event]:
    return [event for _, event in read_journal(path)]


def test_every_kind_of_event_comes_back_equal_and_in_order(path: Path):
    journal = Journal(path)
    for event in EVENTS:
        journal(event)
    assert events(path) == EVENTS
    assert {type(event).__name__ for event in EVENTS} == set(EVENT_KINDS)


def test_times_never_run_backwards(path: Path):
    for event in EVENTS[:4]:
        Journal(path).append(event)
    times = [moment for moment, _ in read_journal(path)]
    assert times == sorted(times)


def test_any_changed_bit_of_any_line_is_noticed(path: Path):
    """Where it would be another number, too; that the line ends is a bit as any other."""
    Journal(path).append(EVENTS[5])
    Journal(path).append(EVENTS[10])
    content = path.read_bytes()
    for place in range(len(content) - 1):
        changed = bytearray(content)
        changed[place] ^= 1 << place % 8
        path.write_bytes(changed)
        with pytest.raises(BadFolder, match=r"journal\.jsonl: line \d is no event"):
            read_journal(path)


def test_a_damaged_line_after_one_with_a_sum_is_said_to_be_damaged(path: Path):
    """Not to be of another version, whichever bit it is: also in the name of the sum."""
    Journal(path).append(EVENTS[5])
    first = path.stat().st_size
    Journal(path).append(EVENTS[10])
    content = path.read_bytes()
    for place, bit in product(range(first, len(content) - 1), range(8)):
        changed = bytearray(content)
        changed[place] ^= 1 << bit
        path.write_bytes(changed)
        with pytest.raises(BadFolder, match=r"line \d is .* \(ValueError: its sum differs"):
            read_journal(path)


def test_lines_of_an_older_version_have_no_sums_and_the_run_goes_on_with_sums(path: Path):
    Journal(path).append(EVENTS[10])
    record = json.loads(path.read_bytes())
    del record["sum"]
    path.write_text(json.dumps(record) + "\n")
    Journal(path).append(EVENTS[5])
    assert events(path) == [EVENTS[10], EVENTS[5]]


def test_a_line_of_an_older_version_has_no_sum_and_is_read(path: Path):
    Journal(path).append(EVENTS[10])
    record = json.loads(path.read_bytes())
    del record["sum"]
    path.write_text(json.dumps(record) + "\n")
    assert events(path) == [EVENTS[10]]


def test_an_unfinished_last_line_is_not_read(path: Path):
    Journal(path).append(EVENTS[0])
    with path.open("a") as file:
        file.write('{"event": "SiteTr')
    assert events(path) == EVENTS[:1]


def test_an_unfinished_last_line_is_cut_before_the_next_event(path: Path):
    Journal(path).append(EVENTS[0])
    with path.open("a") as file:
        file.write('{"event": "SiteTr')
    Journal(path).append(EVENTS[4])
    assert events(path) == [EVENTS[0], EVENTS[4]]


def test_a_journal_of_half_a_line_starts_afresh(path: Path):
    path.write_text('{"event"')
    assert events(path) == []
    Journal(path).append(EVENTS[0])
    assert events(path) == EVENTS[:1]


@pytest.mark.parametrize(
    "line",
    ["nonsense", '{"event": "Party", "time": 1}', '{"event": "RunResumed", "time": 1}', "[1]"],
)
def test_a_damaged_line_is_named(path: Path, line: str):
    Journal(path).append(EVENTS[0])
    with path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(BadFolder, match=r"journal\.jsonl: line 2 is no event"):
        read_journal(path)


def test_a_missing_journal_is_a_bad_folder(path: Path):
    with pytest.raises(BadFolder, match="no journal here"):
        read_journal(path)


def test_a_journal_that_cannot_be_written_is_a_failed_disk(tmp_path: Path):
    with pytest.raises(DiskFailed, match="cannot be written"):
        Journal(tmp_path / "absent" / "journal.jsonl").append(EVENTS[0])


def test_a_resume_voids_the_rounds_after_it_and_nothing_else():
    before = [EVENTS[0], *(RoundFinished(r, str(r), None, r, 1.0) for r in (1, 2, 3))]
    after = [RunResumed(1), RoundFinished(2, "again", None, 2, 1.0)]
    kept = without_superseded([(0.0, event) for event in [*before, *after]])
    assert [event for _, event in kept] == [*before[:2], *after]


def test_what_came_after_a_resume_survives_an_earlier_round():
    run = [RunResumed(1), RoundFinished(2, "b", None, 2, 1.0), RunResumed(2)]
    assert [event for _, event in without_superseded([(0.0, event) for event in run])] == run


def test_the_end_of_a_round_is_flushed_to_the_disk(path: Path, monkeypatch: pytest.MonkeyPatch):
    sizes = list[int]()
    monkeypatch.setattr("os.fsync", lambda file: sizes.append(os.fstat(file).st_size))
    for event in (EVENTS[0], RoundFinished(1, "ab", None, 1, 1.0), Interrupted(1)):
        Journal(path).append(event)
    lines = path.read_bytes().splitlines(keepends=True)
    assert sizes == [len(lines[0]) + len(lines[1])]


def test_finished_rounds_are_those_that_no_resume_superseded(path: Path):
    for event in (*(RoundFinished(r, "a", None, 1, 1.0) for r in (1, 2, 3)), RunResumed(2)):
        Journal(path).append(event)
    assert finished_rounds(path) == {1, 2}
