"""Processes that this program starts end with the one that started them."""

import multiprocessing as mp
import os
import time
from threading import Thread


def end_with_parent() -> None:
    """End this process as soon as its parent has ended, however that came about."""
    Thread(target=_watch, daemon=True).start()


def _watch() -> None:
    parent = mp.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def end_when_orphaned() -> None:
    """End this process within seconds of its parent's end, whoever started it and how."""
    Thread(target=_watch_id, args=(os.getppid(),), daemon=True).start()


def _watch_id(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)
