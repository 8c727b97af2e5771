"""The live report of a folder, on a server of this process."""

import socket
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from threading import Thread

from grandrounds.core.journal import Journal
from grandrounds.report.page.live import FolderWatch, LiveServer, SnapshotBoard, waiting
from tests.helpers.run_folders import PFLSYNTH, one_round


class Cuttable(LiveServer):
    """A server whose connections can be cut, as a network does."""

    def get_request(self) -> tuple[socket.socket, tuple[str, int]]:
        accepted, address = super().get_request()
        self.accepted = [*getattr(self, "accepted", []), accepted]
        return accepted, address

    def cut(self) -> None:
        for accepted in self.accepted:
            with suppress(OSError):  # an answered request's is closed already
                accepted.shutdown(socket.SHUT_RDWR)


@dataclass(frozen=True)
class Shown:
    """A folder on a server of this process; `watch.look()` is what the server does by itself."""

    folder: Path
    watch: FolderWatch
    server: Cuttable

    def get(
        self, target: str, *, method: str = "GET", host: str = "", cookie: str = ""
    ) -> HTTPResponse:
        connection = HTTPConnection("127.0.0.1", self.server.server_port, timeout=10)
        headers = {"Host": host or self.server.hosts[0], "Cookie": cookie}
        connection.request(method, target, headers={k: v for k, v in headers.items() if v})
        return connection.getresponse()


@contextmanager
def shown(folder: Path) -> Generator[Shown]:
    board = SnapshotBoard(waiting(folder))
    with Cuttable(0, board) as server:
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield Shown(folder, FolderWatch(folder, board), server)
        server.shutdown()


def go_on(folder: Path, number: int) -> None:
    for event in one_round(PFLSYNTH, number):
        Journal(folder / "journal.jsonl").append(event)
