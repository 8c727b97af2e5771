"""A run folder belongs to one process while its run lasts, and is read again afterwards."""

import csv
import fcntl
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from grandrounds.core.errors import BadFolder
from grandrounds.core.files import write_text
from grandrounds.core.names import POOLED
from grandrounds.core.run_folder import ComparisonFolder, RunFolder, SiteFolder, comparison_of
from grandrounds.core.sentence import Reason, phrase
from grandrounds.core.state import RoundStore, read_sealed, saved_rounds
from grandrounds.core.weights import Weights
from grandrounds.data.protocol import Protocols, protocols_from_text
from grandrounds.runs.extend import extend
from grandrounds.runs.tables import ScoreLabel
from grandrounds.study.file import changed_keys, read_study, read_table, to_table, to_toml
from grandrounds.study.installed import code_named
from grandrounds.study.study import Study


@contextmanager
def lock_folder(
    folder: Path, study: Study, *, resume: bool, extends: bool = False, accepts: bool = False
) -> Generator[None, None, None]:
    """Lock the folder for this process, and write the resolved study into it.

    With `extends` the study may have more rounds than the folder's; where its schedule differs from
    the folder's in rounds that are done, only if one `accepts` that.

    Raises `BadFolder` if another process holds it, if it has a run and `resume` is not set, or if
    the run began with another study. A study in which more sites join takes the place of the one
    before it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadFolder(
            f"{folder}: cannot be made into a run folder ({error.strerror})",
            safe=phrase("its run folder cannot be made ({why})", why=Reason.of(error)),
        ) from None
    with RunFolder(folder).lock.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BadFolder(
                f"{folder}: another process is running in it; wait or choose another --out",
                safe=phrase("another process is running in its run folder"),
            ) from None
        if resume and extends:
            extend(folder, study, accepts=accepts)
        _settle(folder, study, resume=resume)
        yield


def _settle(folder: Path, study: Study, *, resume: bool) -> None:
    path = RunFolder(folder).study
    done = max(saved_rounds(folder).rounds(), default=0)
    if not path.exists() and (resume or not done):
        write_text(path, to_toml(study))
        return
    if not resume:
        raise BadFolder(
            f"{folder}: holds a run already, {done} rounds far; "
            "continue it with --resume, or choose another --out"
        )
    check_unchanged(folder, study)
    if path.read_text() != to_toml(study):
        write_text(path, to_toml(study))


def check_unchanged(folder: Path, study: Study) -> None:
    """Refuse to resume with another study than the folder's; `BadFolder` names what changed.

    A key that did not exist yet when the run began has its default, which changes nothing; sites
    that join in rounds to come may be added, moved or taken out.
    """
    path, next = RunFolder(folder).study, _next_round(folder)
    changed = _other_code(path, study)
    if not changed:  # so that nothing is imported that the study does not name
        old = read_study(path)
        changed = changed_keys(to_table(old.before(next)), to_table(study.before(next)))
    if changed:
        raise BadFolder(
            f"{folder}: its run began with another study; changed: {', '.join(changed)}. "
            "Resume with the study as it was, or start anew with another --out.",
            safe=phrase("its run folder began with another study"),
        )


def _other_code(path: Path, study: Study) -> list[str]:
    """List the keys by which the study of a run names other code than this one, unread."""
    now = {each.path: each.word for each in code_named(to_table(study))}
    named = code_named(read_table(path))
    return [each.path for each in named if now.get(each.path) != each.word]


def _next_round(folder: Path) -> int:
    """Return the first round of a run that is not saved yet, or is a site's newest here."""
    done = max(saved_rounds(folder).rounds(), default=0)
    if done:
        return done + 1
    sites = [SiteFolder(path) for path in RunFolder(folder).sites.glob("*")]
    held = [round for site in sites for round in RoundStore(site.state).rounds()]
    return max(held, default=1)


def is_finished(folder: Path) -> bool:
    """Tell whether the folder's run is finished."""
    return RunFolder(folder).scores.exists()


@dataclass(frozen=True)
class TrainedRun:
    """The folder of a finished run. Raises `BadFolder` for any other."""

    folder: Path

    def __post_init__(self) -> None:
        if not self._files.study.exists():
            raise BadFolder(f"{self.folder}: no study.toml, so no run; give a run's folder")
        if not is_finished(self.folder):
            raise BadFolder(
                f"{self.folder}: its run is not finished; go on with it (--resume) first"
            )
        above = comparison_of(self.folder)
        if above and above[0].searched:
            raise BadFolder(
                f"{self.folder}: a candidate of a sweep, which is not tested and has no model; run "
                f"what was chosen: grandrounds run {above[0].chosen}"
            )
        if self._files.derived.exists():
            raise BadFolder(
                f"{self.folder}: its scores are derived from other arms' models, so it has none; "
                f"{self._files.derived.name} names the arms: give a run of theirs"
            )

    @property
    def _files(self) -> RunFolder:
        return RunFolder(self.folder)

    @cached_property
    def study(self) -> Study:
        """Return the resolved study."""
        return read_study(self._files.study, ())

    @cached_property
    def score_label(self) -> ScoreLabel:
        """Return the arm, the seed and the round whose model was tested."""
        with self._files.scores.open(newline="") as file:
            rounds = [int(row["round"]) for row in csv.DictReader(file)]
        return ScoreLabel(self.study.title, self.study.seed, max(rounds, default=0))

    @property
    def models(self) -> tuple[str, ...]:
        """Return the sites that have a model; pooled data made one model."""
        return (POOLED,) if self.study.build_method().sharing().pooled else self.study.trainers

    def shared(self) -> Weights:
        """Return the shared part of the tested model; empty where nothing is shared."""
        paths = (self._files.shared, self._files.site(self.models[0]).shared())
        existing = [path for path in paths if path.exists()]
        return read_sealed(existing[0])[0] if existing else {}

    def protocols(self, site: str) -> Protocols:
        """Return how a site that trained usually scans. Raises `BadFolder` where that is lost."""
        owner = site if site in self.models else self.models[0]
        path = self._files.site(owner).protocols
        try:
            return protocols_from_text(path.read_text("utf-8"), path)[site]
        except (OSError, KeyError, UnicodeDecodeError):
            raise BadFolder(
                f"{path}: must say how site '{site}' usually scans, which its network reads; "
                "restore it from a copy"
            ) from None

    def model_weights(self, site: str) -> Weights:
        """Return the tested model of a site, its private part included."""
        files = self._files.site(site)
        if self.study.training.fine_tune:
            return read_sealed(files.tuned)[0]
        return self.shared() | read_sealed(files.private())[0]


def find_runs(folder: Path) -> Sequence[TrainedRun]:
    """Find the run in a folder, or all of a comparison's that trained. Raises `BadFolder`."""
    comparison = ComparisonFolder(folder)
    if not comparison.exists:
        return [TrainedRun(folder)]
    return [TrainedRun(run.path) for run in comparison.trained() if run.study.exists()]
