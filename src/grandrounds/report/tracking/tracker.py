"""A tracker receives the events of one run, and logs to its store what the store lacks.

Points that a store refuses are logged again after the next round: training never stops for them.
"""

import json
import re
import tomllib
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from os import environ
from pathlib import Path
from time import time
from typing import Protocol, TypeAlias, cast

from grandrounds.core.errors import BadFolder, BadInput
from grandrounds.core.events import Event, Failed, Interrupted, RunStarted
from grandrounds.core.extras import install_command
from grandrounds.core.files import write_text
from grandrounds.core.journal import Stamped, read_journal, without_superseded
from grandrounds.core.names import check_name
from grandrounds.core.run_folder import ComparisonFolder, RunFolder, comparison_of
from grandrounds.report.tracking.points import Beginning, Gathering, Logged, PointBatch

_Tell: TypeAlias = Callable[[str], None]


class Store(Protocol):
    """A store of runs, such as MLflow, TensorBoard or W&B."""

    def begin(self, beginning: Beginning) -> str:
        """Make a run, and return the key by which it is found again."""
        ...

    def resume(self, key: str) -> Logged:
        """Open a run that was made before, and return what it holds."""
        ...

    def log(self, batch: PointBatch) -> None:
        """Add a batch's points and tags: all or none where the store can."""
        ...

    def end(self, batch: PointBatch) -> None:
        """Log how the run ended."""
        ...

    def close(self) -> None:
        """Write out what is open, if anything is."""
        ...


@dataclass
class Tracker:
    """A listener that logs a run to one store; `tell` receives a sentence where that fails."""

    uri: str
    folder: Path
    store: Store
    tell: _Tell
    _gathering: Gathering = field(default_factory=Gathering)
    _beginning: Beginning | None = None
    _logged: Logged | None = None
    _waiting: list[PointBatch] = field(default_factory=list[PointBatch])
    _warned: bool = False

    def __call__(self, event: Event) -> None:
        """Receive an event as it happens, and log the batch that it completes."""
        if self.hear(time(), event):
            self.deliver()

    def hear(self, moment: float, event: Event) -> bool:
        """Receive an event of a moment (unix seconds); tell whether there is a batch to deliver."""
        starts = isinstance(event, RunStarted)
        if starts and self._beginning is None:
            self._beginning = beginning(self.folder, moment, event)
        batch = self._gathering.hear(moment, event)
        if batch:
            self._waiting.append(batch)
        return starts or batch is not None

    def deliver(self) -> None:
        """Log the waiting batches; those that the store refuses keep waiting."""
        if self._beginning:
            self._deliver(self._beginning)

    def close(self) -> bool:
        """Report what was not logged in the end; return whether all was."""
        try:
            self.store.close()
        except Exception as error:  # as while it logs
            self._warn(error)
        if self._waiting:
            self.tell(
                f"{len(self._waiting)} rounds or results of {self.folder} are not in "
                f"{display_uri(self.uri)}; bring them there with: "
                f"grandrounds track {self.folder} --to {display_uri(self.uri)}"
            )
        return not self._waiting and self._logged is not None

    def _deliver(self, beginning: Beginning) -> None:
        try:
            self._logged = self._logged or self._opened(beginning)
            while self._waiting:
                self._logged = self._with_points(self._waiting[0], self._logged)
                self._logged = self._with_status(self._waiting[0], self._logged)
                del self._waiting[0]
        except Exception as error:  # whatever a tracker's client raises: training must not stop
            self._warn(error)

    def _opened(self, beginning: Beginning) -> Logged:
        known = recorded(self.folder)
        if key := known.get(display_uri(self.uri)):
            return self.store.resume(key)
        key = self.store.begin(beginning)
        record(self.folder, known | {display_uri(self.uri): key})
        return Logged()

    def _with_points(self, batch: PointBatch, logged: Logged) -> Logged:
        if not logged.lacks(batch):
            return logged
        self.store.log(batch)
        return logged.with_points(batch)

    def _with_status(self, batch: PointBatch, logged: Logged) -> Logged:
        if batch.status is None or batch.status == logged.status:
            return logged
        self.store.end(batch)
        return replace(logged, status=batch.status)

    def _warn(self, error: Exception) -> None:
        if self._warned:
            return
        self._warned = True
        reason = display_uri(str(error).strip().partition("\n")[0]).rstrip(".")
        self.tell(
            f"{display_uri(self.uri)} takes no points ({type(error).__name__}: {reason}). Training "
            "does not stop for it: the journal keeps everything, and each round is a new try."
        )


def beginning(folder: Path, moment: float, started: RunStarted) -> Beginning:
    """Return a run's names, parameters and tags, from its first event and its study."""
    study = tomllib.loads(RunFolder(folder).study.read_text("utf-8"))
    made = {
        "fingerprint": started.study,
        "grandrounds": started.version,
        "torch": started.torch,
        "device": started.device,
        "precision": started.precision,
        "threads": str(started.threads),
    }
    tags = {"arm": started.arm, "seed": str(started.seed), "method": started.title}
    tags |= _comparison(folder)
    without = f"-without-{tags['left_out']}" if "left_out" in tags else ""
    check_name(started.arm, f"{folder}: arm", BadFolder)  # a tracker may make a folder of it
    title = f"{started.arm}/seed-{started.seed}{without}"
    return Beginning(started.name, title, made | flat_parameters(study), tags, moment)


