"""The report of a study while it runs: one page for a browser on this machine, behind a token.

The page and the stream of its changes are all that is served: no path leads to a file.
"""

import json
import re
import secrets
from collections.abc import Generator
from contextlib import contextmanager, suppress
from html import escape
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from threading import Thread
from urllib.parse import parse_qs

from grandrounds.errors import BadFolder, BadStudy
from grandrounds.report.watch import Board, Sight, Watch, notice

HERE = "127.0.0.1"
ALIVE = 15.0  # seconds of silence after which a word shows who has left
SCRIPT = files("grandrounds.report") / "live.js"
HTML, TEXT, EVENTS = (f"text/{kind}; charset=utf-8" for kind in ("html", "plain", "event-stream"))
ALWAYS = {
    "Allow": "GET, HEAD",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
}
POLICY = (
    "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'unsafe-inline'; img-src data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
OFFLINE_POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
STYLE = """<style>
html { scroll-padding-bottom: 48px; }
#live { position: sticky; bottom: 0; padding: 8px 32px; background: #1c2430; color: #fff;
  font: 15px/1.4 sans-serif; }
@media print { #live { display: none; } }
</style>"""


def serve(folder: Path, *, port: int, as_json: bool) -> None:
    """Show a folder's report until Ctrl-C, and print where; port 0 is any free one.

    Raises `BadFolder` where there is no such folder, `BadStudy` where the port cannot be had.
    """
    if not folder.is_dir():
        raise BadFolder(f"{folder}: no such folder; give the folder that a run is written to")
    reading = notice("Being read", f"The report of {folder} is being made.")
    with suppress(KeyboardInterrupt), _listening(port, Board(reading)) as server:
        print(json.dumps({"url": server.url}) if as_json else server.url, flush=True)
        Watch(folder, server.board).keep()


@contextmanager
def _listening(port: int, board: Board) -> Generator["Server"]:
    try:
        server = Server(port, board)
    except OSError as error:
        raise BadStudy(
            f"--port {port}: {HERE} cannot be listened on there ({error.strerror}); "
            "choose another port, or leave --port out for a free one"
        ) from None
    with server:
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()


class Server(ThreadingHTTPServer):
    """Listens on this machine's own address, for those who hold the token."""

    def __init__(self, port: int, board: Board) -> None:
        super().__init__((HERE, port), Reader)
        self.board = board
        self.token = secrets.token_urlsafe(32)

    @property
    def url(self) -> str:
        """Give the address that opens the page."""
        return f"http://{HERE}:{self.server_port}/?token={self.token}"

    @property
    def hosts(self) -> tuple[str, str]:
        """List the names under which a browser may ask; another name is another site's trick."""
        return f"{HERE}:{self.server_port}", f"localhost:{self.server_port}"

    @property
    def cookie(self) -> str:
        """Give the cookie; browsers tell no ports apart, so its name does."""
        return f"grandrounds-{self.server_port}={self.token}"


class Reader(BaseHTTPRequestHandler):
    """Answers one request of a browser."""

    server_version, sys_version = "grandrounds", ""

    @property
    def live(self) -> Server:
        """Give the server."""
        assert isinstance(self.server, Server)
        return self.server

    def handle(self) -> None:
        """Answer what is asked; a browser that leaves in the midst of it is no error."""
        with suppress(ConnectionError):
            super().handle()

    def log_message(self, format: str, *args: object) -> None:
        """Keep requests, and the token in them, to oneself."""

    def do_GET(self) -> None:
        """Let a reader in, show the page, or push what is new."""
        path, _, query = self.path.partition("?")
        tokens = parse_qs(query).get("token", [])
        if refusal := self._refusal(tokens):
            self._say(*refusal)
        elif tokens:
            cookie = f"{self.live.cookie}; HttpOnly; SameSite=Strict; Path=/"
            self._say(HTTPStatus.SEE_OTHER, "", **{"Set-Cookie": cookie, "Location": "/"})
        elif path == "/":
            self._show(self.live.board.sight)
        elif path == "/events":
            self._stream()
        else:
            self._say(HTTPStatus.NOT_FOUND, "There is one page here: /")

    do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_GET  # noqa: N815

    def _refusal(self, tokens: list[str]) -> tuple[HTTPStatus, str] | None:
        if self.headers.get_all("Host") not in [[host] for host in self.live.hosts]:
            return HTTPStatus.FORBIDDEN, f"This page is for a browser on {HERE}."
        if not (_held(tokens, self.live.token) if tokens else self._has_cookie()):
            return HTTPStatus.FORBIDDEN, "Open the address that grandrounds printed, token and all."
        if self.command not in ("GET", "HEAD"):
            return HTTPStatus.METHOD_NOT_ALLOWED, "This page is only to be read."
        return None

    def _has_cookie(self) -> bool:
        cookies = "; ".join(self.headers.get_all("Cookie", [])).split(";")
        return _held([cookie.strip() for cookie in cookies], self.live.cookie)

    def _say(self, status: HTTPStatus, sentence: str, **headers: str) -> None:
        self._send(status, TEXT, sentence, **headers)

    def _show(self, sight: Sight) -> None:
        nonce = secrets.token_urlsafe(16)
        script = f'<script type="module" nonce="{nonce}">\n{SCRIPT.read_text("utf-8")}</script>'
        page = live_page(sight).replace("</body>", f"{script}\n</body>")
        self._send(HTTPStatus.OK, HTML, page, nonce=nonce)

    def _send(
        self, status: HTTPStatus, kind: str, text: str, *, nonce: str = "", **headers: str
    ) -> None:
        body = text.encode()
        self._open(status, kind, nonce=nonce, **headers, **{"Content-Length": str(len(body))})
        if self.command != "HEAD":
            self.wfile.write(body)

    def _open(self, status: HTTPStatus, kind: str, *, nonce: str = "", **headers: str) -> None:
        policy = POLICY.format(nonce=nonce) if nonce else "default-src 'none'"
        told = {"Content-Type": kind, "Content-Security-Policy": policy, **ALWAYS, **headers}
        self.send_response(status)
        for name, value in told.items():
            self.send_header(name, value)
        self.end_headers()

    def _stream(self) -> None:
        """Push the newest sight, then each that follows, until the browser leaves."""
        self._open(HTTPStatus.OK, EVENTS)
        if self.command == "HEAD":
            return
        self.wfile.write(b"retry: 1000\n\n")
        number = -1
        while True:
            sight = self.live.board.after(number, seconds=ALIVE)
            number = sight.number if sight else number
            self.wfile.write(_event(sight) if sight else b": still here\n\n")


def live_page(sight: Sight) -> str:
    """Turn a report that opens offline into one that listens: another policy, and a live line."""
    page = OFFLINE_POLICY.sub("", sight.page).replace("</head>", f"{STYLE}\n</head>", 1)
    line = (
        f'<div id="live" role="status" data-number="{sight.number}">{escape(sight.progress)}</div>'
    )
    return page.replace("</body>", f"{line}\n</body>")


def _event(sight: Sight) -> bytes:
    told = json.dumps({"page": live_page(sight), "progress": sight.progress})
    return f"id: {sight.number}\nevent: report\ndata: {told}\n\n".encode()


def _held(found: list[str], secret: str) -> bool:
    return any(secrets.compare_digest(each.encode(), secret.encode()) for each in found)
