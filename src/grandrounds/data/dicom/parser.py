"""A process that parses files within limits, seen from the one that asks it.

It is asked for several files at once and answers in their order. Where it dies or is ended, the
oldest file without an answer is the one that did it, and the others are asked for again.
"""

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Generator, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from grandrounds.core.errors import RunFailed
from grandrounds.core.sentence import Reason
from grandrounds.data.dicom.instance import RefusedFile, trouble_with

_LONGEST_ANSWER = 64 << 20  # bytes
_START_SECONDS = 60.0
_AT_ONCE = 16  # files that are asked for before the first is answered
_DYING = 2.0  # seconds that a process may take to end once it has closed its output
_MODULE = "grandrounds.data.dicom.child"
_Asked: TypeAlias = tuple[Path, Mapping[str, Any]]
Parsed: TypeAlias = Mapping[str, Any] | RefusedFile | None


@dataclass(frozen=True)
class Limits:
    """What one process may use: bytes of memory and of a file, voxels of a volume, seconds a file.

    `seconds` counts processor time; `wall` what a clock on the wall shows. `processes` work side by
    side.
    """

    memory: int = 3 << 30
    file: int = 2 << 30
    voxels: int = 1 << 28
    seconds: float = 30.0
    wall: float = 120.0
    processes: int = 2


USUAL_LIMITS = Limits()


