"""What became of a run under a schedule: its attempts, and what each of them left behind."""

import os
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Thread
from typing import Protocol

from grandrounds.core.run_folder import RunFolder
from grandrounds.core.state import RoundStore
from tests.nemesis.faults import SERVER, Damage, Fault, Harm, Schedule

KILLED = -signal.SIGKILL
LIMIT = 240.0  # seconds; whatever takes longer hangs
ATTEMPTS = 4


@dataclass(frozen=True)
class Attempt:
    """One run or resumption: its exit code, its last sentence, and what lay there before.

    `journal` counts the lines of the journal before it, `logs` those of each site's log. `damaged`
    tells whether files were changed before it.
    """

    code: int
    said: str
    journal: int = 0
    logs: Mapping[str, int] = field(default_factory=dict[str, int])
    damaged: bool = False
    lost: tuple[str, ...] = ()  # saved files that are gone or changed after a refusal


@dataclass(frozen=True)
class Story:
    """A run under a schedule from its beginning to its end.

    `folders` are the run folders of the parties, one for all of them in one process. `counted` are
    the replies that the server took for its rounds, where it was watched.
    """

    schedule: Schedule
    folders: Mapping[str, Path]
    attempts: Sequence[Attempt]
    struck: Sequence[Fault]
    counted: Sequence[Mapping[str, object]] = ()

    @property
    def run(self) -> RunFolder:
        return RunFolder(self.folders[SERVER])

    @property
    def lets_sites_log(self) -> bool:
        return len(self.folders) > 1


class World(Protocol):
    """A place where a run can be played."""

    folders: Mapping[str, Path]

    def attempt(self, *, resume: bool) -> tuple[int, str]:
        """Run or resume to whatever end; return the exit code and what was said."""
        ...

    def struck(self) -> Sequence[Fault]: ...
    def counted(self) -> Sequence[Mapping[str, object]]: ...


def play(schedule: Schedule, world: World) -> Story:
    """Run, do the damage, and resume, with what was damaged put back where it is asked for."""
    attempts = [_attempted(world, resume=False)]
    done: list[Fault] = []
    copies: dict[Path, bytes] = {}
    if schedule.damages:
        copies = _copied(world.folders)
        done += [damage for damage in schedule.damages if inflict(damage, world.folders)]
        attempts.append(_attempted(world, resume=True, damaged=True))
        if attempts[-1].code:
            _put_back(copies)
    while attempts[-1].code and len(attempts) < ATTEMPTS + bool(copies):
        attempts.append(_attempted(world, resume=True))
    struck = [*world.struck(), *done]
    return Story(schedule, world.folders, attempts, struck, world.counted())


def _attempted(world: World, *, resume: bool, damaged: bool = False) -> Attempt:
    journal = _lines(RunFolder(world.folders[SERVER]).journal)
    logs = {
        party: _lines(RunFolder(folder).site(party).ledger)
        for party, folder in world.folders.items()
        if party != SERVER
    }
    before = _saved(world.folders)
    code, said = world.attempt(resume=resume)
    after = _saved(world.folders)
    lost = [str(path) for path, bits in before.items() if after.get(path) != bits]
    refused = code == 2 or "nothing was deleted" in said
    return Attempt(code, said, journal, logs, damaged, tuple(lost) if refused else ())


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def _saved(folders: Mapping[str, Path]) -> dict[Path, bytes]:
    found = [
        path for folder in set(folders.values()) for path in folder.rglob("round-*.safetensors")
    ]
    return {path: path.read_bytes() for path in found}


def _copied(folders: Mapping[str, Path]) -> dict[Path, bytes]:
    found = [path for folder in set(folders.values()) for path in folder.rglob("*")]
    return {p: p.read_bytes() for p in found if p.is_file() and p.name != RunFolder.lock}


def _put_back(copies: Mapping[Path, bytes]) -> None:
    """Put files back as they were, as from a copy of that moment."""
    for path, content in copies.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def inflict(damage: Damage, folders: Mapping[str, Path]) -> bool:
    """Damage a file or folder; tell whether there was one."""
    path = _target(damage.file, folders)
    if path is None or not path.exists():
        return False
    if damage.what == "delete":
        _delete(path)
        return True
    content = bytearray(path.read_bytes())
    at = min(int(damage.place * len(content)), len(content) - 1)
    if at < 0:
        return False
    if damage.what == "flip":
        content[at] ^= 4
    else:
        del content[at:]
    path.write_bytes(content)
    return True


def _delete(path: Path) -> None:
    for each in sorted(path.rglob("*"), reverse=True) if path.is_dir() else []:
        each.rmdir() if each.is_dir() else each.unlink()
    path.rmdir() if path.is_dir() else path.unlink()


def _target(file: str, folders: Mapping[str, Path]) -> Path | None:
    words, _, site = file.partition(" of ")
    run = RunFolder(folders[SERVER])
    at_site = RunFolder(folders.get(site, folders[SERVER])).site(site) if site else None
    match words:
        case "journal":
            return run.journal
        case "log":
            return at_site.ledger if at_site else None
        case "newest state" | "oldest state":
            state = at_site.state if at_site else run.state
        case "newest merged":
            state = at_site.merged / RunFolder.state if at_site else run.state
        case _:
            parts = Path(file).parts
            owner = parts[1] if parts[0] == "sites" else SERVER
            return folders.get(owner, folders[SERVER]) / file
    store = RoundStore(Path(state))
    rounds = store.rounds()
    return store.path(rounds[-1 if "newest" in words else 0]) if rounds else None


@dataclass
class Watcher:
    """Lets processes that stand still go on after their time; `harms` are marked when they strike.

    Linux says of a process in /proc whether it stands still.
    """

    harms: Sequence[Harm]
    marks: Path
    _over: Event = field(default_factory=Event)

    def __enter__(self) -> "Watcher":
        self._thread = Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def struck(self) -> list[Harm]:
        return [harm for mark, harm in self._marks() if mark.exists()]

    def _marks(self) -> list[tuple[Path, Harm]]:
        return [(self.marks / harm.mark, harm) for harm in self.harms]

    def _watch(self) -> None:
        stopped: dict[int, float] = {}
        while not self._over.wait(0.05):
            for mark, harm in self._marks():
                pid = _written(mark)
                if harm.deed == "stop" and pid and pid not in stopped:
                    stopped[pid] = time.monotonic() + harm.seconds
            for pid, until in stopped.items():
                if time.monotonic() > until and _stands_still(pid):
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGCONT)
        for pid in stopped:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def _written(mark: Path) -> int:
    try:
        return int(mark.read_text() or 0)
    except FileNotFoundError:
        return 0


def _stands_still(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].startswith("T")
    except (FileNotFoundError, ProcessLookupError):
        return False
