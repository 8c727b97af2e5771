"""All sessions of a site are prepared, several at a time, each in a process of its own.

A process that the system ends, for want of memory for example, costs its session alone.
"""

# SimpleITK has no types of its own.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import os
import signal
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal, TypeAlias

import SimpleITK as sitk

from grandrounds.core.errors import BadImage, BadSite, DiskFailed
from grandrounds.core.processes import SPAWN, start_process
from grandrounds.data.acquisition import sidecar_of
from grandrounds.data.preparation.session import STEPS_VERSION, name_of, prepare_files
from grandrounds.data.preparation.settings import Preparation
from grandrounds.data.preparation.store import PreparedFolder, SessionRecord, inputs_of, key_of
from grandrounds.data.session_files import SessionFiles, find_sessions

SessionState: TypeAlias = Literal["prepared", "unchanged", "refused", "failed"]
SessionsDone: TypeAlias = Callable[[int, int], None]


@dataclass(frozen=True)
class Outcome:
    """What became of a session: refused is what was given, failed what ran; both with a reason."""

    session: str
    state: SessionState
    reason: str = ""
    quality: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class _Order:
    """A session to prepare, and what it is made from."""

    files: SessionFiles
    settings: Preparation
    folder: Path
    record: SessionRecord


def prepare_folder(
    settings: Preparation, data: Path, *, workers: int = 0, told: SessionsDone
) -> tuple[Sequence[Outcome], int]:
    """Prepare the volumes of `settings.source` into the folder `data`; `told` hears how far it is.

    With 0 `workers`, one for each core. What was finished before with the same files and settings
    is not made again. Returns what became of each session, in the order of their names, and how
    many volumes of sessions that are gone from the source were removed. Raises `BadSite`.
    """
    check_apart(settings.source, data)
    sessions, store = find_sessions(settings.source), PreparedFolder(data)
    with store.held():
        store.copy_table(settings.source)
        outcomes, orders = _plan(sessions, settings, store)
        told(len(outcomes), len(sessions))
        gone = sorted(set(store.records()) - {name_of(files) for files in sessions})
        if orders or gone or _not_made(outcomes):
            store.mark(finished=False)
        removed = sum(store.forget(name) for name in gone)
        for outcome in _in_processes(orders, workers or os.cpu_count() or 1):
            outcomes.append(outcome)
            told(len(outcomes), len(sessions))
        for outcome in _not_made(outcomes):
            store.forget(outcome.session)
        store.mark(finished=True)
    return sorted(outcomes, key=lambda outcome: outcome.session), removed


def _not_made(outcomes: Sequence[Outcome]) -> list[Outcome]:
    return [outcome for outcome in outcomes if outcome.state in ("refused", "failed")]


def check_apart(source: Path, data: Path) -> None:
    """Refuse to prepare volumes into their own folder, above it or below. Raises `BadSite`."""
    if data.suffix in (".npz", ".tsv", ".csv") or data.is_file():
        raise BadSite(f"data is {data}; it must be the folder that prepared volumes are put into.")
    first, second = source.resolve(), data.resolve()
    if first == second or first in second.parents or second in first.parents:
        raise BadSite(
            f"prepare.source is {source} and data is {data}: the volumes to prepare and the "
            "prepared ones must lie in two folders, neither inside the other."
        )


def _plan(
    sessions: Sequence[SessionFiles], settings: Preparation, store: PreparedFolder
) -> tuple[list[Outcome], list[_Order]]:
    """Tell which sessions are as they should be, or cannot be read, and which are to be made."""
    records, finished, orders = store.records(), list[Outcome](), list[_Order]()
    for files in sessions:
        name, record = name_of(files), records.get(name_of(files))
        try:
            inputs = inputs_of(_paths(files), record.inputs if record else {})
        except BadImage as error:
            finished.append(Outcome(name, "refused", str(error)))
            continue
        key = key_of(_wanted(settings), {name: stamp.digest for name, stamp in inputs.items()})
        if record and store.is_whole(record, key):
            finished.append(Outcome(name, "unchanged", quality=record.quality))
        else:
            new = SessionRecord(key, inputs, tuple(_names(files)))
            orders.append(_Order(files, settings, store.folder, new))
    return finished, orders


def _paths(files: SessionFiles) -> list[Path]:
    volumes = [*files.contrasts.values(), *files.masks.values()]
    sidecars = [sidecar_of(path) for path in files.contrasts.values()]
    return [*volumes, *(path for path in sidecars if path.exists())]


def _names(files: SessionFiles) -> list[str]:
    """Return the names of all files that a session may have when it is prepared."""
    kinds = {*files.contrasts, *(f"{name}mask" for name in files.masks), "brainmask"}
    return sorted(f"{name_of(files)}_{kind}{e}" for kind in kinds for e in (".nii.gz", ".json"))


def _wanted(settings: Preparation) -> Mapping[str, object]:
    wanted = {name: value for name, value in asdict(settings).items() if name != "source"}
    return wanted | {"version": STEPS_VERSION}


def _in_processes(orders: Sequence[_Order], workers: int) -> Generator[Outcome, None, None]:
    """Yield what becomes of each session, as each is done; whoever stops this ends them all."""
    waiting = list(reversed(orders))
    running: dict[Connection, tuple[BaseProcess, _Order]] = {}
    with _ended(running):
        while waiting or running:
            while waiting and len(running) < workers:
                order = waiting.pop()
                receiver, sender = SPAWN.Pipe(duplex=False)
                running[receiver] = start_process(_prepare_one, order, sender), order
                sender.close()
            for receiver in [each for each in wait(list(running)) if isinstance(each, Connection)]:
                process, order = running.pop(receiver)
                yield _heard(receiver, process, order)


@contextmanager
def _ended(running: Mapping[Connection, tuple[BaseProcess, _Order]]) -> Generator[None, None, None]:
    try:
        yield
    finally:
        for process, _ in running.values():
            process.kill()
            process.join()


def _heard(receiver: Connection, process: BaseProcess, order: _Order) -> Outcome:
    with receiver:
        try:
            outcome = receiver.recv()
        except EOFError:
            process.join()
            reason = (
                f"its process was ended from outside (exit code {process.exitcode}), most often "
                "for want of memory; take fewer --workers."
            )
            return Outcome(name_of(order.files), "failed", f"{name_of(order.files)}: {reason}")
    process.join()
    if isinstance(outcome, DiskFailed):
        raise outcome
    assert isinstance(outcome, Outcome)
    return outcome


def _prepare_one(order: _Order, sender: Connection) -> None:
    """Prepare a session in a process of its own, and say what became of it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the first process ends us
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    _silence()
    with sender:
        try:
            sender.send(_prepared(order))
        except DiskFailed as error:
            sender.send(error)


def _silence() -> None:
    """Keep ITK's warnings, which name files, from the terminal."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def _prepared(order: _Order) -> Outcome:
    name, store = name_of(order.files), PreparedFolder(order.folder)
    digests = {name: stamp.digest for name, stamp in order.record.inputs.items()}
    store.begin(name, order.record)
    try:
        finished = prepare_files(order.files, digests, order.settings)
    except BadImage as error:
        return Outcome(name, "refused", str(error))
    except (RuntimeError, MemoryError) as error:  # SimpleITK's errors are no other class
        return Outcome(name, "failed", f"{name}: {_last_line(error)}")
    quality = asdict(finished.quality)
    store.put(name, order.record, finished.files, quality)
    return Outcome(name, "prepared", quality=quality)


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"SimpleITK gave up ({lines[-1] if lines else type(error).__name__})."
