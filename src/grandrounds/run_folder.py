"""The folder of a run: claimed for one study and one process at a time."""

import fcntl
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from grandrounds.checkpoints import Rounds
from grandrounds.errors import BadFolder
from grandrounds.study import Study
from grandrounds.study_file import changed_keys, read_study, to_table, to_toml
from grandrounds.weights import write_atomically


@contextmanager
def claimed(folder: Path, study: Study, *, resume: bool) -> Generator[None, None, None]:
    """Hold the folder for this process, and note the resolved study in it.

    Raises `BadFolder` if another process holds it, if it holds a run that was not asked to go on,
    or if it is to go on with another study than it began with.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadFolder(f"{folder}: cannot be made into a run folder ({error.strerror})") from None
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BadFolder(
                f"{folder}: another process is running in it; wait or choose another --out"
            ) from None
        _settle(folder, study, resume=resume)
        yield


def _settle(folder: Path, study: Study, *, resume: bool) -> None:
    path = folder / "study.toml"
    if not path.exists():
        write_atomically(path, to_toml(study).encode())
        return
    if not resume:
        done = max(Rounds(folder / "state").held(), default=0)
        raise BadFolder(
            f"{folder}: holds a run already, {done} rounds far; "
            "continue it with --resume, or choose another --out"
        )
    check_unchanged(folder, study)


def check_unchanged(folder: Path, study: Study) -> None:
    """Refuse to go on with another study than the folder's; `BadFolder` names what changed.

    A key that did not exist yet when the run began has its default, which changes nothing.
    """
    old = read_study(folder / "study.toml")
    changed = changed_keys(to_table(old), to_table(study))
    if changed:
        raise BadFolder(
            f"{folder}: its run began with another study; changed: {', '.join(changed)}. "
            "Resume with the study as it was, or start anew with another --out."
        )


def is_finished(folder: Path) -> bool:
    """Tell whether the folder's run came to its end."""
    return (folder / "scores.csv").exists()
