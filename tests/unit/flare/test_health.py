"""Whether a party is well, told to programs on its own machine alone."""

import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path

import pytest

from grandrounds.core import loopback
from grandrounds.core.events import RoundFinished, RunFinished, SiteMissed
from grandrounds.core.journal import Journal
from grandrounds.core.ledger import LedgerEntry
from grandrounds.core.loopback import serving
from grandrounds.site.ledger import Ledger
from tests.helpers.certificates import Authority, new_key
from tests.helpers.command import Done, inside
from tests.helpers.flare_federation import needs_flare
from tests.helpers.remote_sites import wait_until
from tests.helpers.run_folders import PFLSYNTH, beginning, one_round

pytest.importorskip("nvflare", reason="NVIDIA FLARE is not installed")

from grandrounds.flare import health
from grandrounds.flare.health import HealthServer, HealthWatch
from grandrounds.flare.kit import Kit
from grandrounds.flare.metrics import Sample, kit_metrics, to_text
from tests.unit.flare.test_retention import kit_of

pytestmark = needs_flare

RUN = "tiny-61f43d861a7a"
LINE = re.compile(
    r"(# (HELP|TYPE) grandrounds_\w+ .+|"
    r'grandrounds_\w+({\w+="(\\.|[^"\\])*"(,\w+="(\\.|[^"\\])*")*})? -?[0-9.e+-]+)'
)


def at_port(kit: Kit, port: int) -> Kit:
    """A kit whose server is at this port of this machine."""
    path = kit.startup / f"fed_{kit.kind}.json"
    settings = json.loads(path.read_text())
    settings["servers"][0]["service"]["target"] = f"localhost:{port}"
    path.write_text(json.dumps(settings))
    return kit


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as found:
        yield found


def test_a_server_is_well_while_it_listens_on_its_port(listener: socket.socket, tmp_path: Path):
    kit = at_port(kit_of("server", tmp_path), listener.getsockname()[1])
    watch = HealthWatch(kit, os.getpid())
    assert watch.seen.wrong == "this party has not been looked at yet"
    watch.look()
    assert watch.seen.wrong == ""
    assert "grandrounds_healthy 1\n" in watch.seen.metrics
    listener.close()
    watch._reached = (watch._reached or 0) - 7
    watch.look()
    assert re.fullmatch(r"the server has not listened for \d+ s", watch.seen.wrong)
    assert "grandrounds_healthy 0\n" in watch.seen.metrics


def test_a_site_is_well_while_it_was_connected_to_its_server_lately(
    listener: socket.socket, tmp_path: Path
):
    port = listener.getsockname()[1]
    watch = HealthWatch(at_port(kit_of("client", tmp_path), port), os.getpid())
    watch.look()
    assert watch.seen.wrong == "the site has not reached its server yet"
    with socket.create_connection(("127.0.0.1", port)):
        watch.look()
        assert watch.seen.wrong == ""
    listener.close()
    watch.look()
    assert watch.seen.wrong == ""
    watch._reached = (watch._reached or 0) - health.REACHED_WITHIN
    watch.look()
    assert re.fullmatch(r"the site has not reached its server for \d+ s", watch.seen.wrong)
    assert "grandrounds_seconds_since_server_reached 60" in watch.seen.metrics


def test_a_party_whose_process_has_ended_is_not_well(tmp_path: Path):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    watch = HealthWatch(kit_of("client", tmp_path), process.pid)
    watch.look()
    assert watch.seen.wrong == "the party's process has ended"
    assert "grandrounds_up 0\n" in watch.seen.metrics


@dataclass(frozen=True)
class Told:
    """The health of a kit on a server of this process."""

    server: HealthServer

    def get(self, target: str, *, method: str = "GET", host: str = "") -> HTTPResponse:
        line = HTTPConnection("127.0.0.1", self.server.server_port, timeout=10)
        line.request(method, target, headers={"Host": host or self.server.hosts[0]})
        return line.getresponse()


