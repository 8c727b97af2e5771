"""Progress bars on stderr show how far runs are; events update them."""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import fields
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column

from grandrounds.core.errors import FailureCard, Stopped
from grandrounds.core.events import (
    Event,
    Failed,
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
)

VERBS: dict[type, str] = {
    SiteTrained: "trained",
    SiteValidated: "validated",
    SiteTuned: "fine-tuned",
    SiteTested: "tested",
}
_AT_ONCE = 6  # with more runs than these, only those that run are shown


@contextmanager
def resumable_interrupt(how: str) -> Generator[None, None, None]:
    """Turn Ctrl-C into a sentence that says how to go on. Raises `Stopped`."""
    try:
        yield
    except KeyboardInterrupt:
        raise Stopped(
            f"stopped; every finished round is saved. Give the same command again {how} to go on."
        ) from None


def warn(sentence: str) -> None:
    """Print a warning on stderr, even with --quiet."""
    Console(stderr=True).print(f"warning: {sentence}", style="yellow", markup=False, soft_wrap=True)


class ProgressBars:
    """One bar for each run: rounds done, time left, what runs, and the score so far.

    With more than a few `runs`, those that run are shown, below a bar for all of them. Nothing is
    shown before something happens, so that no empty bar stands above a refusal.
    """

    def __init__(self, console: Console, *, runs: int = 1) -> None:
        self._progress = Progress(
            TextColumn("[bold]{task.description}", table_column=Column(overflow="fold")),
            BarColumn(bar_width=10),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}"),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            TextColumn("{task.fields[score]}"),
            TextColumn("[dim]{task.fields[doing]}"),
            console=console,
        )
        self._rows: dict[str, TaskID] = {}
        self._preparing: dict[str, TaskID] = {}
        self._scores: dict[str, str] = {}
        self._done: dict[str, int] = {}
        self._noted: set[tuple[str, str]] = set()
        self._finished = self._left = 0
        self._all = self._row_of_all(runs) if runs > _AT_ONCE else None

    def _row_of_all(self, runs: int) -> TaskID:
        return self._progress.add_task(
            f"all {runs} runs", total=0, unit="rounds", score="", doing=""
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._progress.live.is_started:
            return
        for row in self._preparing.values():
            self._progress.update(row, visible=False)
        shown = any(task.visible for task in self._progress.tasks)
        self._progress.live.transient = not shown
        (self._progress if shown else self._progress.live).stop()  # the former adds a line

    def prepare(self, site: str, done: int, total: int) -> None:
        """Show how many of a site's patients are prepared; where nobody looks, only say so."""
        if site not in self._preparing:
            title = f"preparing patients of {site}"
            if not self._progress.console.is_terminal:
                self._progress.console.print(title, markup=False, highlight=False)
            self._preparing[site] = self._progress.add_task(
                escape(title), total=total, unit="patients", score="", doing=""
            )
        self._progress.update(self._preparing[site], completed=done, visible=done < total)
        self._progress.start()

    def add(self, arm: str, title: str, rounds: int, *, done: bool = False) -> None:
        """Add an arm's bar before it starts, or as done already."""
        doing = "done before" if done else "waiting"
        self._scores[arm], self._done[arm] = "", 0
        self._rows[arm] = self._progress.add_task(
            title,
            unit="rounds",
            total=rounds,
            completed=rounds if done else 0,
            start=False,
            visible=False,
            score="",
            doing=doing,
        )
        if done:
            self._finished += 1
        elif self._all is not None:
            self._left += rounds
            self._progress.update(self._all, total=self._left)
        self._count(arm, 0)

    def show(self, arm: str, event: Event) -> None:
        """Update an arm's bar by an event."""
        row = self._rows[arm]
        self._reveal()
        match event:
            case RunStarted():
                self._progress.start_task(row)
                self._progress.update(row, visible=True)
            case RunResumed():
                self._progress.update(row, completed=event.round, doing=f"from round {event.round}")
                self._count(arm, event.round)
            case PolicySet() | SiteMissed() | SiteJoined() | RoundLost():
                self._say(arm, event)
            case SiteReady():
                self._note(event)
            case RoundFinished():
                if event.score is not None:
                    self._scores[arm] = f"score {event.score:.4g}"
                self._progress.update(row, completed=event.round, score=self._scores[arm])
                self._count(arm, event.round)
            case RunFinished():
                self._progress.update(row, doing="done", visible=self._all is None)
                self._progress.stop_task(row)
                self._finished += 1
                self._count(arm, int(self._progress.tasks[row].total or 0))
            case _:
                self._progress.update(row, doing=_doing(event))

    def _reveal(self) -> None:
        """Show the bars of all runs, if they are few, as soon as one of them begins."""
        if self._progress.live.is_started and not self._preparing:
            return
        for row in self._preparing.values():
            self._progress.remove_task(row)
        self._preparing.clear()
        for row in self._rows.values() if self._all is None else ():
            self._progress.update(row, visible=True)
        self._progress.start()

    def _say(self, arm: str, event: PolicySet | SiteMissed | SiteJoined | RoundLost) -> None:
        """Print what is more than progress; that a round was lost is said even with --quiet."""
        match event:
            case PolicySet():
                said = f"{arm}: {policy_line(event)}"
                self._progress.console.print(said, markup=False, soft_wrap=True)
            case SiteMissed():
                self._progress.console.print(missed(event), style="yellow", markup=False)
            case SiteJoined():
                words = f"{event.site} joins in round {event.round}"
                self._progress.console.print(words, markup=False)
            case RoundLost():
                warn(f"{arm}: {lost(event)}")

    def _note(self, event: SiteReady) -> None:
        """Print once what is missing or odd at a site with data of its own."""
        for note in () if event.simulated else event.notes:
            if (event.site, note) not in self._noted:
                self._noted.add((event.site, note))
                words = f"site '{event.site}': {note}"
                self._progress.console.print(words, style="yellow", markup=False, soft_wrap=True)

    def _count(self, arm: str, round: int) -> None:
        """Advance the bar of all runs by the rounds that a run has done since."""
        if self._all is None:
            return
        self._progress.advance(self._all, round - self._done[arm])
        self._done[arm] = round
        self._progress.update(self._all, doing=f"{self._finished} done")


def _doing(event: Event) -> str:
    match event:
        case SiteTrained() | SiteValidated() | SiteTuned() | SiteTested():
            return f"{event.site} {VERBS[type(event)]}"
        case SiteMonitored():
            return f"{event.site} scored after {event.after}"
        case SiteExchanged():
            return f"{event.site}: {event.stage}"
        case StoppedEarly():
            return f"stopped early; best round {event.best_round}"
        case Failed() | Interrupted():
            return "stopped"
        case _:
            return "starting"


def policy_line(event: PolicySet) -> str:
    """Write in one line which parameter groups are shared, private or reset."""
    groups: dict[str, list[str]] = {}
    for group in event.groups:
        groups.setdefault(group.policy, []).append(group.group)
    line = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in groups.items())
    return line.replace("_", " ")


def lost(event: RoundLost) -> str:
    """Write in one sentence which saved round is lost, and what follows."""
    return f"round {event.round} is repeated: {event.message}"


def missed(event: SiteMissed) -> str:
    """Write in one sentence which site did not answer, and why."""
    card = FailureCard(**{field.name: getattr(event, field.name) for field in fields(FailureCard)})
    return f"went on without an answer: {card}"
