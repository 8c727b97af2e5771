"""The report of a running study: what a browser sees of it, and who may see it."""

import json
import re
import signal
import socket
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from threading import Thread

import pytest
from playwright.sync_api import Browser, Page

from grandrounds.events import Event, Failed, Interrupted, StoppedEarly
from grandrounds.journal import Journal
from grandrounds.report import read_facts
from grandrounds.report.serve import Server
from grandrounds.report.watch import Board, Watch, progress, waiting
from tests.federation import TINY
from tests.journeys.browser import OVERFLOW, barriers, launched, opened
from tests.journeys.command import Done, inside, started
from tests.unit.report_folder import (
    FEDAVG,
    PFLSYNTH,
    ending,
    one_round,
    run_folder,
    write_arms,
    write_run,
)

GROW = "part => part.insertAdjacentHTML('afterbegin', '<p style=\"height: 300px\">Gone soon.</p>')"
TOP = "part => part.getBoundingClientRect().top"
# Remembers every word of the live line; a page that was loaded anew would have forgotten them.
REMEMBER = """() => {
  const live = document.getElementById("live");
  window.said = [live.textContent];
  new MutationObserver(() => window.said.push(live.textContent))
    .observe(live, { childList: true });
}"""


class Cuttable(Server):
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
    watch: Watch
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
    board = Board(waiting(folder))
    with Cuttable(0, board) as server:
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield Shown(folder, Watch(folder, board), server)
        server.shutdown()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launched() as found:
        yield found


@pytest.fixture
def page_of(tmp_path: Path) -> Iterator[Shown]:
    """A run of ten rounds that stands after the second."""
    folder = write_run(tmp_path / "run", PFLSYNTH, until=2)
    with shown(folder) as found:
        found.watch.look()
        yield found


def go_on(folder: Path, number: int) -> None:
    for event in one_round(PFLSYNTH, number):
        Journal(folder / "journal.jsonl").append(event)


def wait_until_it_says(page: Page, words: str) -> None:
    page.locator("#live", has_text=words).wait_for(timeout=30_000)


# What a browser sees.


@pytest.mark.browser
@pytest.mark.slow
def test_the_page_follows_a_run_from_before_its_start_to_its_end(browser: Browser, tmp_path: Path):
    words = ("run", TINY, "--rounds", "4", "--out", tmp_path, "--quiet")
    with started("report", tmp_path, "--serve") as server:
        assert server.stdout is not None
        with opened(browser, server.stdout.readline().strip()) as seen:
            seen.page.evaluate(REMEMBER)
            wait_until_it_says(seen.page, "not started yet")
            assert f"No run has begun in {tmp_path}" in seen.page.inner_text("main")
            with started(*words) as run:
                assert run.wait(timeout=120) == 0
            wait_until_it_says(seen.page, "round 4 of 4, finished")
            seen.page.get_by_text("test patients").first.wait_for()
            said = seen.page.evaluate("window.said")
            assert seen.complaints == []
            assert len([url for url in seen.requests if not url.startswith("data:")]) == 3
            server.send_signal(signal.SIGINT)
            assert (server.wait(timeout=20), server.stdout.read()) == (0, "")
            wait_until_it_says(seen.page, "Connection lost: trying again")
    rounds = [text for text in said if text.startswith("round")]
    assert rounds == sorted(set(rounds))
    assert len(rounds) > 1


@pytest.mark.browser
@pytest.mark.slow
def test_the_reader_keeps_the_place_the_open_parts_and_the_focus(browser: Browser, page_of: Shown):
    with opened(browser, page_of.server.url, width=400) as seen:
        page = seen.page
        page.evaluate(REMEMBER)
        folded = page.locator("#record details").last
        region = page.locator("#part .scroll").first
        folded.evaluate("part => part.open = true")
        page.locator("#summary").evaluate(GROW)
        region.evaluate("part => part.scrollIntoView({ behavior: 'instant' })")
        region.evaluate("part => { part.focus(); part.scrollLeft = 40; }")
        assert -1 < region.evaluate(TOP) < 1
        Journal(page_of.folder / "journal.jsonl").append(one_round(PFLSYNTH, 3)[0])
        page_of.watch.look()
        for number in (3, 4):
            go_on(page_of.folder, number)
            page_of.watch.look()
            wait_until_it_says(page, f"round {number} of 10")
        assert folded.evaluate("part => part.open") is True
        assert region.evaluate("part => part === document.activeElement") is True
        assert region.evaluate("part => part.scrollLeft") == 40
        assert -1 < region.evaluate(TOP) < 1
        assert page.evaluate("window.said") == [f"round {n} of 10" for n in (2, 3, 4)]
        assert seen.complaints == []


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 400])
def test_axe_finds_no_barrier_on_the_live_page_nor_before_its_start(
    browser: Browser, tmp_path: Path, width: int
):
    with shown(tmp_path) as empty, opened(browser, empty.server.url, width=width) as seen:
        assert (barriers(seen.page), seen.page.evaluate(OVERFLOW)) == ([], 0)
        write_run(tmp_path / "run", PFLSYNTH, until=2).rename(tmp_path / "later")
        for path in (tmp_path / "later").iterdir():
            path.rename(tmp_path / path.name)
        empty.watch.look()
        wait_until_it_says(seen.page, "round 2 of 10")
        assert (barriers(seen.page), seen.page.evaluate(OVERFLOW)) == ([], 0)


