"""The report of a running study is served here to browsers on this machine, behind a token.

Only the page and the stream of its changes are served: no path leads to a file.
"""

import json
import re
import secrets
import socket
import time
from contextlib import suppress
from dataclasses import dataclass, field
from html import escape
from http import HTTPStatus
from importlib.resources import files
from pathlib import Path
from threading import Condition
from typing import NoReturn, TypeAlias
from urllib.parse import parse_qs

from grandrounds.core.errors import BadFolder
from grandrounds.core.events import Failed, Interrupted, RunFinished, StoppedEarly
from grandrounds.core.loopback import HERE, LoopbackReader, LoopbackServer, listen, serving
from grandrounds.core.run_folder import ComparisonFolder, RunFolder
from grandrounds.report.analysis.facts import Facts, read_facts
from grandrounds.report.analysis.run import Ending, Run
from grandrounds.report.page.html import render_page

PAUSE = 1.0  # seconds between two checks of the folder, at least
SHARE = 4  # a pause is so many times as long as the check before it: training needs the cores
_PATIENCE = 3  # checks in a row, of which the last reports a folder that cannot be read
Stamp: TypeAlias = tuple[tuple[str, int, int], ...]  # path, bytes, nanoseconds of the last write
NOTICE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title} · Grand Rounds report</title><link rel="icon" href="data:,">
<style>body {{ font: 16px/1.55 sans-serif; margin: 0; }} main {{ padding: 32px; }}
p {{ overflow-wrap: anywhere; }}</style></head>
<body><main><h1>{title}</h1><p>{sentence}</p></main></body></html>"""


def stamp_of(folder: Path) -> Stamp:
    """Return the sizes and times of the files that a report is made of."""
    runs = _runs_in(folder)
    paths = [ComparisonFolder(folder).arms, *(run.journal for run in runs)]
    paths += [run.scores for run in runs]
    found = sorted(path for path in paths if path.exists())
    return tuple((str(path), (s := path.stat()).st_size, s.st_mtime_ns) for path in found)


def _runs_in(folder: Path) -> list[RunFolder]:
    """Return the folders where runs may be: the folder itself, and a comparison's runs below it."""
    return [RunFolder(folder), *ComparisonFolder(folder).runs()]


def progress(facts: Facts) -> str:
    """Write in a few words how far a run or a comparison is."""
    runs = [run for arm in facts.arms for run in arm.runs]
    to_come = sum(len(arm.waiting) for arm in facts.arms) + len(facts.waiting) * len(facts.seeds)
    if len(runs) + to_come == 1:
        return _progress(runs[0])
    finished = sum(isinstance(run.ending, RunFinished) for run in runs)
    rounds = sum(len(run.rounds) for run in runs)
    return f"{finished} of {len(runs) + to_come} runs finished, {rounds} rounds so far"


@dataclass(frozen=True)
class Snapshot:
    """The report at one moment: the page, and in a few words how far the study is."""

    page: str
    progress: str
    number: int = 0


def notice(title: str, sentence: str) -> Snapshot:
    """Return a page that says why there is no report."""
    page = NOTICE.format(title=escape(title), sentence=escape(sentence))
    return Snapshot(page, title.lower())


def waiting(folder: Path) -> Snapshot:
    """Return a page that says that nothing has started."""
    return notice(
        "Not started yet",
        f"No run has begun in {folder}. This page fills itself as soon as one does.",
    )


@dataclass
class SnapshotBoard:
    """Holds the newest snapshot, for any number of readers who wait for the next."""

    snapshot: Snapshot
    _changed: Condition = field(default_factory=Condition, init=False)

    def show(self, snapshot: Snapshot) -> None:
        """Replace the snapshot, and wake the readers that wait."""
        with self._changed:
            self.snapshot = Snapshot(snapshot.page, snapshot.progress, self.snapshot.number + 1)
            self._changed.notify_all()

    def after(self, number: int, *, seconds: float) -> Snapshot | None:
        """Wait for a snapshot newer than this number; return None after so many seconds."""
        with self._changed:
            newer = self._changed.wait_for(lambda: self.snapshot.number > number, timeout=seconds)
            return self.snapshot if newer else None


@dataclass
class FolderWatch:
    """Renders a folder's report on a board again whenever its files change."""

    folder: Path
    board: SnapshotBoard
    _shown: Stamp | None = field(default=None, init=False)
    _failures: int = field(default=0, init=False)

    def keep(self) -> NoReturn:
        """Check the folder for ever."""
        while True:
            began = time.monotonic()
            self.look()
            time.sleep(max(PAUSE, SHARE * (time.monotonic() - began)))

    def look(self) -> None:
        """Show a changed report; at the third failure in a row, show why it cannot be read."""
        stamp = stamp_of(self.folder)
        if stamp == self._shown:
            return
        try:
            snapshot = sight_of(self.folder)
        except (BadFolder, EOFError) as error:  # EOFError: a picture's file is still empty
            self._failures += 1
            if self._failures < _PATIENCE:
                return
            snapshot = notice("The report cannot be made", str(error))
        self._shown, self._failures = stamp, 0
        self.board.show(snapshot)


def sight_of(folder: Path) -> Snapshot:
    """Return the report of a folder as it is now. Raises `BadFolder`."""
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


