"""A run goes on from the newest round that everyone holds intact, and says what was lost."""

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch

from grandrounds import __version__
from grandrounds.core.errors import BadFolder
from grandrounds.core.events import RoundLost
from grandrounds.core.journal import finished_rounds
from grandrounds.core.ledger import COORDINATOR
from grandrounds.core.run_folder import RunFolder
from grandrounds.core.sentence import phrase
from grandrounds.core.state import State, load_state, saved_rounds, versions_of
from grandrounds.runs.joining import with_awaited
from grandrounds.study.study import Study

VERSIONS: Mapping[str, str] = {"grandrounds": __version__, "torch": str(torch.__version__)}
Holdings: TypeAlias = Mapping[str, tuple[int, ...]]  # site -> the rounds that it holds intact


@dataclass(frozen=True)
class Start:
    """Where a run begins or goes on: a saved state, or None before the first round.

    `lost` says which newer rounds were saved, and why they cannot be used.
    """

    state: State | None = None
    lost: tuple[RoundLost, ...] = ()

    @property
    def round(self) -> int:
        return self.state.round if self.state else 0


def find_start(
    folder: Path, sites: Holdings, *, resumes: bool, study: Study | None = None
) -> Start:
    """Return the newest round that the coordinator and all its sites hold intact.

    A site that missed a round counts with the last one it took part in, one that the `study` lets
    join later with none, and the journal must tell of every round so far, as the tables are made of
    it. A run whose only finished round cannot be used repeats that. Raises `BadFolder` where more
    rounds were saved and none is held by everyone: no run begins anew in the midst of another.
    """
    if not resumes:
        return Start()
    saved, lost = saved_rounds(folder).rounds(), list[RoundLost]()
    journal = RunFolder(folder).journal  # a damaged one stops the run now, not at its end
    told = finished_rounds(journal) if saved or journal.exists() else set[int]()
    for round in reversed(saved):
        state, problems = _examined(folder, round, sites, study)
        problems += _untold(round, told)
        if state and not problems:
            return Start(state, tuple(lost))
        lost += problems
    if not _lost_one_round_at_most(saved, sites):
        _check_nothing_saved(folder, saved, sites, lost)
    return Start(None, tuple(lost))


def changes_since(folder: Path, start: Start, changed: Sequence[str]) -> tuple[str, ...]:
    """Return in words what is not as it was when a run was stopped.

    `changed` are the sites with other data. Runs of versions that noted nothing have no changes.
    """
    if not start.state:
        return ()
    then = versions_of(folder, start.round)
    others = [name for name, version in then.items() if VERSIONS.get(name) != version]
    words = [
        f"its round {start.round} was computed by {name} {then[name]}, and here is "
        f"{name} {VERSIONS.get(name, 'not known')}"
        for name in others
    ]
    words += [f"site '{site}' has other data than it trained on before" for site in changed]
    return tuple(words)


def check_same(folder: Path, changes: Sequence[str]) -> None:
    """Refuse to mix what was computed before a change and after it. Raises `BadFolder`."""
    if changes:
        raise BadFolder(
            f"{folder}: {'; '.join(changes)}. Resume with what was there before, or go on "
            "nevertheless with --accept-changes; the numbers are then not those of one run.",
            safe=phrase("versions or data are not those that its run began with"),
        )


def _examined(
    folder: Path, round: int, sites: Holdings, study: Study | None
) -> tuple[State | None, list[RoundLost]]:
    try:
        state = load_state(folder, round)
    except BadFolder as damage:
        return None, [RoundLost(COORDINATOR, round, str(damage))]
    state = with_awaited(state, study) if study else state
    return state, list(_lacking(state, sites))


def _lacking(state: State, sites: Holdings) -> Iterator[RoundLost]:
    for site, held in sites.items():
        last = state.last_of(site)
        if last and last not in held:
            message = f"site '{site}' has no intact state of round {last}"
            yield RoundLost(site, state.round, message)


def _untold(round: int, told: Set[int]) -> list[RoundLost]:
    missing = [each for each in range(1, round + 1) if each not in told]
    message = f"{RunFolder.journal} lacks the end of {_listed(missing)}, as if it had been cut"
    return [RoundLost(COORDINATOR, round, message)] if missing else []


def _lost_one_round_at_most(saved: Sequence[int], sites: Holdings) -> bool:
    """Tell whether only the first round was finished; sites may have trained the second."""
    return (
        tuple(saved) == (1,)
        and max((max(held, default=0) for held in sites.values()), default=0) < 3
    )


def _check_nothing_saved(
    folder: Path, saved: Sequence[int], sites: Holdings, lost: Iterable[RoundLost]
) -> None:
    """Refuse to begin anew where a round was finished. Raises `BadFolder`."""
    holding = [site for site, held in sites.items() if max(held, default=0) > 1]
    if saved:
        found = "; ".join(dict.fromkeys(each.message for each in lost))
        raise BadFolder(
            f"{folder}: the coordinator saved {_listed(saved)}, but none is held by everyone: "
            f"{found}. Put what is lost back from a copy (of a site: sites/NAME/state), or start "
            "anew with another --out; nothing was deleted."
        )
    if holding:
        raise BadFolder(
            f"{folder}: the coordinator holds no saved round, but site '{holding[0]}' holds "
            f"{_listed(sites[holding[0]])}. Put the folder 'state' back from a copy, or start anew "
            "with another --out; nothing was deleted."
        )


def _listed(rounds: Sequence[int]) -> str:
    word = "round" if len(rounds) == 1 else "rounds"
    return f"{word} {', '.join(map(str, rounds))}"
