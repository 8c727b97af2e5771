"""A signal that stops a run waits where it would be lost or would do harm."""

import signal
from collections.abc import Generator
from contextlib import contextmanager
from threading import current_thread, main_thread
from types import FrameType

_STOPPING = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stopping_later() -> Generator[None, None, None]:
    """Let Ctrl-C and SIGTERM wait until this context ends; only the main thread hears of them."""
    if current_thread() is not main_thread():
        yield
        return
    came: list[tuple[int, FrameType | None]] = []

    def wait(number: int, frame: FrameType | None) -> None:
        came.append((number, frame))

    handlers = {number: signal.signal(number, wait) for number in _STOPPING}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        for number, frame in came:
            handler = handlers[signal.Signals(number)]
            if callable(handler):
                handler(number, frame)
            elif handler is not signal.SIG_IGN:
                signal.raise_signal(number)