ALIVE = 15.0  # seconds after which a comment is sent, which finds readers that have left
SCRIPT = files("grandrounds.report.page") / "templates" / "live.js"
HTML, TEXT, EVENTS = (f"text/{kind}; charset=utf-8" for kind in ("html", "plain", "event-stream"))
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
    """Serve a folder's report until Ctrl-C, and print its address; port 0 is any free one.

    Raises `BadFolder` where there is no such folder, `BadStudy` where the port cannot be opened.
    """
    if not folder.is_dir():
        raise BadFolder(f"{folder}: no such folder; give the folder that a run is written to")
    reading = notice("Being read", f"The report of {folder} is being made.")
    door = listen(port, "--port")
    live = LiveServer(port, SnapshotBoard(reading), door)
    with suppress(KeyboardInterrupt), serving(live) as server:
        print(json.dumps({"url": server.url}) if as_json else server.url, flush=True)
        FolderWatch(folder, server.board).keep()


class LiveServer(LoopbackServer):
    """Answers browsers that have the token."""

    def __init__(
        self, port: int, board: SnapshotBoard, listening: socket.socket | None = None
    ) -> None:
        super().__init__(port, Reader, listening)
        self.board = board
        self.token = secrets.token_urlsafe(32)

    @property
    def url(self) -> str:
        """Return the address that opens the page."""
        return f"http://{HERE}:{self.server_port}/?token={self.token}"

    @property
    def cookie(self) -> str:
        """Return the cookie, named by the port, since browsers share cookies between ports."""
        return f"grandrounds-{self.server_port}={self.token}"


class Reader(LoopbackReader):
    """Answers the requests of one browser connection."""

    @property
    def live(self) -> LiveServer:
        """Return the server."""
        assert isinstance(self.server, LiveServer)
        return self.server

    def do_GET(self) -> None:  # noqa: N802 - as `http.server` calls it
        """Set the cookie for a token, send the page, or stream its changes."""
        path, _, query = self.path.partition("?")
        tokens = parse_qs(query).get("token", [])
        if refusal := self._refusal(tokens):
            self._say(*refusal)
            return
        self.live.connections.trust(self.connection)
        if tokens:
            cookie = f"{self.live.cookie}; HttpOnly; SameSite=Strict; Path=/"
            self._say(HTTPStatus.SEE_OTHER, "", **{"Set-Cookie": cookie, "Location": "/"})
        elif path == "/":
            self._show(self.live.board.snapshot)
        elif path == "/events":
            self._stream()
        else:
            self._say(HTTPStatus.NOT_FOUND, "There is one page here: /")

    do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_GET  # noqa: N815

    def _refusal(self, tokens: list[str]) -> tuple[HTTPStatus, str] | None:
        if not self.is_for_this_server:
            return HTTPStatus.FORBIDDEN, f"This page is for a browser on {HERE}."
        if not (_held(tokens, self.live.token) if tokens else self._has_cookie()):
            return HTTPStatus.FORBIDDEN, "Open the address that grandrounds printed, token and all."
        if not self.only_reads:
            return HTTPStatus.METHOD_NOT_ALLOWED, "This page is only to be read."
        return None

    def _has_cookie(self) -> bool:
        cookies = "; ".join(self.headers.get_all("Cookie", [])).split(";")
        return _held([cookie.strip() for cookie in cookies], self.live.cookie)

    def _say(self, status: HTTPStatus, sentence: str, **headers: str) -> None:
        self.answer(status, TEXT, sentence, **headers)

    def _show(self, snapshot: Snapshot) -> None:
        nonce = secrets.token_urlsafe(16)
        script = f'<script type="module" nonce="{nonce}">\n{SCRIPT.read_text("utf-8")}</script>'
        page = live_page(snapshot).replace("</body>", f"{script}\n</body>")
        self.answer(HTTPStatus.OK, HTML, page, policy=POLICY.format(nonce=nonce))

    def _stream(self) -> None:
        """Send the newest snapshot, then each that follows, until the browser disconnects."""
        self.open_answer(HTTPStatus.OK, EVENTS, "default-src 'none'")
        if self.command == "HEAD":
            return
        self.wfile.write(b"retry: 1000\n\n")
        number = -1
        while True:
            snapshot = self.live.board.after(number, seconds=ALIVE)
            number = snapshot.number if snapshot else number
            self.wfile.write(_event(snapshot) if snapshot else b": still here\n\n")


def live_page(snapshot: Snapshot) -> str:
    """Return an offline report with a policy that allows the live script, and a progress line."""
    page = OFFLINE_POLICY.sub("", snapshot.page).replace("</head>", f"{_STYLE}\n</head>", 1)
    number, words = snapshot.number, escape(snapshot.progress)
    line = f'<div id="live" role="status" data-number="{number}">{words}</div>'
    return page.replace("</body>", f"{line}\n</body>")


def _event(snapshot: Snapshot) -> bytes:
    data = json.dumps({"page": live_page(snapshot), "progress": snapshot.progress})
    return f"id: {snapshot.number}\nevent: report\ndata: {data}\n\n".encode()


def _held(found: list[str], secret: str) -> bool:
    return any(secrets.compare_digest(each.encode(), secret.encode()) for each in found)
