"""The server of a live report: who may see it, and the command that starts and ends it."""

import json
import re
import signal
import socket
import time
from contextlib import ExitStack, suppress
from http.client import BadStatusLine
from pathlib import Path
from threading import enumerate as enumerate_threads

import pytest

from grandrounds.core import loopback
from grandrounds.report.page import live
from tests.helpers.command import Done, inside, started
from tests.helpers.live_report import Shown
from tests.helpers.remote_sites import wait_until


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
        "(Address already in use); choose another port, or 0 for a free one\n",
    )
    assert said(tmp_path, "--port", port) == Done(
        2,
        "",
        f"grandrounds: --port {port} is for the live report; add --serve, or leave it out\n",
    )


def connected(page_of: Shown) -> socket.socket:
    return socket.create_connection(("127.0.0.1", page_of.server.server_port), timeout=10)


@pytest.mark.slow
def test_a_crowd_that_says_nothing_keeps_nobody_out_and_few_threads(page_of: Shown):
    before = threads()
    halves = (b"", b"G", b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n")
    with ExitStack() as crowd:
        for number in range(4 * loopback.MOST_CONNECTIONS):
            client = crowd.enter_context(connected(page_of))
            client.sendall(halves[number % len(halves)])
        assert page_of.get("/", cookie=page_of.server.cookie).status == 200
        wait_until(lambda: threads() <= before + loopback.MOST_CONNECTIONS)


def test_readers_with_the_token_fill_the_places_and_none_gives_way(page_of: Shown):
    before, cookie = threads(), page_of.server.cookie
    streams = [page_of.get("/events", cookie=cookie) for _ in range(loopback.MOST_CONNECTIONS)]
    with pytest.raises((ConnectionError, BadStatusLine)):
        page_of.get("/", cookie=cookie)
    assert all(stream.readline() == b"retry: 1000\n" for stream in streams)
    assert threads() <= before + loopback.MOST_CONNECTIONS
    page_of.server.cut()
    page_of.server.board.show(live.Snapshot("", ""))
    wait_until(lambda: threads() <= before)
    assert page_of.get("/", cookie=cookie).status == 200


@pytest.mark.slow
def test_a_connection_without_a_whole_request_is_ended_and_a_stream_is_not(
    page_of: Shown, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(loopback, "REQUEST_WITHIN", 0.3)
    stream = page_of.get("/events", cookie=page_of.server.cookie)
    with connected(page_of) as silent, connected(page_of) as slow:
        began = time.monotonic()
        with suppress(ConnectionError):
            while time.monotonic() - began < 5:
                slow.sendall(b"G")  # a byte now and then is no request either
                time.sleep(0.05)
        assert time.monotonic() - began < 5
        assert silent.recv(1) == b""
    assert stream.readline() == b"retry: 1000\n"
    assert page_of.get("/", cookie=page_of.server.cookie).status == 200
    stream.close()


@pytest.mark.slow
def test_a_reader_that_takes_nothing_is_dropped(page_of: Shown, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(live.Reader, "timeout", 0.3)
    page_of.server.board.show(live.Snapshot("x" * 2**26, "large"))
    with connected(page_of) as idle:
        head = f"Host: {page_of.server.hosts[0]}\r\nCookie: {page_of.server.cookie}"
        idle.sendall(f"GET / HTTP/1.1\r\n{head}\r\n\r\n".encode())
        time.sleep(1.0)
        with suppress(ConnectionError):
            assert sum(map(len, iter(lambda: idle.recv(2**20), b""))) < 2**26


def threads() -> int:
    return sum("process_request_thread" in thread.name for thread in enumerate_threads())


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
