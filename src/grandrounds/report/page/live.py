"""The report of a study while it runs: one page for a browser on this machine, behind a token.

The page and the stream of its changes are all that is served: no path leads to a file.
"""

import json
import re
import secrets
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from html import escape
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from threading import Condition, Thread
from typing import NoReturn, TypeAlias
from urllib.parse import parse_qs

from grandrounds.core.errors import BadFolder, BadStudy
from grandrounds.core.events import Failed, Interrupted, RunFinished, StoppedEarly
from grandrounds.core.run_folder import ComparisonFolder, RunFolder
from grandrounds.report.analysis.facts import Facts, read_facts
from grandrounds.report.analysis.run import Ending, Run
from grandrounds.report.page.html import render_page

PAUSE = 1.0  # seconds between two looks, at least
SHARE = 4  # a pause is so many times as long as the look before it: training needs the cores
_PATIENCE = 3  # looks in a row that may find a file half written
Stamp: TypeAlias = tuple[tuple[str, int, int], ...]  # path, bytes, nanoseconds of the last write
NOTICE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title} · Grand Rounds report</title><link rel="icon" href="data:,">
<style>body {{ font: 16px/1.55 sans-serif; margin: 0; }} main {{ padding: 32px; }}
p {{ overflow-wrap: anywhere; }}</style></head>
<body><main><h1>{title}</h1><p>{sentence}</p></main></body></html>"""


def stamp_of(folder: Path) -> Stamp:
    """Tell the state of the files that a report is made of, by their sizes and times."""
    runs = _runs_in(folder)
    paths = [ComparisonFolder(folder).arms, *(run.journal for run in runs)]
    paths += [run.scores for run in runs]
    found = sorted(path for path in paths if path.exists())
    return tuple((str(path), (s := path.stat()).st_size, s.st_mtime_ns) for path in found)


def _runs_in(folder: Path) -> list[RunFolder]:
    """List where runs may be: in the folder itself, and below it as a comparison's."""
    return [RunFolder(folder), *ComparisonFolder(folder).runs()]


def progress(facts: Facts) -> str:
    """Say in a few words how far a run is, or a comparison."""
    runs = [run for arm in facts.arms for run in arm.runs]
    to_come = sum(len(arm.waiting) for arm in facts.arms) + len(facts.waiting) * len(facts.seeds)
    if len(runs) + to_come == 1:
        return _progress(runs[0])
    finished = sum(isinstance(run.ending, RunFinished) for run in runs)
    rounds = sum(len(run.rounds) for run in runs)
    return f"{finished} of {len(runs) + to_come} runs finished, {rounds} rounds so far"


@dataclass(frozen=True)
class Snapshot:
    """What a reader sees at one moment: the page, and in a few words how far the study is."""

    page: str
    progress: str
    number: int = 0


def notice(title: str, sentence: str) -> Snapshot:
    """Say why there is no report."""
    page = NOTICE.format(title=escape(title), sentence=escape(sentence))
    return Snapshot(page, title.lower())


def waiting(folder: Path) -> Snapshot:
    """Say that nothing has started."""
    return notice(
        "Not started yet",
        f"No run has begun in {folder}. This page fills itself as soon as one does.",
    )


@dataclass
class SnapshotBoard:
    """Holds the newest sight, for any number of readers who wait for the next."""

    sight: Snapshot
    _changed: Condition = field(default_factory=Condition, init=False)

    def show(self, sight: Snapshot) -> None:
        """Put up a new sight, and wake who waits."""
        with self._changed:
            self.sight = Snapshot(sight.page, sight.progress, self.sight.number + 1)
            self._changed.notify_all()

    def after(self, number: int, *, seconds: float) -> Snapshot | None:
        """Wait for a newer sight than this number; nothing where none came in time."""
        with self._changed:
            newer = self._changed.wait_for(lambda: self.sight.number > number, timeout=seconds)
            return self.sight if newer else None


@dataclass
class FolderWatch:
    """Puts a folder's report on a board, anew whenever its files change."""

    folder: Path
    board: SnapshotBoard
    _shown: Stamp | None = field(default=None, init=False)
    _failures: int = field(default=0, init=False)

    def keep(self) -> NoReturn:
        """Look again and again."""
        while True:
            began = time.monotonic()
            self.look()
            time.sleep(max(PAUSE, SHARE * (time.monotonic() - began)))

    def look(self) -> None:
        """Show what changed; a folder that cannot be read is shown as such at the third look."""
        stamp = stamp_of(self.folder)
        if stamp == self._shown:
            return
        try:
            sight = sight_of(self.folder)
        except (BadFolder, EOFError) as error:  # EOFError: pictures of which no byte is written
            self._failures += 1
            if self._failures < _PATIENCE:
                return
            sight = notice("The report cannot be made", str(error))
        self._shown, self._failures = stamp, 0
        self.board.show(sight)


def sight_of(folder: Path) -> Snapshot:
    """Make the report of a folder as it is now. Raises `BadFolder`."""
    if not any(run.journal.exists() for run in _runs_in(folder)):
        return waiting(folder)
    facts = read_facts(folder)
    return Snapshot(render_page(facts), progress(facts))


def _progress(run: Run) -> str:
    return f"round {len(run.rounds)} of {run.started.rounds}{_ended(run.ending)}"


def _ended(ending: Ending | None) -> str:
    match ending:
        case RunFinished():
            return ", finished"
        case StoppedEarly():
            return ", stopped early"
        case Interrupted():
            return ", interrupted"
        case Failed():
            return ", failed"
        case None:
            return ""


HERE = "127.0.0.1"
ALIVE = 15.0  # seconds of silence after which a word shows who has left
SCRIPT = files("grandrounds.report.page") / "templates" / "live.js"
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
_STYLE = """<style>
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
    with suppress(KeyboardInterrupt), _listening(port, SnapshotBoard(reading)) as server:
        print(json.dumps({"url": server.url}) if as_json else server.url, flush=True)
        FolderWatch(folder, server.board).keep()


@contextmanager
def _listening(port: int, board: SnapshotBoard) -> Generator["LiveServer"]:
    try:
        server = LiveServer(port, board)
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


class LiveServer(ThreadingHTTPServer):
    """Listens on this machine's own address, for those who hold the token."""

    def __init__(self, port: int, board: SnapshotBoard) -> None:
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
    def live(self) -> LiveServer:
        """Give the server."""
        assert isinstance(self.server, LiveServer)
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

    def _show(self, sight: Snapshot) -> None:
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


def live_page(sight: Snapshot) -> str:
    """Turn a report that opens offline into one that listens: another policy, and a live line."""
    page = OFFLINE_POLICY.sub("", sight.page).replace("</head>", f"{_STYLE}\n</head>", 1)
    line = (
        f'<div id="live" role="status" data-number="{sight.number}">{escape(sight.progress)}</div>'
    )
    return page.replace("</body>", f"{line}\n</body>")


def _event(sight: Snapshot) -> bytes:
    told = json.dumps({"page": live_page(sight), "progress": sight.progress})
    return f"id: {sight.number}\nevent: report\ndata: {told}\n\n".encode()


def _held(found: list[str], secret: str) -> bool:
    return any(secrets.compare_digest(each.encode(), secret.encode()) for each in found)
