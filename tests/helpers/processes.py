"""Processes for tests, forked from one that has loaded what takes seconds to load.

It is clean otherwise, as a spawned process is: no thread runs in it, and nothing was computed.
The commands that tests start spawn theirs, as they do for a user.
"""

import multiprocessing as mp
from multiprocessing.context import ForkServerContext

HEAVY = ["grandrounds.runs.comparison", "torch._dynamo", "monai.metrics.regression"]


def loaded() -> ForkServerContext:
    """Give the context of such processes."""
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(HEAVY)
    return context
