"""A run in a process of its own that is killed in the middle of writing a file."""

import os
import signal
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from grandrounds.runs.loop import run_study as run
from grandrounds.study.study import Study
from tests.helpers.processes import loaded

Moment = Literal["half written", "renamed"]


def die() -> None:
    """End this process as kill -9 does: nothing is closed, nothing is cleaned up."""
    os.kill(os.getpid(), signal.SIGKILL)


def half_written(descriptor: int) -> None:
    """Leave half of a temporary file behind; a folder's names are flushed whole."""
    if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
        os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
    die()


def counted(before: Callable[..., None], action: Callable[..., None], at: int, *, dies_first: bool):
    """The action, but the call of this number is deadly: before it, or right after it."""
    calls = 0

    def act(*arguments: object) -> None:
        nonlocal calls
        calls += 1
        if calls == at and dies_first:
            before(*arguments)
        action(*arguments)
        if calls == at:
            before(*arguments)

    return act


def run_and_die(study: Study, folder: Path, moment: Moment, at: int) -> None:
    """Run or resume, and be killed at the write of this number."""
    if moment == "half written":
        os.fsync = counted(half_written, os.fsync, at, dies_first=True)
    else:
        os.replace = counted(lambda *_: die(), os.replace, at, dies_first=False)
    run(study, folder, resume=(folder / "study.toml").exists())


def killed(study: Study, folder: Path, moment: Moment, at: int) -> bool:
    """Run in a fresh process until its write number `at`; tell whether that killed it."""
    process = loaded().Process(target=run_and_die, args=(study, folder, moment, at))
    process.start()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0
