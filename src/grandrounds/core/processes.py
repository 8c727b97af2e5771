"""Processes that this program starts are spawned, and end with the one that started them."""

import multiprocessing as mp
import os
import time
from collections.abc import Callable, Generator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing.managers import SyncManager
from multiprocessing.process import BaseProcess
from queue import Queue
from threading import Thread

# A forked process would inherit locks without the threads that hold them.
SPAWN = mp.get_context("spawn")


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