@pytest.mark.browser
@pytest.mark.slow
def test_the_page_says_when_the_connection_is_lost_and_when_it_is_back(
    browser: Browser, page_of: Shown
):
    with opened(browser, page_of.server.url) as seen:
        seen.page.evaluate(REMEMBER)
        go_on(page_of.folder, 3)
        page_of.watch.look()
        wait_until_it_says(seen.page, "round 3 of 10")
        seen.page.locator("details").last.evaluate("part => part.open = true")
        seen.page.locator("main").evaluate("main => main.kept = true")
        page_of.server.cut()
        wait_until_it_says(seen.page, "Connection regained: round 3 of 10")
        assert seen.page.locator("main").evaluate("main => main.kept") is True
        assert seen.page.evaluate("window.said") == [
            "round 2 of 10",
            "round 3 of 10",
            "Connection lost: trying again",
            "Connection regained: round 3 of 10",
        ]
        page_of.server.token = "another server's"
        page_of.server.cut()
        wait_until_it_says(seen.page, "Connection lost: open the address that the server prints")


# Who may see it.


def test_a_reader_with_the_token_is_let_in_with_a_cookie_and_sent_to_an_address_without_it(
    page_of: Shown,
):
    told = page_of.get(f"/?token={page_of.server.token}")
    cookie = f"grandrounds-{page_of.server.server_port}={page_of.server.token}"
    assert (told.status, told.headers["Location"]) == (303, "/")
    assert told.headers["Set-Cookie"] == f"{cookie}; HttpOnly; SameSite=Strict; Path=/"
    page = page_of.get("/", cookie=f"theme=dark; {cookie}")
    assert page.status == 200
    assert "round 2 of 10" in page.read().decode()


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "OPTIONS"])
def test_nothing_is_told_without_the_token(page_of: Shown, method: str):
    port = page_of.server.server_port
    for target in ("/", "/events", "/report.html", "/?token=", "/?token=wrong", "/?token=%C3%B6"):
        for cookie in ("", "grandrounds=1", f"grandrounds-{port}=wrong", "a,b=\u00f6"):
            told = page_of.get(target, method=method, cookie=cookie)
            assert told.status == 403
            sentence = b"Open the address that grandrounds printed, token and all."
            assert told.read() == (b"" if method == "HEAD" else sentence)


def test_a_wrong_token_is_refused_even_beside_the_right_cookie(page_of: Shown):
    assert page_of.get("/?token=wrong", cookie=page_of.server.cookie).status == 403


def test_only_this_machines_own_names_are_answered(page_of: Shown):
    port, cookie = page_of.server.server_port, page_of.server.cookie
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1", f"127.0.0.1:{port + 1}"):
        for target in ("/", "/events", f"/?token={page_of.server.token}"):
            assert page_of.get(target, host=host, cookie=cookie).status == 403
    assert page_of.get("/", host=f"localhost:{port}", cookie=cookie).status == 200


def test_no_other_machine_can_reach_it(page_of: Shown):
    assert page_of.server.socket.getsockname()[0] == "127.0.0.1"
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", page_of.server.server_port), timeout=5)


def test_a_page_and_a_stream_are_all_there_is(page_of: Shown):
    cookie = page_of.server.cookie
    for target in ("/journal.jsonl", "/../run/study.toml", "/live.js", "//etc/passwd", "/events/"):
        assert page_of.get(target, cookie=cookie).status == 404
    for method in ("POST", "PUT", "PATCH", "DELETE", "OPTIONS"):
        told = page_of.get("/", method=method, cookie=cookie)
        assert (told.status, told.headers["Allow"]) == (405, "GET, HEAD")


