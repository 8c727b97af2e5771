"""Where a run goes on: with what everyone holds intact, and never at the beginning unasked."""

from pathlib import Path

import pytest

from grandrounds.core.errors import BadFolder
from grandrounds.core.events import RoundFinished
from grandrounds.core.journal import Journal
from grandrounds.core.state import State, save_state, saved_rounds
from grandrounds.runs.resume import find_start
from tests.helpers.damage import flip

Sites = dict[str, tuple[int, ...]]


def saved(folder: Path, *rounds: int, **seen: int) -> None:
    journal = Journal(folder / "journal.jsonl")
    for round in range(1, max(rounds) + 1):
        journal(RoundFinished(round, "ab", None, 1, 1.0))
    for round in rounds:
        save_state(folder, State({}, round, seen=seen))


def cut(folder: Path, *lines: int) -> None:
    """Lose these lines of the journal."""
    path = folder / "journal.jsonl"
    text = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for number, line in enumerate(text, 1) if number not in lines))


def start_of(folder: Path, sites: Sites) -> int:
    return find_start(folder, sites, resumes=True).round


@pytest.mark.parametrize(
    ("sites", "newest"),
    [
        ({"a": (1, 2), "b": (1, 2)}, 2),
        ({"a": (1, 2), "b": (2, 3)}, 2),
        ({"a": (1,), "b": (1, 2)}, 1),
        ({}, 2),
    ],
    ids=["equal", "one ahead", "one behind", "no sites"],
)
def test_a_run_goes_on_from_the_newest_round_that_all_hold(
    tmp_path: Path, sites: Sites, newest: int
):
    saved(tmp_path, 1, 2)
    assert start_of(tmp_path, sites) == newest


def test_a_run_that_goes_back_says_why(tmp_path: Path):
    saved(tmp_path, 1, 2)
    start = find_start(tmp_path, {"a": (1,), "b": (1, 2)}, resumes=True)
    assert [(lost.site, lost.round, lost.message) for lost in start.lost] == [
        ("a", 2, "site 'a' has no intact state of round 2")
    ]


def test_a_damaged_round_of_the_coordinator_gives_way_to_the_one_before(tmp_path: Path):
    saved(tmp_path, 1, 2)
    flip(saved_rounds(tmp_path).path(2))
    start = find_start(tmp_path, {"a": (1, 2)}, resumes=True)
    assert (start.round, start.lost[0].site, start.lost[0].round) == (1, "coordinator", 2)


@pytest.mark.parametrize(
    ("sites", "words"),
    [
        ({"a": (1, 2), "b": ()}, "site 'b' has no intact state of round 2; "),
        ({"a": (3,), "b": (3,)}, "site 'a' has no intact state of round 2; site 'b' has no"),
    ],
    ids=["one empty", "coordinator behind"],
)
def test_where_no_round_is_held_by_all_nothing_begins_anew(
    tmp_path: Path, sites: Sites, words: str
):
    saved(tmp_path, 1, 2)
    with pytest.raises(BadFolder) as refused:
        start_of(tmp_path, sites)
    said = str(refused.value)
    assert said.startswith(
        f"{tmp_path}: the coordinator saved rounds 1, 2, but none is held by everyone: {words}"
    )
    assert said.endswith("or start anew with another --out; nothing was deleted.")
    assert saved_rounds(tmp_path).rounds() == (1, 2)


@pytest.mark.parametrize(("held", "newest"), [((1,), 3), ((1, 4), 3)])
def test_a_site_that_missed_a_round_needs_the_last_one_that_it_took_part_in(
    tmp_path: Path, held: tuple[int, ...], newest: int
):
    saved(tmp_path, 2, 3, b=1)
    assert start_of(tmp_path, {"a": (2, 3), "b": held}) == newest


@pytest.mark.parametrize("held", [(2, 3), ()])
def test_a_site_that_missed_rounds_and_lost_its_last_one_stops_the_run(
    tmp_path: Path, held: tuple[int, ...]
):
    saved(tmp_path, 2, 3, b=1)
    with pytest.raises(BadFolder, match="site 'b' has no intact state of round 1"):
        start_of(tmp_path, {"a": (2, 3), "b": held})


def test_a_site_that_never_took_part_needs_nothing(tmp_path: Path):
    saved(tmp_path, 2, b=0)
    assert start_of(tmp_path, {"a": (2,), "b": ()}) == 2


@pytest.mark.parametrize("held", [{"a": (1,), "b": (1,)}, {"a": (1, 2), "b": (1,)}, {"b": ()}])
def test_a_run_whose_only_finished_round_is_damaged_repeats_it_and_says_so(
    tmp_path: Path, held: Sites
):
    saved(tmp_path, 1)
    flip(saved_rounds(tmp_path).path(1))
    start = find_start(tmp_path, held, resumes=True)
    assert start.round == 0
    assert (start.lost[0].site, start.lost[0].round) == ("coordinator", 1)


def test_a_run_whose_only_saved_round_is_damaged_stops_where_a_site_holds_more(tmp_path: Path):
    saved(tmp_path, 1)
    flip(saved_rounds(tmp_path).path(1))
    with pytest.raises(BadFolder, match="nothing was deleted"):
        start_of(tmp_path, {"a": (2, 3), "b": (1,)})


def test_a_run_that_was_stopped_in_its_first_round_begins_anew(tmp_path: Path):
    assert start_of(tmp_path, {"a": (1,), "b": ()}) == 0


def test_a_coordinator_that_lost_its_rounds_stops_the_run(tmp_path: Path):
    with pytest.raises(BadFolder, match=r"holds no saved round, but site 'b' holds rounds 1, 2\."):
        start_of(tmp_path, {"a": (1,), "b": (1, 2)})


def test_a_round_whose_line_in_the_journal_is_lost_is_repeated(tmp_path: Path):
    saved(tmp_path, 1, 2)
    cut(tmp_path, 2)
    start = find_start(tmp_path, {"a": (1, 2)}, resumes=True)
    assert start.round == 1
    assert start.lost[0].message == (
        "journal.jsonl lacks the end of round 2, as if it had been cut"
    )


def test_a_journal_that_lacks_earlier_rounds_stops_the_run(tmp_path: Path):
    saved(tmp_path, 2, 3)
    cut(tmp_path, 1, 2)
    with pytest.raises(BadFolder, match=r"journal\.jsonl lacks the end of rounds 1, 2, as if"):
        start_of(tmp_path, {"a": (2, 3)})


def test_a_damaged_journal_stops_a_run_of_which_nothing_was_saved_before_it_trains(tmp_path: Path):
    """At the end, where the tables are made of it, all rounds would be trained in vain."""
    journal = tmp_path / "journal.jsonl"
    Journal(journal)(RoundFinished(1, "ab", None, 1, 1.0))
    flip(journal, at=40)
    with pytest.raises(BadFolder, match=r"journal\.jsonl: line 1 is no event"):
        start_of(tmp_path, {"a": (1,)})


def test_a_run_that_is_not_resumed_begins_at_the_beginning(tmp_path: Path):
    assert find_start(tmp_path, {"a": (1, 2)}, resumes=False).round == 0