@pytest.fixture
def party(listener: socket.socket, tmp_path: Path) -> Iterator[Told]:
    watch = HealthWatch(at_port(kit_of("server", tmp_path), listener.getsockname()[1]), os.getpid())
    with serving(HealthServer(watch, loopback.listen(0, "--health"))) as server:
        yield Told(server)


def test_health_says_503_with_a_sentence_until_it_is_well(party: Told):
    answer = party.get("/health")
    assert (answer.status, answer.read()) == (503, b"this party has not been looked at yet\n")
    party.server.watch.look()
    answer = party.get("/health")
    assert (answer.status, answer.read()) == (200, b"ok\n")
    head = party.get("/health", method="HEAD")
    assert (head.status, head.headers["Content-Length"], head.read()) == (200, "3", b"")


def test_metrics_are_prometheus_text_with_a_type_before_each_name(party: Told):
    party.server.watch.look()
    answer = party.get("/metrics")
    text = answer.read().decode()
    assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert text.endswith("\n")
    assert all(LINE.fullmatch(line) for line in text.splitlines()), text
    assert text.startswith(
        "# HELP grandrounds_up Whether the party's process lives.\n"
        "# TYPE grandrounds_up gauge\ngrandrounds_up 1\n"
    )


def test_what_is_not_asked_rightly_is_refused_and_told_nothing(party: Told):
    party.server.watch.look()
    port = party.server.server_port
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1", f"127.0.0.1:{port + 1}"):
        for target in ("/health", "/metrics", "/"):
            assert party.get(target, host=host).status == 403
    for method in ("POST", "PUT", "PATCH", "DELETE", "OPTIONS"):
        answer = party.get("/metrics", method=method)
        assert (answer.status, answer.headers["Allow"]) == (405, "GET, HEAD")
        assert b"grandrounds_" not in answer.read()
    for target in ("/", "/metrics/", "/health?x=1", "/../startup/server.key", "//etc/passwd"):
        assert party.get(target).status == 404
    assert party.get("/health", host=f"localhost:{port}").status == 200


@pytest.mark.parametrize(
    "request_line",
    [
        b"GET /health\r\n\r\n",
        b"GET /health HTTP/1.1\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: evil\r\n\r\n",
        b"GET " + b"x" * 100_000 + b" HTTP/1.1\r\n\r\n",
        b"GET /health HTTP/1.1\r\n" + b"X: y\r\n" * 500 + b"\r\n",
        b"\x16\x03\x01\x00\xa5\x01\x00\x00\r\n\r\n",
        b"\r\n\r\n",
    ],
)
def test_what_is_no_right_request_gets_no_health_and_the_next_is_answered(
    request_line: bytes, party: Told
):
    party.server.watch.look()
    with socket.create_connection(("127.0.0.1", party.server.server_port), timeout=10) as line:
        with suppress(OSError):  # it may have hung up already
            line.sendall(request_line)
            line.shutdown(socket.SHUT_WR)
        found = b""
        with suppress(ConnectionError):
            found = b"".join(iter(lambda: line.recv(4096), b""))
    assert b" 200 " not in found
    assert party.get("/health").status == 200


def test_no_other_machine_can_reach_it(party: Told):
    assert party.server.socket.getsockname()[0] == "127.0.0.1"
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", party.server.server_port), timeout=5)


