"""Processes that this program starts are spawned, and end with the one that started them.

A process holds a file for as long as it lives, so that others can tell whether it does.
"""

import fcntl
import multiprocessing as mp
import os
import time
from collections.abc import Callable, Generator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing.managers import SyncManager
from multiprocessing.process import BaseProcess
from pathlib import Path
from queue import Queue
from threading import Thread

# A forked process would inherit locks without the threads that hold them.
SPAWN = mp.get_context("spawn")
_TRIES, _MOMENT = 5, 0.05  # who asks whether a file is held has it for a moment


def start_process(target: Callable[..., None], *arguments: object) -> BaseProcess:
    """Start a process that ends with this one; arguments may be connections."""
    process = SPAWN.Process(target=_run, args=(target, *arguments), daemon=True)
    process.start()
    return process


def _run(target: Callable[..., None], *arguments: object) -> None:
    end_with_parent()
    target(*arguments)


@contextmanager
def process_pool(
    workers: int, begin: Callable[[int], None]
) -> Generator[tuple[ProcessPoolExecutor, SyncManager], None, None]:
    """Start a pool of processes for tasks, and a manager of the objects that the tasks share.

    Each process calls `begin` with its number before its first task.
    """
    manager = SyncManager(ctx=SPAWN)
    manager.start(end_with_parent)
    with manager:
        numbers = manager.Queue()
        for number in range(workers):
            numbers.put(number)
        with ProcessPoolExecutor(workers, SPAWN, _begin, (begin, numbers)) as pool:
            yield pool, manager


def _begin(begin: Callable[[int], None], numbers: "Queue[int]") -> None:
    end_with_parent()
    begin(numbers.get())


def end_with_parent() -> None:
    """End this process as soon as its parent has ended, for whatever reason."""
    Thread(target=_watch, daemon=True).start()


def _watch() -> None:
    parent = mp.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def end_when_orphaned() -> None:
    """End this process within seconds of its parent's end, however it was started."""
    Thread(target=_watch_id, args=(os.getppid(),), daemon=True).start()


def _watch_id(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def hold(path: Path) -> int | None:
    """Hold a file until this process ends, also where another program replaces it by `exec`.

    Return the file's descriptor, or None where another process holds the file.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    for _ in range(_TRIES):
        if _lock(descriptor):
            os.set_inheritable(descriptor, True)
            return descriptor
        time.sleep(_MOMENT)
    os.close(descriptor)
    return None


def is_held(path: Path) -> bool:
    """Tell whether a living process holds a file; a link or a missing file is not held."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return not _lock(descriptor)
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