def test_the_answers_forbid_what_a_page_need_not_do(page_of: Shown):
    first, second = (page_of.get("/", cookie=page_of.server.cookie) for _ in range(2))
    [nonce] = re.findall(r'<script type="module" nonce="([^"]+)">', first.read().decode())
    assert first.headers["Content-Security-Policy"] == (
        f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'unsafe-inline'; "
        "img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
    assert nonce not in second.headers["Content-Security-Policy"]
    for told in (first, page_of.get("/"), page_of.get("/events", cookie=page_of.server.cookie)):
        assert told.headers["Referrer-Policy"] == "no-referrer"
        assert told.headers["Cache-Control"] == "no-store"
        assert "Access-Control-Allow-Origin" not in told.headers


def test_head_gives_the_headers_of_get_and_no_body(page_of: Shown):
    whole, head = (
        page_of.get("/", method=m, cookie=page_of.server.cookie) for m in ("GET", "HEAD")
    )
    assert head.headers["Content-Length"] == whole.headers["Content-Length"]
    assert head.read() == b""
    assert page_of.get("/events", method="HEAD", cookie=page_of.server.cookie).read() == b""


# What the server makes of a folder.


def test_the_stream_tells_what_is_new_and_nothing_twice(page_of: Shown):
    stream = page_of.get("/events", cookie=page_of.server.cookie)
    assert told_by(stream) == "round 2 of 10"
    page_of.watch.look()
    go_on(page_of.folder, 3)
    page_of.watch.look()
    assert told_by(stream) == "round 3 of 10"


def told_by(stream: HTTPResponse) -> str:
    while not (line := stream.readline()).startswith(b"data: "):
        assert line
    return json.loads(line.removeprefix(b"data: "))["progress"]


def test_a_folder_half_written_is_read_again_and_a_damaged_one_is_told(tmp_path: Path):
    board = Board(waiting(tmp_path))
    watch = Watch(tmp_path, board)
    write_run(run_folder(tmp_path, "pflsynth"), PFLSYNTH, until=2)
    (tmp_path / "arms.toml").write_text("seeds = [7")
    for _ in range(2):
        watch.look()
        assert board.sight == waiting(tmp_path)
    watch.look()
    assert board.sight.progress == "the report cannot be made"
    assert f"{tmp_path / 'arms.toml'}: cannot be read" in board.sight.page
    write_arms(tmp_path, [PFLSYNTH])
    watch.look()
    assert board.sight.progress == "round 2 of 10"


def test_pictures_of_which_no_byte_is_written_yet_are_waited_for(page_of: Shown):
    picture = page_of.folder / "sites" / "alder" / "panels.npz"
    picture.parent.mkdir(parents=True)
    picture.touch()
    go_on(page_of.folder, 3)
    page_of.watch.look()
    assert page_of.server.board.sight.progress == "round 2 of 10"
    picture.unlink()
    page_of.watch.look()
    assert page_of.server.board.sight.progress == "round 3 of 10"


def test_progress_is_told_in_a_few_words(tmp_path: Path):
    arms = [PFLSYNTH, FEDAVG]
    write_arms(tmp_path, arms, (7, 8))
    write_run(run_folder(tmp_path, "pflsynth"), PFLSYNTH)
    assert progress(read_facts(tmp_path)) == "1 of 4 runs finished, 10 rounds so far"
    write_run(run_folder(tmp_path, "fedavg"), FEDAVG, until=3)
    assert progress(read_facts(tmp_path)) == "1 of 4 runs finished, 13 rounds so far"


@pytest.mark.parametrize(
    ("event", "words"),
    [
        (ending(PFLSYNTH)[-1], "round 2 of 10, finished"),
        (StoppedEarly(2, 1), "round 2 of 10, stopped early"),
        (Interrupted(2), "round 2 of 10, interrupted"),
        (Failed("alder", 3, "train", "ValueError", "no", ""), "round 2 of 10, failed"),
    ],
)
def test_progress_says_how_a_run_ended(page_of: Shown, event: Event, words: str):
    Journal(page_of.folder / "journal.jsonl").append(event)
    assert progress(read_facts(page_of.folder)) == words


# The command.


def test_a_command_that_cannot_serve_says_why_in_one_sentence(
    page_of: Shown,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    def said(*words: str | Path) -> Done:
        return inside(monkeypatch, capsys, "report", *words)

    gone, port = tmp_path / "gone", str(page_of.server.server_port)
    assert said(gone, "--serve") == Done(
        2,
        "",
        f"grandrounds: {gone}: no such folder; give the folder that a run is written to\n",
    )
    assert said(tmp_path, "--serve", "--port", port) == Done(
        2,
        "",
        f"grandrounds: --port {port}: 127.0.0.1 cannot be listened on there "
        "(Address already in use); choose another port, or leave --port out for a free one\n",
    )
    assert said(tmp_path, "--port", port) == Done(
        2,
        "",
        f"grandrounds: --port {port} is for the live report; add --serve, or leave it out\n",
    )


@pytest.mark.slow
def test_a_signal_ends_it_with_code_0_and_nothing_is_written(tmp_path: Path):
    with started("report", tmp_path, "--serve", "--json") as process:
        assert process.stdout is not None
        told = json.loads(process.stdout.readline())
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=20)
    assert list(told) == ["url"]
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/\?token=[\w-]{43}", told["url"])
    assert (process.returncode, out, err) == (0, "", "")
    assert list(tmp_path.iterdir()) == []
