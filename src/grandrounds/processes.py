"""Processes that this program starts end with the one that started them."""

import multiprocessing as mp
import os
from threading import Thread


def end_with_parent() -> None:
    """End this process as soon as its parent has ended, however that came about."""
    Thread(target=_watch, daemon=True).start()


def _watch() -> None:
    parent = mp.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
