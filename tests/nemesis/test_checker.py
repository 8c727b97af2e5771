"""The checker can fail: each fault that is planted in a run that went well is found."""

import csv
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import pytest

from grandrounds.core.events import Event, RoundFinished, RunFinished, SiteMissed, SiteTrained
from grandrounds.core.journal import Journal, read_journal
from grandrounds.core.run_folder import RunFolder
from grandrounds.core.state import saved_rounds
from tests.helpers.damage import flip
from tests.nemesis.checker import verdict
from tests.nemesis.faults import SERVER, Schedule, Trouble
from tests.nemesis.nemesis import Nemesis
from tests.nemesis.story import KILLED, Attempt, Story

pytestmark = pytest.mark.slow

Change: TypeAlias = Callable[[Story], Story]
TWICE = Schedule(0, "remote", "fedavg", (Trouble("birch", "ask", 2, "twice"),))


@pytest.fixture(scope="module")
def nemesis(tmp_path_factory: pytest.TempPathFactory) -> Nemesis:
    return Nemesis(tmp_path_factory.mktemp("nemesis"))


@pytest.fixture(scope="module")
def well(nemesis: Nemesis) -> Story:
    """A run between processes in which one letter came twice."""
    story, problems = nemesis.judge(TWICE)
    assert problems == []
    assert [attempt.code for attempt in story.attempts] == [0]
    return story


def copied(story: Story, folder: Path) -> Story:
    """The same story in another folder, to be changed."""
    folders = {party: folder / party / "run" for party in story.folders}
    for party, path in story.folders.items():
        shutil.copytree(path, folders[party])
    return replace(story, folders=folders)


def journal(change: Callable[[list[Event]], Sequence[Event]]) -> Change:
    """Change what the journal tells."""

    def act(story: Story) -> Story:
        events = [event for _, event in read_journal(story.run.journal)]
        story.run.journal.unlink()
        for event in change(events):
            Journal(story.run.journal)(event)
        return story

    return act


def log(change: Callable[[list[dict[str, object]]], Sequence[dict[str, object]]]) -> Change:
    """Change what birch's own log tells."""

    def act(story: Story) -> Story:
        path = RunFolder(story.folders["birch"]).site("birch").ledger
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps(line) + "\n" for line in change(lines)))
        return story

    return act


def attempts(*made: Attempt) -> Change:
    """Let other attempts come before the last."""
    logs = dict.fromkeys(("alder", "birch", "cedar"), 0)
    before = [replace(each, logs=logs) for each in made]
    return lambda story: replace(story, attempts=(*before, *story.attempts))


def finished(event: Event, number: int) -> bool:
    return isinstance(event, RoundFinished) and event.round == number


def trained(event: Event, number: int, site: str) -> bool:
    return isinstance(event, SiteTrained) and (event.round, event.site) == (number, site)


def without(events: list[Event], number: int, site: str) -> list[Event]:
    return [event for event in events if not trained(event, number, site)]


def absent(number: int, site: str) -> SiteMissed:
    return SiteMissed(site, number, "train", "SiteSilent", "gone", "")


def twice(events: list[Event], number: int) -> list[Event]:
    return [each for e in events for each in ([e, e] if finished(e, number) else [e])]


def with_other_digest(story: Story) -> Story:
    """A digest is wrong in the journal and in the table that is made of it."""
    other = journal(
        lambda events: [
            replace(e, digest="00" * 32) if isinstance(e, RoundFinished) and e.round == 2 else e
            for e in events
        ]
    )(story)
    table(story, lambda row: row | {"digest": "00" * 32} if row["round"] == "2" else row)
    return other


def table(story: Story, change: Callable[[dict[str, str]], dict[str, str] | None]) -> Story:
    """Change the rows of digests.csv."""
    with story.run.digests.open(newline="") as file:
        rows = [row for row in map(change, csv.DictReader(file)) if row]
    with story.run.digests.open("w", newline="") as file:
        writer = csv.DictWriter(file, list[str](("round", "digest")))
        writer.writeheader()
        writer.writerows(rows)
    return story


def is_train(line: dict[str, object], number: int) -> bool:
    return (line["asked"], line.get("round")) == ("train", number)


def state_flipped(party: str) -> Change:
    def act(story: Story) -> Story:
        run = RunFolder(story.folders[party])
        store = saved_rounds(run.path if party == SERVER else run.site(party).path)
        flip(store.path(3))
        return story

    return act


