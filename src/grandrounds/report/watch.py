"""Watching a folder while its study runs: what a reader sees now, made anew when files change."""

import time
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from threading import Condition
from typing import NoReturn, TypeAlias

from grandrounds.errors import BadFolder
from grandrounds.events import Failed, Interrupted, RunFinished, StoppedEarly
from grandrounds.report.facts import Facts, read_facts
from grandrounds.report.html import render
from grandrounds.report.run import Ending, Run

JOURNALS = ("journal.jsonl", "arms/*/seed-*/journal.jsonl")
WATCHED = (*JOURNALS, "arms.toml", "scores.csv", "arms/*/seed-*/scores.csv")
PAUSE = 1.0  # seconds between two looks, at least
SHARE = 4  # a pause is so many times as long as the look before it: training needs the cores
PATIENCE = 3  # looks in a row that may find a file half written

Stamp: TypeAlias = tuple[tuple[str, int, int], ...]  # path, bytes, nanoseconds of the last write
NOTICE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title} · Grand Rounds report</title><link rel="icon" href="data:,">
<style>body {{ font: 16px/1.55 sans-serif; margin: 0; }} main {{ padding: 32px; }}
p {{ overflow-wrap: anywhere; }}</style></head>
<body><main><h1>{title}</h1><p>{sentence}</p></main></body></html>"""


@dataclass(frozen=True)
class Sight:
    """What a reader sees at one moment: the page, and in a few words how far the study is."""

    page: str
    progress: str
    number: int = 0


def notice(title: str, sentence: str) -> Sight:
    """Say why there is no report."""
    page = NOTICE.format(title=escape(title), sentence=escape(sentence))
    return Sight(page, title.lower())


def waiting(folder: Path) -> Sight:
    """Say that nothing has started."""
    return notice(
        "Not started yet",
        f"No run has begun in {folder}. This page fills itself as soon as one does.",
    )


@dataclass
class Board:
    """Holds the newest sight, for any number of readers who wait for the next."""

    sight: Sight
    _changed: Condition = field(default_factory=Condition, init=False)

    def show(self, sight: Sight) -> None:
        """Put up a new sight, and wake who waits."""
        with self._changed:
            self.sight = Sight(sight.page, sight.progress, self.sight.number + 1)
            self._changed.notify_all()

    def after(self, number: int, *, seconds: float) -> Sight | None:
        """Wait for a newer sight than this number; nothing where none came in time."""
        with self._changed:
            newer = self._changed.wait_for(lambda: self.sight.number > number, timeout=seconds)
            return self.sight if newer else None


@dataclass
class Watch:
    """Puts a folder's report on a board, anew whenever its files change."""

    folder: Path
    board: Board
    _shown: Stamp | None = field(default=None, init=False)
    _failures: int = field(default=0, init=False)

    def keep(self) -> NoReturn:
        """Look again and again."""
        while True:
            began = time.monotonic()
            self.look()
            time.sleep(max(PAUSE, SHARE * (time.monotonic() - began)))

    def look(self) -> None:
        """Show what changed; a folder that cannot be read is shown as such at the third look."""
        stamp = stamp_of(self.folder)
        if stamp == self._shown:
            return
        try:
            sight = sight_of(self.folder)
        except (BadFolder, EOFError) as error:  # EOFError: pictures of which no byte is written
            self._failures += 1
            if self._failures < PATIENCE:
                return
            sight = notice("The report cannot be made", str(error))
        self._shown, self._failures = stamp, 0
        self.board.show(sight)


def stamp_of(folder: Path) -> Stamp:
    """Tell the state of the files that a report is made of, by their sizes and times."""
    paths = sorted(path for pattern in WATCHED for path in folder.glob(pattern))
    return tuple((str(path), (s := path.stat()).st_size, s.st_mtime_ns) for path in paths)


def sight_of(folder: Path) -> Sight:
    """Make the report of a folder as it is now. Raises `BadFolder`."""
    if not any(path for pattern in JOURNALS for path in folder.glob(pattern)):
        return waiting(folder)
    facts = read_facts(folder)
    return Sight(render(facts), progress(facts))


def progress(facts: Facts) -> str:
    """Say in a few words how far a run is, or a comparison."""
    runs = [run for arm in facts.arms for run in arm.runs]
    to_come = sum(len(arm.waiting) for arm in facts.arms) + len(facts.waiting) * len(facts.seeds)
    if len(runs) + to_come == 1:
        return _progress(runs[0])
    finished = sum(isinstance(run.ending, RunFinished) for run in runs)
    rounds = sum(len(run.rounds) for run in runs)
    return f"{finished} of {len(runs) + to_come} runs finished, {rounds} rounds so far"


def _progress(run: Run) -> str:
    return f"round {len(run.rounds)} of {run.started.rounds}{_ended(run.ending)}"


def _ended(ending: Ending | None) -> str:
    match ending:
        case RunFinished():
            return ", finished"
        case StoppedEarly():
            return ", stopped early"
        case Interrupted():
            return ", interrupted"
        case Failed():
            return ", failed"
        case None:
            return ""
