"""A signal that stops a run is never lost, wherever it comes."""

import os
import signal
from collections.abc import Generator
from pathlib import Path
from threading import Thread, Timer

import pytest
import torch

from grandrounds.core.signals import stopping_later
from grandrounds.core.weights import read, write


@pytest.fixture(autouse=True)
def _ctrl_c_stops() -> Generator[None, None, None]:
    """Ctrl-C as in a terminal: a shell that starts a program beside itself lets it ignore that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_until_the_context_ends(number: int):
    told: list[int] = []
    before = signal.signal(number, lambda number, _: told.append(number))
    try:
        with stopping_later():
            os.kill(os.getpid(), number)
            assert told == []
        assert told == [number]
        os.kill(os.getpid(), number)
        assert told == [number, number]
    finally:
        signal.signal(number, before)


def test_ctrl_c_that_waited_stops_what_comes_next():
    reached: list[str] = []
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012
        with stopping_later():
            os.kill(os.getpid(), signal.SIGINT)
            reached.append("the end of the context")
        reached.append("more")
    assert reached == ["the end of the context"]


def test_other_threads_hear_no_signals_and_need_no_context():
    problems: list[BaseException] = []

    def read_there() -> None:
        try:
            with stopping_later():
                pass
        except BaseException as problem:
            problems.append(problem)

    thread = Thread(target=read_there)
    thread.start()
    thread.join()
    assert problems == []


def test_ctrl_c_while_a_file_is_read_is_ctrl_c(tmp_path: Path):
    """Within safetensors it came out as a ValueError, and the run was called failed."""
    path = tmp_path / "weights.safetensors"
    write(path, {f"t{number}": torch.ones(20, 20) for number in range(300)}, {})
    interrupted = 0
    for number in range(40):
        timer = Timer(0.0002 * (1 + number % 15), os.kill, (os.getpid(), signal.SIGINT))
        try:
            timer.start()
            for _ in range(1000):
                assert len(read(path)[0]) == 300
        except KeyboardInterrupt:
            interrupted += 1
        timer.join()
    assert interrupted == 40
