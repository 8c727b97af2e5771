"""Which trackers there are, how a run is tracked as it goes, and how afterwards."""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from os import environ
from pathlib import Path

from grandrounds.errors import BadFolder, BadInput
from grandrounds.events import Event, Failed, Interrupted, RunStarted
from grandrounds.journal import Stamped, read_journal, surviving
from grandrounds.tracking.tracker import Store, Tell, Tracker, shown


@dataclass(frozen=True)
class Kind:
    """A kind of tracker: how its address is written, and what makes its store."""

    example: str
    store: Callable[[str], Store]


def _mlflow(address: str) -> Store:
    from grandrounds.tracking.to_mlflow import MLflow

    return MLflow(address)


def _tensorboard(folder: str) -> Store:
    from grandrounds.tracking.to_tensorboard import TensorBoard

    return TensorBoard(Path(folder))


KINDS = {
    "mlflow": Kind("mlflow:sqlite:///PATH.db or mlflow:http://HOST:PORT", _mlflow),
    "tensorboard": Kind("tensorboard:DIR", _tensorboard),
}


def check(uris: Sequence[str]) -> None:
    """Refuse a tracker that is unknown or not installed. Raises `BadInput`; loads nothing."""
    for uri in uris:
        kind, _, address = uri.partition(":")
        if kind not in KINDS or not address:
            known = "; ".join(each.example for each in KINDS.values())
            raise BadInput(f"tracker '{shown(uri)}': write {known}")
        if find_spec(kind) is None:
            raise BadInput(
                f"tracker '{shown(uri)}': {kind} is not installed; "
                f"pip install 'grandrounds[{kind}]' installs it"
            )
        _check_folder(uri, kind, address)


def _check_folder(uri: str, kind: str, address: str) -> None:
    allowed = environ.get("MLFLOW_ALLOW_FILE_STORE", "").lower() in ("true", "1")
    if kind == "mlflow" and "://" not in address and not allowed:
        raise BadInput(
            f"tracker '{uri}': MLflow no longer keeps runs in a folder; write "
            f"mlflow:sqlite:///{address}.db, or set MLFLOW_ALLOW_FILE_STORE=true"
        )


def _tracker(folder: Path, uri: str, tell: Tell) -> Tracker:
    kind, _, address = uri.partition(":")
    return Tracker(uri, folder, KINDS[kind].store(address), tell)


@contextmanager
def tracked(folder: Path, uris: Sequence[str], tell: Tell) -> Generator[list[Tracker], None, None]:
    """Give a listener for each tracker of a run; `tell` gets a sentence where a tracker fails.

    Raises `BadInput` for a tracker that is unknown or not installed.
    """
    check(uris)
    trackers = [_tracker(folder, uri, tell) for uri in uris]
    try:
        yield trackers
    finally:
        for tracker in trackers:
            tracker.close()


def replay(folder: Path, uri: str, tell: Tell) -> bool:
    """Bring a run folder to a tracker that lacks all or some of it; tell whether all is there.

    Raises `BadInput` for a tracker that is unknown or not installed, `BadFolder` for no run.
    """
    check([uri])
    tracker, journal = _tracker(folder, uri, tell), folder / "journal.jsonl"
    events = surviving(read_journal(journal))
    if not any(isinstance(event, RunStarted) for _, event in events):
        raise BadFolder(f"{journal}: no run has started here yet; start it first")
    for moment, event in _last_words_once(events):
        tracker.hear(moment, event)
    tracker.deliver()
    return tracker.close()


def _last_words_once(events: Sequence[Stamped]) -> list[Stamped]:
    """Leave out how a run ended before it was resumed."""
    last = max(n for n, (_, event) in enumerate(events) if isinstance(event, RunStarted))
    return [
        stamped
        for number, stamped in enumerate(events)
        if number > last or not _is_stop(stamped[1])
    ]


def _is_stop(event: Event) -> bool:
    return isinstance(event, Interrupted | Failed)


def runs_in(folder: Path) -> list[Path]:
    """Find the run in a folder, or all that have begun of a comparison's. Raises `BadFolder`."""
    if not (folder / "arms.toml").exists():
        return [folder]
    found = sorted(path.parent for path in folder.glob("**/arms/*/seed-*/journal.jsonl"))
    if not found:
        raise BadFolder(f"{folder}: none of its arms has begun, so there is nothing to track")
    return found