@pytest.mark.slow
def test_a_crowd_that_says_nothing_keeps_nobody_out_and_is_dropped(
    party: Told, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(loopback, "REQUEST_WITHIN", 0.5)
    party.server.watch.look()
    before = answering()
    halves = (b"", b"G", b"GET /health HTTP/1.1\r\n")
    with ExitStack() as crowd:
        for number in range(3 * loopback.MOST_CONNECTIONS):
            line = socket.create_connection(("127.0.0.1", party.server.server_port), timeout=10)
            crowd.enter_context(line)
            with suppress(ConnectionError):
                line.sendall(halves[number % len(halves)])
        assert party.get("/health").status == 200
        wait_until(lambda: answering() <= before)


def answering() -> int:
    return sum("process_request_thread" in thread.name for thread in threading.enumerate())


def test_a_port_that_is_taken_is_said_in_a_sentence_and_nothing_starts(
    listener: socket.socket,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    kit, port = kit_of("client", tmp_path), listener.getsockname()[1]
    kit.local.mkdir()
    (kit.local / "resources.json").write_text("{}")
    Authority("authority", new_key()).issue("alder", kit.startup)
    done = inside(monkeypatch, capsys, "federation", "start", kit.folder, "--health", str(port))
    assert done == Done(
        2,
        "",
        f"grandrounds: --health {port}: 127.0.0.1 cannot be listened on there "
        "(Address already in use); choose another port, or 0 for a free one\n",
    )


def values(kit: Kit) -> dict[str, float]:
    """The metrics of a kit by name and labels."""
    return {
        f"{each.name}{''.join(f' {v}' for k, v in each.labels.items() if k != 'run')}": each.value
        for each in kit_metrics(kit)
    }


def test_a_server_s_journal_is_counted_what_was_repeated_included(tmp_path: Path):
    kit = kit_of("server", tmp_path)
    folder = kit.folder / "grandrounds" / RUN
    folder.mkdir(parents=True)
    journal = Journal(folder / "journal.jsonl")
    for event in beginning(PFLSYNTH):
        journal.append(event)
    for number in (1, 2, 2):
        for event in one_round(PFLSYNTH, number):
            journal.append(event)
    first = next(iter(PFLSYNTH.sites))
    journal.append(SiteMissed(first, 3, "train", "SiteSilent", "gone", ""))
    found = values(kit)
    assert (found["run_readable"], found["run_rounds_finished_total"]) == (1, 2)
    assert (found["run_round"], found["run_finished"]) == (3, 0)
    assert found[f"run_site_missed_total {first}"] == 1
    up = found[f"run_site_bytes_total {first} up"]
    assert up > 0
    assert found["run_seconds_since_last_event"] < 60
    journal.append(RoundFinished(3, "", None, 3, 1.0))
    journal.append(RunFinished(3, 3, "", 1.0, 0))
    assert values(kit)["run_finished"] == 1


def test_a_site_s_log_is_counted_and_a_damaged_one_is_said_so(tmp_path: Path):
    kit = kit_of("client", tmp_path)
    path = kit.folder / "grandrounds" / RUN / "sites" / "alder" / "ledger.jsonl"
    log = Ledger(path)
    log(LedgerEntry("localhost", "describe"))
    log(LedgerEntry("localhost", "train", round=2, tensors=3, bytes=500, digest="ab"))
    log(LedgerEntry("unknown", "ask", refused="it is not signed"))
    log(LedgerEntry("localhost", "evaluate", round=2, failed="ValueError"))
    found = values(kit)
    assert found["site_refused_total"] == found["site_failed_total"] == 1
    assert (found["site_bytes_left_total"], found["site_round"]) == (500, 2)
    assert found["site_requests_total train"] == 1
    with path.open("a") as file:
        file.write("{\n")
    assert values(kit) == {"run_readable": 0}


def test_no_label_changes_the_structure_of_the_text():
    odd = 'a"} 1\ngrandrounds_up 0 \\'
    text = to_text([Sample("x", "About\nit.", 1.5, {"site": odd}), Sample("x", "", 2, {})])
    assert text == (
        "# HELP grandrounds_x About\\nit.\n# TYPE grandrounds_x gauge\n"
        'grandrounds_x{site="a\\"} 1\\ngrandrounds_up 0 \\\\"} 1.5\ngrandrounds_x 2\n'
    )
    assert all(LINE.fullmatch(line) for line in text.splitlines())
