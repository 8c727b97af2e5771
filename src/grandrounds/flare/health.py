"""Whether a party of a federation is well is told here to programs on its own machine.

A process beside the kit's looks every few seconds at that process, at its connections, and at the
kit's journals and logs; it answers at once, with what it saw last. It ends with the kit's process.
"""

# psutil has no type stubs.
# pyright: reportMissingModuleSource=false

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from socket import socket
from threading import Thread

import psutil

from grandrounds.core.loopback import HERE, LoopbackReader, LoopbackServer, listen
from grandrounds.core.processes import end_when_orphaned
from grandrounds.flare.kit import Kit
from grandrounds.flare.metrics import Sample, kit_metrics, to_text

_PAUSE = 5.0  # seconds between two looks, at least
_SHARE = 4  # a pause is so many times as long as the look before it: training needs the cores
REACHED_WITHIN = 60.0  # seconds since a site was last seen connected to its server
_SHORTLY = 1.0  # second: a server listens on this machine
_METRICS = "text/plain; version=0.0.4; charset=utf-8"  # Prometheus' text format
_TEXT = "text/plain; charset=utf-8"
_PAGES = "There are two pages here: /health and /metrics"


@dataclass(frozen=True)
class Health:
    """A party at one moment: what is wrong, in a sentence, empty where it is well; its metrics."""

    wrong: str
    metrics: str


@dataclass
class HealthWatch:
    """Looks at the process of a kit, whose id is `process`, and at what lies in the kit."""

    kit: Kit
    process: int
    seen: Health = field(
        default_factory=lambda: Health("this party has not been looked at yet", "")
    )
    _reached: float | None = field(default=None, init=False)

    def keep(self) -> None:
        """Look for ever."""
        while True:
            began = time.monotonic()
            self.look()
            time.sleep(max(_PAUSE, _SHARE * (time.monotonic() - began)))

    def look(self) -> None:
        """Look once, and keep what was seen."""
        lives = psutil.pid_exists(self.process)
        if lives and self._is_connected():
            self._reached = time.monotonic()
        wrong = self._wrong() if lives else "the party's process has ended"
        own = [
            Sample("up", "Whether the party's process lives.", float(lives)),
            Sample("healthy", "Whether /health answers 200.", float(not wrong)),
        ]
        if self._reached is not None and self.kit.kind == "client":
            ago = time.monotonic() - self._reached
            about = "Seconds since the site was last seen connected to its server."
            own.append(Sample("seconds_since_server_reached", about, ago))
        self.seen = Health(wrong, to_text([*own, *kit_metrics(self.kit)]))

    def _wrong(self) -> str:
        is_site = self.kit.kind == "client"
        if self._reached is None:
            yet = "the site has not reached its server" if is_site else "the server does not listen"
            return f"{yet} yet"
        if (ago := time.monotonic() - self._reached) <= (REACHED_WITHIN if is_site else _SHORTLY):
            return ""
        what = "the site has not reached its server" if is_site else "the server has not listened"
        return f"{what} for {ago:.0f} s"

    def _is_connected(self) -> bool:
        """Tell whether a site is connected to the server's port, or a server listens on it."""
        port, is_site = self.kit.address[1], self.kit.kind == "client"
        with suppress(psutil.Error):
            lines = psutil.Process(self.process).net_connections("tcp")
            if is_site:
                joined = [line for line in lines if line.status == psutil.CONN_ESTABLISHED]
                return any(line.raddr and line.raddr.port == port for line in joined)
            listens = [line for line in lines if line.status == psutil.CONN_LISTEN]
            return any(line.laddr.port == port for line in listens)
        return False


class HealthServer(LoopbackServer):
    """Answers with what a watch saw last."""

    def __init__(self, watch: HealthWatch, listening: socket | None = None) -> None:
        super().__init__(0, HealthReader, listening)
        self.watch = watch


class HealthReader(LoopbackReader):
    """Answers one request of a program on this machine."""

    def do_GET(self) -> None:  # noqa: N802 - as `http.server` calls it
        """Say whether the party is well, or give its metrics."""
        assert isinstance(self.server, HealthServer)
        seen = self.server.watch.seen
        if not self.is_for_this_server:
            self.answer(HTTPStatus.FORBIDDEN, _TEXT, f"This is for programs on {HERE}.")
        elif not self.only_reads:
            self.answer(HTTPStatus.METHOD_NOT_ALLOWED, _TEXT, "This is only to be read.")
        elif self.path == "/metrics":
            self.answer(HTTPStatus.OK, _METRICS, seen.metrics)
        elif self.path != "/health":
            self.answer(HTTPStatus.NOT_FOUND, _TEXT, _PAGES)
        elif seen.wrong:
            self.answer(HTTPStatus.SERVICE_UNAVAILABLE, _TEXT, f"{seen.wrong}\n")
        else:
            self.answer(HTTPStatus.OK, _TEXT, "ok\n")

    do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_GET  # noqa: N815


def start_health(kit: Kit, port: int) -> str:
    """Start the process that tells of this one, which becomes the kit's; return its address.

    Raises `BadStudy` where the port cannot be opened.
    """
    with listen(port, "--health") as door:
        words = [str(kit.folder.absolute()), str(door.fileno()), str(os.getpid())]
        command = [sys.executable, "-m", "grandrounds.flare.health", *words]
        subprocess.Popen(command, pass_fds=(door.fileno(),), stdin=subprocess.DEVNULL)
        return f"http://{HERE}:{door.getsockname()[1]}/health"


def tell(words: Sequence[str]) -> None:
    """Serve the health of a kit on a socket, until the process of this id ends."""
    kit, door, process = words
    if os.getppid() != int(process):
        return
    end_when_orphaned()
    watch = HealthWatch(Kit(Path(kit)), int(process))
    Thread(target=watch.keep, daemon=True).start()
    with suppress(KeyboardInterrupt), HealthServer(watch, socket(fileno=int(door))) as server:
        server.serve_forever()


if __name__ == "__main__":
    tell(sys.argv[1:])
