"""A run by the command `grandrounds run --workers 2`, whose processes come to harm."""

import multiprocessing as mp
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path

from grandrounds.cli import main
from grandrounds.core import processes
from grandrounds.core.events import RoundFinished
from grandrounds.study.file import to_toml
from tests.helpers.command import PROGRAM, events
from tests.helpers.processes import loaded
from tests.nemesis import harm
from tests.nemesis.faults import SERVER, Fault, Harm, Schedule, Trouble
from tests.nemesis.remote_world import CRASHED, RUN
from tests.nemesis.story import LIMIT, Watcher
from tests.nemesis.studies import study_of

REPOSITORY = Path(__file__).parents[2]
INSTALLED_EVERY = 3  # how often the first run is one of the installed program


def be_command(words: Sequence[str], harms: Sequence[Harm], marks: Path, said: Path) -> None:
    """Be the program in a process that has loaded everything, and so are its workers."""
    os.setsid()
    with said.open("wb") as file, Path(os.devnull).open("wb") as nothing:
        os.dup2(file.fileno(), 2)
        os.dup2(nothing.fileno(), 1)
    sys.argv = list(words)
    processes.SPAWN = mp.get_context("fork")  # pyright: ignore[reportAttributeAccessIssue]
    harm.install(harms, marks)
    main()


@dataclass
class WorkersWorld:
    """One run folder, and the command that runs and resumes in it."""

    schedule: Schedule
    folder: Path
    folders: Mapping[str, Path] = field(init=False)
    _crowd: list[Trouble] = field(default_factory=list[Trouble])

    def __post_init__(self) -> None:
        self.folders = {SERVER: self.folder / RUN}
        self.folder.mkdir(parents=True)
        self._study = self.folder / "study.toml"
        self._study.write_text(to_toml(study_of(self.schedule.arm)))
        self._watcher = Watcher(self.schedule.harms, self.folder)
        self._watcher.__enter__()

    def close(self) -> None:
        self._watcher.__exit__()

    def struck(self) -> Sequence[Fault]:
        return [*self._watcher.struck(), *self._crowd]

    def counted(self) -> Sequence[Mapping[str, object]]:
        return ()

    def attempt(self, *, resume: bool) -> tuple[int, str]:
        """Give the command; the first one is under the harms of the schedule."""
        harms = () if resume else self.schedule.harms
        installed = not resume and self.schedule.seed % INSTALLED_EVERY == 1
        run = self._installed(harms) if installed else self._forked(harms, resume=resume)
        if not resume:
            self._crowd_in(run)
        return run.end()

    def _words(self, *, resume: bool) -> list[str]:
        words = [str(PROGRAM), "run", str(self._study), "--out", str(self.folders[SERVER])]
        return [*words, "--workers", "2", "--quiet", *(["--resume"] if resume else [])]

    def _installed(self, harms: Sequence[Harm]) -> "Command":
        custom = harm.write_custom(self.folder / "custom", harms, self.folder)
        paths = os.pathsep.join((str(custom), str(REPOSITORY)))
        said = self.folder / "said-installed"
        with said.open("wb") as file:
            process = subprocess.Popen(
                self._words(resume=False),
                stdout=subprocess.DEVNULL,
                stderr=file,
                env=os.environ | {"PYTHONPATH": paths},
                start_new_session=True,
            )
        return Command(process.pid, process, said)

    def _forked(self, harms: Sequence[Harm], *, resume: bool) -> "Command":
        said = self.folder / f"said-{time.monotonic_ns()}"
        process = loaded().Process(
            target=be_command, args=(self._words(resume=resume), harms, self.folder, said)
        )
        process.start()
        assert process.pid
        return Command(process.pid, process, said)

    def _crowd_in(self, run: "Command") -> None:
        """While the run lasts, resume it in another process, which is refused."""
        for trouble in self.schedule.troubles:
            while run.lasts() and not self._has_begun():
                time.sleep(0.01)
            if not run.lasts():
                return
            code, said = self._forked((), resume=True).end()
            self._crowd.append(trouble)
            if run.lasts() and (code != 2 or "another process is running in it" not in said):
                raise AssertionError(f"a second process was let in: {code} {said}")

    def _has_begun(self) -> bool:
        return any(isinstance(event, RoundFinished) for event in events(self.folders[SERVER]))


@dataclass(frozen=True)
class Command:
    """A command that runs in a session of its own."""

    pid: int
    process: "subprocess.Popen[bytes] | BaseProcess"
    said: Path

    def lasts(self) -> bool:
        return self._code() is None

    def _code(self) -> int | None:
        if isinstance(self.process, subprocess.Popen):
            return self.process.poll()
        return self.process.exitcode

    def end(self) -> tuple[int, str]:
        """Wait until it and its workers have ended; return its exit code and last words."""
        until = time.monotonic() + LIMIT
        while self.lasts() or self._family():
            time.sleep(0.02)
            if time.monotonic() > until:
                self.process.kill()
                return CRASHED, f"it has not ended in {LIMIT:g} s"
        code = self._code()
        assert code is not None
        return code, self.said.read_text() if self.said.exists() else ""

    def _family(self) -> bool:
        """Tell whether a process of its session is alive."""
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                state, _, _, session = stat.read_text().rpartition(") ")[2].split()[:4]
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(session) == self.pid and state != "Z":
                return True
        return False
