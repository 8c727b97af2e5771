"""Harm that a process does to itself; in a process of the nemesis alone.

It needs nothing of the product until the process itself has loaded it, so that a sitecustomize can
install it before anything else.
"""

import json
import os
import re
import resource
import signal
import stat
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.nemesis.faults import SERVER, Harm

CUSTOM = """
import sys
if {condition}:
    from tests.nemesis import harm
    harm.install_told({told!r})
"""
FULL = 1024  # bytes that a file may have when the disk is full
_STATE = re.compile(r"round-0*(\d+)\.safetensors")


def install_told(told: str) -> None:
    """Install harms that a text tells."""
    marks, harms = json.loads(told)
    install([Harm(**each) for each in harms], Path(marks))


def install(harms: Sequence[Harm], marks: Path) -> None:
    """Let each harm happen in this process, once in a run."""
    strikes = {harm: _Strike(harm, marks / harm.mark) for harm in harms}
    _watch_files([strike for harm, strike in strikes.items() if harm.moment != "training"])
    training = [strike for harm, strike in strikes.items() if harm.moment == "training"]
    if training:
        _watch_training(training)


class _Strike:
    """A harm, and the file that says that it happened: with the process's id."""

    def __init__(self, harm: Harm, mark: Path) -> None:
        self.harm, self.mark = harm, mark

    def __call__(self) -> None:
        if not self.begin():
            return
        match self.harm.deed:
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            case "full disk":
                hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
                resource.setrlimit(resource.RLIMIT_FSIZE, (FULL, hard))
            case "clock":
                shift_clock(self.harm.seconds)

    def begin(self) -> bool:
        """Note that it happens now; tell whether it had not yet."""
        try:
            with self.mark.open("x") as file:
                file.write(str(os.getpid()))
        except FileExistsError:
            return False
        return True

    def is_due(self, moment: str, party: str, number: int) -> bool:
        here = (self.harm.moment, self.harm.party, self.harm.round)
        return here == (moment, party, number) and not self.mark.exists()


def shift_clock(seconds: float) -> None:
    """Let this process's clock be off; what measures time that passes is not."""
    clock = time.time
    time.time = lambda: clock() + seconds
    identity = sys.modules.get("grandrounds.study.identity")
    if identity:
        from datetime import datetime, timedelta, tzinfo

        class Shifted(datetime):
            @classmethod
            def now(cls, tz: tzinfo | None = None) -> Any:
                return datetime.now(tz) + timedelta(seconds=seconds)

        vars(identity)["datetime"] = Shifted


def _place(path: str) -> tuple[str, int] | None:
    """Return whose saved state a file is, and of which round."""
    found = _STATE.search(path)
    if not found:
        return None
    site = re.search(r"/sites/([^/]+)/", path)
    return (site[1] if site else SERVER), int(found[1])


def _watch_files(strikes: Sequence[_Strike]) -> None:
    flush, rename = os.fsync, os.replace

    def fsync(descriptor: int) -> None:
        path = str(Path(f"/proc/self/fd/{descriptor}").readlink())
        for strike in _due(strikes, "writing", path):
            _leave_half(descriptor, strike)
            strike()
        for strike in _due(strikes, "written", path):
            strike()
        flush(descriptor)
        for strike in _due(strikes, "journal", path):
            strike()

    def replace(source: Any, target: Any, **options: Any) -> None:
        rename(source, target, **options)
        for strike in _due(strikes, "named", str(target)):
            strike()

    os.fsync, os.replace = fsync, replace


def _due(strikes: Sequence[_Strike], moment: str, path: str) -> list[_Strike]:
    """Return what happens at this moment of a file."""
    if moment == "journal":
        place = (SERVER, _last_round(Path(path))) if path.endswith("/journal.jsonl") else None
    else:
        place = _place(path)
    return [each for each in strikes if place and each.is_due(moment, *place)]


def _leave_half(descriptor: int, strike: _Strike) -> None:
    """Cut what a killed process was writing; a folder's names are flushed whole."""
    if strike.harm.deed == "kill" and not stat.S_ISDIR(os.fstat(descriptor).st_mode):
        os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)


def _last_round(journal: Path) -> int:
    return int(json.loads(journal.read_bytes().splitlines()[-1])["round"])


def _watch_training(strikes: Sequence[_Strike]) -> None:
    from grandrounds.site import training
    from grandrounds.site.local_round import SiteRound

    batches, step = SiteRound.batches, training.step

    def disturbed(self: SiteRound, *, epochs: int = 0) -> Any:
        site = self._site_model.site.name
        due = [each for each in strikes if each.is_due("training", site, self.round)]
        training.step = _first_step(step, due) if due else step
        return batches(self, epochs=epochs)

    SiteRound.batches = disturbed


def _first_step(step: Callable[..., None], due: Sequence[_Strike]) -> Callable[..., None]:
    from grandrounds.site import training

    def first(*arguments: object) -> None:
        training.step = step
        step(*arguments)
        for strike in due:
            strike()

    return first


def write_custom(folder: Path, harms: Sequence[Harm], marks: Path, condition: str = "True") -> Path:
    """Write a folder that, on PYTHONPATH, does these harms to processes of which this holds."""
    told = json.dumps([str(marks), [asdict(each) for each in harms]])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sitecustomize.py").write_text(CUSTOM.format(condition=condition, told=told))
    return folder