def counted(change: Callable[[dict[str, object]], Sequence[dict[str, object]]]) -> Change:
    """Change what the server counted of birch in round 2."""

    def act(story: Story) -> Story:
        lines = list[dict[str, object]]()
        for line in map(dict, story.counted):
            here = (line.get("asked"), line.get("round"), line.get("site"))
            lines += change(line) if here == ("train", 2, "birch") else [line]
        return replace(story, counted=lines)

    return act


def log_broken(story: Story) -> Story:
    path = RunFolder(story.folders["birch"]).site("birch").ledger
    path.write_text("{" + path.read_text())
    return story


FAULTS: dict[str, tuple[Change, str]] = {
    "a round twice": (
        journal(lambda events: twice(events, 2)),
        "round 2 was accepted twice",
    ),
    "a round that is skipped": (
        journal(lambda events: [e for e in events if not finished(e, 2)]),
        "round 3 was accepted after round 1",
    ),
    "an update that is lost": (
        journal(lambda events: without(events, 2, "birch")),
        "round 2: ['alder', 'cedar'] trained, [] were missed",
    ),
    "an update that counts twice": (
        journal(lambda events: [*(e for e in events if trained(e, 2, "birch")), *events]),
        "round 2: 'birch' is counted 2 times",
    ),
    "a site that is told as absent": (
        journal(lambda events: [*events, absent(2, "birch")]),
        "rounds.csv and the journal differ in who took part: [(2, 'birch')]",
    ),
    "fewer sites than the study asks for": (
        journal(lambda events: [*without(events, 2, "birch"), absent(2, "birch")]),
        "round 2 was accepted with 2 of 3 sites",
    ),
    "a participant that did nothing": (
        log(lambda lines: [line for line in lines if not is_train(line, 2)]),
        "round 2: 'birch' is counted, and its log has no update of it",
    ),
    "a site that trained twice": (
        log(lambda lines: [*lines, *(line for line in lines if is_train(line, 2))]),
        "round 2: 'birch' trained 2 times for one round",
    ),
    "other bits than left the site": (
        log(lambda lines: [x | {"digest": "ab"} if is_train(x, 2) else x for x in lines]),
        "round 2: the server counted other bits of 'birch' than left it",
    ),
    "an update that the server never took": (
        counted(lambda line: []),
        "round 2: 'birch' is told as counted, and the server took no update of it",
    ),
    "an update that the server took twice": (
        counted(lambda line: [line, line]),
        "round 2: the server counted 2 updates of 'birch'",
    ),
    "a wrong digest": (with_other_digest, "digests differ from the quiet run's from round 2 on"),
    "a digest that is missing": (
        lambda story: table(story, lambda row: None if row["round"] == "1" else row),
        "digests.csv has rounds ['2', '3']",
    ),
    "a damaged log": (
        log_broken,
        "ledger.jsonl: line 1 is damaged",
    ),
    "a damaged state of the server": (state_flipped(SERVER), "is not what was saved"),
    "a damaged state of a site": (
        state_flipped("birch"),
        "site 'birch' holds a damaged state of round 3",
    ),
    "an end that the journal does not tell": (
        journal(lambda events: [e for e in events if not isinstance(e, RunFinished)]),
        "it ended well, and the journal does not say so",
    ),
    "an end that no run has": (attempts(Attempt(70, "Traceback")), "ended with code 70"),
    "a traceback": (attempts(Attempt(1, "Traceback (most")), "attempt 1 shows a traceback"),
    "a failure without a word": (attempts(Attempt(2, " ")), "attempt 1 failed without a word"),
    "a failure that the journal does not tell": (
        attempts(Attempt(1, "site 'birch' failed in round 2 (train): OSError: no")),
        "1 attempts failed, and the journal tells of 0",
    ),
    "a refusal that deletes": (
        attempts(Attempt(2, "no", lost=("state/round-000001.safetensors",))),
        "attempt 1 was refused, and changed state/round-000001.safetensors",
    ),
    "a schedule that did not happen": (
        lambda story: replace(story, struck=()),
        "nothing of the schedule happened",
    ),
    "a run that cannot be finished": (
        lambda story: replace(story, attempts=(Attempt(KILLED, "killed"),)),
        "it cannot be finished: killed",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(fault: str, nemesis: Nemesis, well: Story, tmp_path: Path):
    plant, words = FAULTS[fault]
    problems = verdict(plant(copied(well, tmp_path)), nemesis.quiet)
    assert any(words in problem for problem in problems), problems


def test_what_is_not_changed_is_right(nemesis: Nemesis, well: Story, tmp_path: Path):
    assert verdict(copied(well, tmp_path), nemesis.quiet) == []
