"""A run goes on to more rounds than it began with, where its learning-rate schedule allows it."""

from dataclasses import dataclass, replace
from pathlib import Path

from grandrounds.core.errors import BadFolder
from grandrounds.core.files import remove, write_text
from grandrounds.core.run_folder import RunFolder
from grandrounds.core.state import saved_rounds
from grandrounds.study.file import read_study, to_toml
from grandrounds.study.study import Study


@dataclass(frozen=True)
class Extension:
    """A run that is to go on to more rounds: its study before and now, and the rounds done."""

    before: Study
    now: Study
    done: int

    @property
    def first_other(self) -> int | None:
        """Return the first round done whose learning rate is another in the longer run."""
        then, now = self.before, self.now
        return next(
            (
                round
                for round in range(1, self.done + 1)
                if then.training.rate(round, then.rounds) != now.training.rate(round, now.rounds)
            ),
            None,
        )

    @property
    def sentence(self) -> str:
        """Say what more rounds mean for the schedule."""
        goes = f"goes on after round {self.done} of {self.before.rounds} to round {self.now.rounds}"
        schedule = f'training.schedule = "{self.now.training.schedule}"'
        if self.first_other is None:
            return (
                f"{goes}; {schedule} gives every round done the same learning rate in the longer "
                f"run, so its weights are those of a run of {self.now.rounds} rounds"
            )
        last = self.before.training.rate(self.done, self.before.rounds)
        following = self.now.training.rate(self.done + 1, self.now.rounds)
        return (
            f"{goes}; {schedule} falls with the number of rounds: from round {self.first_other} on "
            f"the rounds done had lower rates than in a run of {self.now.rounds} rounds, and the "
            f"rate changes from {last:.3g} to {following:.3g}"
        )


def extension(folder: Path, study: Study) -> Extension | None:
    """Return how a folder's run would go on to more rounds; None where nothing else is asked."""
    path = RunFolder(folder).study
    if not path.exists():
        return None
    before = read_study(path)
    if study.rounds <= before.rounds or replace(before, rounds=study.rounds) != study:
        return None
    return Extension(before, study, max(saved_rounds(folder).rounds(), default=0))


def extend(folder: Path, study: Study, *, accepts: bool) -> None:
    """Make a folder ready for more rounds, if these are all that is new in the study.

    Its test scores are removed first, for they are those of a shorter run. Raises `BadFolder` where
    the schedule does not allow it, unless one `accepts` what it means.
    """
    found = extension(folder, study)
    if found is None:
        return
    if found.first_other is not None and not accepts:
        raise BadFolder(
            f"{folder}: {found.sentence}. Start anew with another --out, or go on nevertheless "
            "with --accept-changes."
        )
    files = RunFolder(folder)
    for path in (files.scores, files.unseen, files.matrix):
        remove(path, refusal="{path}: cannot be removed: {reason}")
    write_text(files.study, to_toml(study))