class Parser:
    """One process that parses, and the file without a name that it writes voxels into."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._voxels = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as this object
        self._process: subprocess.Popen[bytes] | None = None
        self._read = b""  # what follows the last answer

    def close(self) -> None:
        self._end()
        self._voxels.close()

    def clear(self) -> None:
        """Forget the voxels of the volume before."""
        self._voxels.truncate(0)

    def voxels(self, shape: tuple[int, int, int]) -> NDArray[np.float32] | None:
        """Return what was written; None where it is not all there."""
        self._voxels.seek(0)
        count = shape[0] * shape[1] * shape[2]
        found = np.fromfile(self._voxels, np.float32, count)
        return found.reshape(shape) if found.size == count else None

    def ask(self, asked: Iterable[_Asked]) -> Generator[Parsed, None, None]:
        """Yield, in order, what the process found in each file, or why there is nothing."""
        waiting, sent = deque(asked), deque[_Asked]()
        try:
            while waiting or sent:
                answer = self._next(waiting, sent)
                path, _ = sent.popleft()
                if self._process is None:
                    waiting.extendleft(reversed(sent))
                    sent.clear()
                yield self._judged(path, answer)
        finally:
            if sent:  # whoever asked gave up, and the answers would be taken for others
                self._end()

    def _next(self, waiting: deque[_Asked], sent: deque[_Asked]) -> Mapping[str, Any]:
        """Return the answer for the oldest file that was sent; a process that failed is ended.

        One that has died may have answered before, so what it wrote is read to its end.
        """
        try:
            process = self._running(fresh=not sent)
            deadline = time.monotonic() + self._limits.wall
            with suppress(BrokenPipeError):
                while waiting and len(sent) < _AT_ONCE:
                    sent.append(waiting.popleft())
                    _send(process, self._request(*sent[-1]), deadline)
            answer = _plain(self._line(process, deadline))
        except TimeoutError:
            answer = {"trouble": "time", "numbers": {"most": self._limits.wall}, "tired": True}
        except EOFError:
            answer = self._death()
        except (ValueError, RecursionError):
            answer = {"trouble": "answer", "tired": True}
        if answer.get("tired"):
            self._end()
        return answer

    def _request(self, path: Path, request: Mapping[str, Any]) -> bytes:
        own = {"path": str(path), "bytes": self._limits.file, "seconds": self._limits.seconds}
        return json.dumps({**request, **own}).encode() + b"\n"

    def _judged(self, path: Path, answer: Mapping[str, Any]) -> Parsed:
        code = answer.get("trouble")
        if code is None:
            return cast("Mapping[str, Any] | None", answer.get("found"))
        if code == "closed":
            number = answer.get("number")
            return trouble_with(path, "closed", why=Reason(number if type(number) is int else 0))
        if code == "memory":
            return trouble_with(path, "memory", most=self._limits.memory >> 20)
        told = cast("Mapping[str, object]", answer.get("numbers") or {})
        numbers = {name: each for name, each in told.items() if isinstance(each, int | float)}
        return trouble_with(path, str(code), **numbers)

    def _death(self) -> Mapping[str, Any]:
        """Return what a process died of that has closed its output."""
        assert self._process is not None
        try:
            status = self._process.wait(_DYING)
        except subprocess.TimeoutExpired:
            status = 0
        if status == -signal.SIGXCPU:
            return {"trouble": "time", "numbers": {"most": self._limits.seconds}, "tired": True}
        if status < 0:
            return {"trouble": "killed", "numbers": {"signal": -status}, "tired": True}
        return {"trouble": "ended", "tired": True}

    def _running(self, *, fresh: bool) -> subprocess.Popen[bytes]:
        """Return the process; one that has died is replaced where nothing was asked of it yet."""
        if fresh and self._process is not None and self._process.poll() is not None:
            self._end()
        if self._process is None:
            self._process = _start(self._limits, self._voxels.fileno())
            try:
                self._line(self._process, time.monotonic() + _START_SECONDS)
            except (EOFError, TimeoutError):
                self._end()
                raise RunFailed(
                    "the process that parses DICOM files does not start; try "
                    f"`{sys.executable} -m {_MODULE} 1 0 0` to see why"
                ) from None
        return self._process

    def _end(self) -> None:
        if (process := self._process) is None:
            return
        self._process, self._read = None, b""
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with suppress(BrokenPipeError):
                    stream.close()

    def _line(self, process: subprocess.Popen[bytes], deadline: float) -> bytes:
        """Return the next line; raises `EOFError`, `TimeoutError`, `ValueError` if too long."""
        assert process.stdout is not None
        parts, length = [self._read], len(self._read)
        while b"\n" not in parts[-1]:
            if not _ready(process.stdout, select.POLLIN, deadline):
                continue
            parts.append(os.read(process.stdout.fileno(), 1 << 20))
            length += len(parts[-1])
            if not parts[-1]:
                raise EOFError
            if length > _LONGEST_ANSWER:
                raise ValueError("an answer is too long")
        line, _, self._read = b"".join(parts).partition(b"\n")
        return line


def _start(limits: Limits, voxels: int) -> subprocess.Popen[bytes]:
    """Start a process: one thread for arithmetic, and no folder but ours to import from."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(each for each in sys.path if each),
        **dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
        "MALLOC_ARENA_MAX": "2",  # each thread's arena counts against the memory
    }
    numbers = (voxels, limits.memory, 4 * limits.voxels)
    return subprocess.Popen(
        [sys.executable, "-P", "-m", _MODULE, *map(str, numbers)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        pass_fds=(voxels,),
        env=environment,
        bufsize=0,
    )


def _send(process: subprocess.Popen[bytes], line: bytes, deadline: float) -> None:
    assert process.stdin is not None
    left = memoryview(line)
    os.set_blocking(process.stdin.fileno(), False)
    while left:
        if _ready(process.stdin, select.POLLOUT, deadline):
            left = left[os.write(process.stdin.fileno(), left) :]


def _ready(stream: IO[bytes], event: int, deadline: float) -> bool:
    """Wait until a pipe can be read or written; unlike select, however many files are open."""
    waiting = select.poll()
    waiting.register(stream.fileno(), event)
    return bool(waiting.poll(1000 * _left(deadline)))


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _plain(line: bytes) -> Mapping[str, Any]:
    """Return the object of a line; raises `ValueError` where it is none, or holds no number."""

    def refuse(word: str) -> NoReturn:
        raise ValueError(word)

    found = json.loads(line, parse_constant=refuse)
    if not isinstance(found, dict):
        raise ValueError("an answer is an object")
    return cast("Mapping[str, Any]", found)
