import os
import signal
from multiprocessing.connection import Connection
from typing import Any

import pytest

from grandrounds.core.errors import SiteFailed
from grandrounds.core.messages import Describe
from grandrounds.core.processes import SPAWN, start_process
from grandrounds.engines.process_pool import Worker


def killed_while_it_answers(link: "Connection[Any, Any]") -> None:
    """Announce an answer of 1000 bytes, send ten of them, and be killed."""
    link.recv()
    os.write(link.fileno(), (1000).to_bytes(4, "big") + bytes(10))
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_a_worker_that_is_killed_in_the_middle_of_an_answer_has_failed():
    ours, theirs = SPAWN.Pipe()
    process = start_process(killed_while_it_answers, theirs)
    theirs.close()
    worker = Worker(("alder",), process, ours)
    worker.begin("alder", Describe(), ())
    site, result = worker.result()
    assert site == "alder"
    assert isinstance(result, SiteFailed)
    assert result.card.message == "its process ended with exit code -9"
    worker.end()
