"""A run by the installed command, `grandrounds run --workers 2`, whose processes come to harm."""

import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from grandrounds.core.events import RoundFinished
from grandrounds.study.file import to_toml
from tests.helpers.command import PROGRAM, events
from tests.nemesis import harm
from tests.nemesis.faults import SERVER, Fault, Schedule, Trouble
from tests.nemesis.remote_world import CRASHED, RUN
from tests.nemesis.story import LIMIT, Watcher
from tests.nemesis.studies import study_of

REPOSITORY = Path(__file__).parents[2]


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
        self._custom = harm.write_custom(self.folder / "custom", self.schedule.harms, self.folder)
        self._watcher = Watcher(self.schedule.harms, self.folder)
        self._watcher.__enter__()

    def close(self) -> None:
        self._watcher.__exit__()

    def struck(self) -> Sequence[Fault]:
        return [*self._watcher.struck(), *self._crowd]

    def counted(self) -> Sequence[Mapping[str, object]]:
        return ()

    def attempt(self, *, resume: bool) -> tuple[int, str]:
        """Give the command, under the harms of the schedule if it is the first one."""
        command = self._command(resume=resume)
        environment = dict(os.environ)
        if not resume:
            paths = os.pathsep.join((str(self._custom), str(REPOSITORY)))
            environment["PYTHONPATH"] = paths
        process = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            start_new_session=True,
        )
        try:
            if not resume:
                self._crowd_in(process)
            _, said = process.communicate(timeout=LIMIT)
        except subprocess.TimeoutExpired:
            return CRASHED, f"it has not ended in {LIMIT:g} s"
        finally:
            process.kill()
            process.wait()
        return process.returncode, said

    def _command(self, *, resume: bool) -> list[str | Path]:
        words = [PROGRAM, "run", self._study, "--out", self.folders[SERVER]]
        return [*words, "--workers", "2", "--quiet", *(["--resume"] if resume else [])]

    def _crowd_in(self, process: "subprocess.Popen[str]") -> None:
        """While the run lasts, resume it in another process, which is refused."""
        for trouble in self.schedule.troubles:
            while process.poll() is None and not self._has_begun():
                with_patience(process)
            if process.poll() is not None:
                return
            done = subprocess.run(
                self._command(resume=True), capture_output=True, text=True, check=False
            )
            self._crowd.append(trouble)
            if process.poll() is None and "another process is running in it" not in done.stderr:
                raise AssertionError(f"a second process was let in: {done}")

    def _has_begun(self) -> bool:
        return any(isinstance(event, RoundFinished) for event in events(self.folders[SERVER]))


def with_patience(process: "subprocess.Popen[str]") -> None:
    """Wait a moment, or until the process ends."""
    try:
        process.wait(0.01)
    except subprocess.TimeoutExpired:
        return