def _comparison(folder: Path) -> dict[str, str]:
    """Return tags that name a run's comparison, if any, and the site it was trained without."""
    found = comparison_of(folder)
    if found is None:
        return {}
    comparison, left_out = found
    return {"comparison": comparison.path.name} | ({"left_out": left_out} if left_out else {})


def flat_parameters(value: object, where: str = "") -> dict[str, str]:
    """Return a TOML table as one pair for each option; tables in a list go by their names."""
    match value:
        case dict():
            table = cast(dict[str, object], value)
            found = [flat_parameters(item, f"{where}.{key}") for key, item in table.items()]
            return {path: word for each in found for path, word in each.items()}
        case [dict(), *_]:  # pyright: ignore[reportUnknownVariableType]
            tables = cast(list[dict[str, object]], value)
            return flat_parameters({str(table["name"]): table for table in tables}, where)
        case list():
            return {where.removeprefix("."): ", ".join(map(str, cast(list[object], value)))}
        case _:
            return {where.removeprefix("."): str(value)}


def recorded(folder: Path) -> dict[str, str]:
    """Read a run folder's keys by tracker."""
    path = RunFolder(folder).tracking
    return json.loads(path.read_text("utf-8")) if path.exists() else {}


def record(folder: Path, known: dict[str, str]) -> None:
    """Write a run folder's keys by tracker, whole or not at all."""
    text = json.dumps(known, indent=2) + "\n"
    path = RunFolder(folder).tracking
    write_text(path, text, refusal="{path}: cannot be written: {reason}")


def display_uri(uri: str) -> str:
    """Return an address without a user's name and password."""
    return re.sub(r"//[^/@\s]*@", "//", uri)


@dataclass(frozen=True)
class TrackerKind:
    """A kind of tracker: an example of its address, and the function that makes its store."""

    example: str
    store: Callable[[str], Store]


def _mlflow(address: str) -> Store:
    from grandrounds.report.tracking.mlflow_store import MLflow

    return MLflow(address)


def _tensorboard(folder: str) -> Store:
    from grandrounds.report.tracking.tensorboard_store import TensorBoard

    return TensorBoard(Path(folder))


def _wandb(address: str) -> Store:
    from grandrounds.report.tracking.wandb_store import WandB

    return WandB(address)


TRACKERS = {
    "mlflow": TrackerKind("mlflow:sqlite:///PATH.db or mlflow:http://HOST:PORT", _mlflow),
    "tensorboard": TrackerKind("tensorboard:DIR", _tensorboard),
    "wandb": TrackerKind("wandb:PROJECT or wandb:offline:DIR", _wandb),
}


def check_trackers(uris: Sequence[str]) -> None:
    """Raise `BadInput` for a tracker that is unknown or not installed; import nothing."""
    for uri in uris:
        kind, _, address = uri.partition(":")
        if kind not in TRACKERS or not address or address == "offline:":
            known = "; ".join(each.example for each in TRACKERS.values())
            raise BadInput(f"tracker '{display_uri(uri)}': write {known}")
        found = find_spec(kind)
        if found is None or found.origin is None:  # a folder of that name is no package
            raise BadInput(
                f"tracker '{display_uri(uri)}': {kind} is not installed; "
                f"install it with {install_command(kind)}"
            )
        _check_folder(uri, kind, address)


def _check_folder(uri: str, kind: str, address: str) -> None:
    allowed = environ.get("MLFLOW_ALLOW_FILE_STORE", "").lower() in ("true", "1")
    if kind == "mlflow" and "://" not in address and not allowed:
        raise BadInput(
            f"tracker '{uri}': MLflow no longer keeps runs in a folder; write "
            f"mlflow:sqlite:///{address}.db, or set MLFLOW_ALLOW_FILE_STORE=true"
        )


def _tracker(folder: Path, uri: str, tell: _Tell) -> Tracker:
    kind, _, address = uri.partition(":")
    return Tracker(uri, folder, TRACKERS[kind].store(address), tell)


@contextmanager
def tracked(folder: Path, uris: Sequence[str], tell: _Tell) -> Generator[list[Tracker], None, None]:
    """Yield a listener for each tracker of a run; `tell` receives a sentence where one fails.

    Raises `BadInput` for a tracker that is unknown or not installed.
    """
    check_trackers(uris)
    trackers = [_tracker(folder, uri, tell) for uri in uris]
    try:
        yield trackers
    finally:
        for tracker in trackers:
            tracker.close()


def replay(folder: Path, uri: str, tell: _Tell) -> bool:
    """Log a run folder to a tracker that lacks all or some of it; return whether all is there.

    Raises `BadInput` for a tracker that is unknown or not installed, `BadFolder` for no run.
    """
    check_trackers([uri])
    tracker, journal = _tracker(folder, uri, tell), RunFolder(folder).journal
    events = without_superseded(read_journal(journal))
    if not any(isinstance(event, RunStarted) for _, event in events):
        raise BadFolder(f"{journal}: no run has started here yet; start it first")
    for moment, event in _last_words_once(events):
        tracker.hear(moment, event)
    tracker.deliver()
    return tracker.close()


def _last_words_once(events: Sequence[Stamped]) -> list[Stamped]:
    """Return the events without those that ended the run before it was resumed."""
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
    comparison = ComparisonFolder(folder)
    if not comparison.exists:
        return [folder]
    found = [run.path for run in comparison.all_trained() if run.journal.exists()]
    if not found:
        raise BadFolder(f"{folder}: none of its arms has begun, so there is nothing to track")
    return found
