"""The command line as a user meets it: in a process of its own, or here where words matter."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from grandrounds.cli import main
from grandrounds.core.errors import BadFolder
from grandrounds.core.events import Event
from grandrounds.core.journal import read_journal

PROGRAM = Path(sys.executable).parent / "grandrounds"


@dataclass(frozen=True)
class Done:
    """What a command came to."""

    code: int
    out: str
    err: str


def program(*words: str | Path, limit: Callable[[], None] | None = None) -> Done:
    """Run the installed command in a process of its own."""
    done = subprocess.run(
        [PROGRAM, *words], capture_output=True, text=True, check=False, preexec_fn=limit
    )
    return Done(done.returncode, done.stdout, done.stderr)


def hear_ctrl_c() -> None:
    """Let a process hear Ctrl-C, which a shell's background job and all its children ignore."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def started(*words: str | Path) -> Iterator[subprocess.Popen[str]]:
    """Start the installed command, and see that it is gone in the end."""
    process = subprocess.Popen(
        [PROGRAM, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=hear_ctrl_c,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def inside(
    patch: pytest.MonkeyPatch, capture: pytest.CaptureFixture[str], *words: str | Path
) -> Done:
    """Run a command in this process: the same code without seconds of imports."""
    handler = signal.getsignal(signal.SIGTERM)
    patch.setattr(sys, "argv", ["grandrounds", *map(str, words)])
    patch.setenv("COLUMNS", "200")
    capture.readouterr()
    try:
        with pytest.raises(SystemExit) as ended:
            main()
    finally:
        signal.signal(signal.SIGTERM, handler)
    captured = capture.readouterr()
    code = ended.value.code
    assert isinstance(code, int), code
    return Done(code, captured.out, captured.err)


def events(folder: Path) -> list[Event]:
    """What a run told so far; nothing where it has not begun."""
    try:
        return [event for _, event in read_journal(folder / "journal.jsonl")]
    except BadFolder:
        return []


def wait_for(folder: Path, wanted: Callable[[list[Event]], bool], *, seconds: float = 240) -> None:
    """Wait until a run has told what is wanted."""
    end = time.monotonic() + seconds
    while not wanted(events(folder)):
        assert time.monotonic() < end, f"{folder}: waited in vain; told: {events(folder)}"
        time.sleep(0.002)


def kill(process: "subprocess.Popen[str]") -> None:
    """End a process at once, without a word to it."""
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


def loaded_by(statement: str) -> set[str]:
    """Return the modules that a fresh process has loaded after a statement."""
    program = f"import sys; {statement}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split("\n")[-2].split())
