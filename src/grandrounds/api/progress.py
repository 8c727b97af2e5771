"""Progress bars on stderr or in a notebook show how far runs are; events update them.

What is printed is printed as it is: rich reads brackets as markup and `:a:` as an emoji; a path or
a name that is data may hold both.
"""

from dataclasses import fields
from types import TracebackType
from typing import IO, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column

from grandrounds.api.notebook import NotebookProgress
from grandrounds.core.errors import FailureCard
from grandrounds.core.events import (
    BudgetReached,
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
    UpdatesJudged,
)

VERBS: dict[type, str] = {
    SiteTrained: "trained",
    SiteValidated: "validated",
    SiteTuned: "fine-tuned",
    SiteTested: "tested",
}
_AT_ONCE = 6  # with more runs than these, only those that run are shown


def plain_console(
    *,
    stderr: bool = False,
    quiet: bool = False,
    file: IO[str] | None = None,
    width: int | None = None,
) -> Console:
    """Return a console that prints data as it is: no markup, no emoji, no colours of its own."""
    return Console(
        stderr=stderr,
        quiet=quiet,
        file=file,
        width=width,
        markup=False,
        emoji=False,
        highlight=False,
    )


def warn(sentence: str) -> None:
    """Print a warning on stderr, even with --quiet."""
    plain_console(stderr=True).print(f"warning: {sentence}", style="yellow", soft_wrap=True)


def _column(text: str, *, style: str = "none", fold: bool = False) -> TextColumn:
    """Return a column whose text is data, and so no markup."""
    return TextColumn(
        text,
        style=style,
        markup=False,
        table_column=Column(overflow="fold") if fold else None,
    )


class ProgressBars:
    """One bar for each run: rounds done, time left, what runs, and the score so far.

    With more than a few `runs`, those that run are shown, below a bar for all of them. Nothing is
    shown before something happens, so that no empty bar stands above a refusal. A `silent` one
    shows nothing at all, and warns of nothing.
    """

    def __init__(self, console: Console, *, runs: int = 1, silent: bool = False) -> None:
        kind = NotebookProgress if console.is_jupyter else Progress
        self._progress = kind(
            _column("{task.description}", style="bold", fold=True),
            BarColumn(bar_width=10),
            MofNCompleteColumn(),
            _column("{task.fields[unit]}"),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            _column("{task.fields[score]}"),
            _column("{task.fields[doing]}", style="dim"),
            console=console,
            disable=silent,
        )
        self._silent = silent
        self._long = not console.is_jupyter  # lines that a terminal folds by itself
        self._rows: dict[str, TaskID] = {}
        self._rounds: dict[str, int] = {}
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

    def note(self, sentence: str) -> None:
        """Print what is allowed but may surprise."""
        self._progress.console.print(f"note: {sentence}", style="yellow", soft_wrap=self._long)

    def say(self, sentence: str) -> None:
        """Print a sentence."""
        self._progress.console.print(sentence, markup=False, highlight=False, soft_wrap=self._long)

    def prepare(self, site: str, done: int, total: int) -> None:
        """Show how many of a site's patients are prepared; where nobody looks, only say so."""
        if site not in self._preparing:
            title = f"preparing patients of {site}"
            if not (console := self._progress.console).is_terminal and not console.is_jupyter:
                console.print(title)
            self._preparing[site] = self._progress.add_task(
                title, total=total, unit="patients", score="", doing=""
            )
        self._progress.update(self._preparing[site], completed=done, visible=done < total)
        self._progress.start()

    def add(self, arm: str, title: str, rounds: int, *, done: bool = False) -> None:
        """Add an arm's bar before it starts, or as done already."""
        doing = "done before" if done else "waiting"
        self._scores[arm], self._done[arm], self._rounds[arm] = "", 0, rounds
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
            case PolicySet() | SiteMissed() | SiteJoined() | RoundLost() | UpdatesJudged():
                self._tell(arm, event)
            case SiteReady():
                self._remark(event)
            case RoundFinished():
                if event.score is not None:
                    self._scores[arm] = f"score {event.score:.4g}"
                self._progress.update(row, completed=event.round, score=self._scores[arm])
                self._count(arm, event.round)
            case RunFinished():
                self._progress.update(row, doing="done", visible=self._all is None)
                self._progress.stop_task(row)
                self._finished += 1
                self._count(arm, self._rounds[arm])
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

    def _tell(
        self, arm: str, event: PolicySet | SiteMissed | SiteJoined | RoundLost | UpdatesJudged
    ) -> None:
        """Print what is more than progress; that a round was lost is said even with --quiet."""
        match event:
            case PolicySet():
                said = f"{arm}: {policy_line(event)}"
                self._progress.console.print(said, soft_wrap=self._long)
            case SiteMissed():
                self._progress.console.print(missed(event), style="yellow")
            case SiteJoined():
                words = f"{event.site} joins in round {event.round}"
                self._progress.console.print(words)
            case UpdatesJudged():
                for site, why in event.unusual.items():
                    words = f"{site} in round {event.round}: {why}"
                    self._progress.console.print(words, style="yellow", soft_wrap=self._long)
            case RoundLost() if not self._silent:
                warn(f"{arm}: {lost(event)}")
            case _:
                pass

    def _remark(self, event: SiteReady) -> None:
        """Print once what is missing or odd at a site with data of its own."""
        for note in () if event.simulated else event.notes:
            if (event.site, note) not in self._noted:
                self._noted.add((event.site, note))
                words = f"site '{event.site}': {note}"
                self._progress.console.print(words, style="yellow", soft_wrap=self._long)

    def _count(self, arm: str, round: int) -> None:
        """Advance the bar of all runs by the rounds that a run has done since."""
        if self._all is None:
            return
        self._progress.advance(self._all, round - self._done[arm])
        self._done[arm] = round
        self._progress.update(self._all, doing=f"{self._finished} done")


def progress_bars(progress: bool | Console, *, runs: int = 1) -> ProgressBars:
    """Return the bars that a caller asked for: none, of a terminal or notebook, or on a console."""
    if isinstance(progress, Console):
        return ProgressBars(progress, runs=runs)
    console = plain_console(stderr=True, quiet=not progress)
    return ProgressBars(console, runs=runs, silent=not progress)


def _doing(event: Event) -> str:
    match event:
        case SiteTrained() | SiteValidated() | SiteTuned() | SiteTested():
            return f"{event.site} {VERBS[type(event)]}"
        case SiteMonitored():
            return f"{event.site} scored after {event.after}"
        case SiteExchanged():
            return f"{event.site}: {event.stage}"
        case StoppedEarly() | BudgetReached():
            return _ended_early(event)
        case Failed() | Interrupted():
            return "stopped"
        case _:
            return "starting"


def _ended_early(event: StoppedEarly | BudgetReached) -> str:
    if isinstance(event, BudgetReached):
        return f"stopped; the privacy budget of {event.site} is reached"
    return f"stopped early; best round {event.best_round}"


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
