"""A small HTTP server for this machine alone: it bounds its connections, and drops silent ones.

What is served, and to whom, is said by those who derive from it.
"""

import socket
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any, TypeAlias, TypeVar

from grandrounds.core.errors import BadStudy

_Request: TypeAlias = socket.socket | tuple[bytes, socket.socket]  # as socketserver declares it
HERE = "127.0.0.1"
REQUEST_WITHIN = 5.0  # seconds in which a connection must bring a whole request that is let in
TAKEN_WITHIN = 30.0  # seconds in which a reader must take what is sent
MOST_CONNECTIONS = 32  # connections at once, each with a thread
ALWAYS = {
    "Allow": "GET, HEAD",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
}


@dataclass
class Connections:
    """The open connections; those that have not been let in yet give way to others."""

    _open: set[socket.socket] = field(default_factory=set[socket.socket])
    _silent: dict[socket.socket, float] = field(default_factory=dict[socket.socket, float])
    _lock: Lock = field(default_factory=Lock)

    def admit(self, connection: socket.socket) -> bool:
        """Add a connection; where there are too many, the longest silent one is ended for it."""
        with self._lock:
            if len(self._open) >= MOST_CONNECTIONS and not self._end_oldest():
                return False
            self._open.add(connection)
            self._silent[connection] = time.monotonic()
            return True

    def trust(self, connection: socket.socket) -> None:
        """Note that a connection has been let in."""
        with self._lock:
            self._silent.pop(connection, None)

    def forget(self, connection: socket.socket) -> None:
        """Remove a connection that is over."""
        with self._lock:
            self._open.discard(connection)
            self._silent.pop(connection, None)

    def end_silent(self) -> None:
        """End the connections that have been silent for too long."""
        begun_before = time.monotonic() - REQUEST_WITHIN
        with self._lock:
            while self._silent and next(iter(self._silent.values())) < begun_before:
                self._end_oldest()

    def _end_oldest(self) -> bool:
        """End the longest silent connection and so its thread; return whether there was one."""
        if not self._silent:
            return False
        connection = next(iter(self._silent))
        del self._silent[connection]
        self._open.discard(connection)
        with suppress(OSError):  # it has ended by itself
            connection.shutdown(socket.SHUT_RDWR)
        return True


class LoopbackServer(ThreadingHTTPServer):
    """Listens on the loopback address; on the socket that it is given, or on a port."""

    request_queue_size = MOST_CONNECTIONS

    def __init__(
        self, port: int, reader: type["LoopbackReader"], listening: socket.socket | None = None
    ) -> None:
        super().__init__((HERE, port), reader, bind_and_activate=listening is None)
        self.connections = Connections()
        if listening:
            self.socket.close()
            self.socket, self.server_port = listening, listening.getsockname()[1]

    def process_request(self, request: _Request, client_address: Any) -> None:
        """Answer a connection in a thread of its own, if there are not too many."""
        if self.connections.admit(_socket(request)):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def shutdown_request(self, request: _Request) -> None:
        """Close a connection that is over."""
        self.connections.forget(_socket(request))
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """End silent connections, a few times a second."""
        self.connections.end_silent()

    @property
    def hosts(self) -> tuple[str, str]:
        """Return the allowed Host headers; another one comes from DNS rebinding."""
        return f"{HERE}:{self.server_port}", f"localhost:{self.server_port}"


class LoopbackReader(BaseHTTPRequestHandler):
    """Answers the requests of one connection."""

    timeout = TAKEN_WITHIN
    server_version, sys_version = "grandrounds", ""

    @property
    def loopback(self) -> LoopbackServer:
        """Return the server."""
        assert isinstance(self.server, LoopbackServer)
        return self.server

    @property
    def is_for_this_server(self) -> bool:
        """Tell whether a request names this server, and only this one."""
        return self.headers.get_all("Host") in [[host] for host in self.loopback.hosts]

    @property
    def only_reads(self) -> bool:
        """Tell whether a request changes nothing."""
        return self.command in ("GET", "HEAD")

    def handle(self) -> None:
        """Answer the requests; a reader that disconnects or takes nothing is no error."""
        with suppress(OSError):
            super().handle()

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing: requests may hold a secret."""

    def open_answer(self, status: HTTPStatus, kind: str, policy: str, **headers: str) -> None:
        """Send the head of an answer, with the page's policy."""
        all_headers = {"Content-Type": kind, "Content-Security-Policy": policy, **ALWAYS, **headers}
        self.send_response(status)
        for name, value in all_headers.items():
            self.send_header(name, value)
        self.end_headers()

    def answer(
        self,
        status: HTTPStatus,
        kind: str,
        text: str,
        *,
        policy: str = "default-src 'none'",
        **headers: str,
    ) -> None:
        """Send a whole answer, or its head alone where that is asked for."""
        body = text.encode()
        self.open_answer(status, kind, policy, **headers, **{"Content-Length": str(len(body))})
        if self.command != "HEAD":
            self.wfile.write(body)


def _socket(request: _Request) -> socket.socket:
    assert isinstance(request, socket.socket)  # a server of streams has no other request
    return request


def listen(port: int, option: str) -> socket.socket:
    """Return a socket that listens here; port 0 is any free one. Raises `BadStudy`.

    `option` is what the port was given by.
    """
    found = socket.socket()
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((HERE, port))
        found.listen(MOST_CONNECTIONS)
    except OSError as error:
        found.close()
        raise BadStudy(
            f"{option} {port}: {HERE} cannot be listened on there ({error.strerror}); "
            "choose another port, or 0 for a free one"
        ) from None
    return found


Server = TypeVar("Server", bound=LoopbackServer)


@contextmanager
def serving(server: Server) -> Generator[Server, None, None]:
    """Answer requests in threads of this process meanwhile."""
    with server:
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()
