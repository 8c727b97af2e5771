"""A run that goes on by itself: what it waits for, what it gives up on."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from grandrounds.core.errors import RunFailed
from grandrounds.engines.remote import Timeouts
from tests.helpers.command import inside
from tests.helpers.federation import tiny
from tests.helpers.flare_federation import needs_flare

pytest.importorskip("nvflare", reason="NVIDIA FLARE is not installed")

from grandrounds.flare import supervise as steady
from grandrounds.flare.session import DONE, LOST, Job, NoServer
from grandrounds.flare.supervise import Supervisor, is_loss

pytestmark = needs_flare

FAILED = "FINISHED:EXECUTION_EXCEPTION"
SILENT = "site 'birch' failed in round 2 (train): SiteSilent: no sign of life for 21 s: gone"
UNBROUGHT = "site 'alder' failed in round 1 (train): ConnectionError: its update did not reach it"
NOT_FINITE = "site 'birch' failed in round 2 (train): FloatingPointError: 'a' is not finite"


@dataclass
class Server:
    """Plays a list of ends, each after so many rounds; "gone" is a server that answers no more."""

    ends: list[tuple[str, str, int]]
    absent: list[tuple[str, ...]] = field(default_factory=list)
    submitted: list[tuple[bool, str]] = field(default_factory=list)

    def there(self) -> tuple[str, ...]:
        missing = self.absent.pop(0) if self.absent else ()
        return tuple(site for site in ("alder", "birch") if site not in missing)

    def submit(self, study: object, patience: Timeouts, *, resume: bool, token: str) -> str:
        self.submitted.append((resume, token))
        return f"job-{len(self.submitted)}"

    def wait(self, id: str, *, look: Any) -> tuple[Job, str]:
        status, why, rounds = self.ends.pop(0)
        for round in range(rounds + 1):
            look(Job(id, "tiny", "RUNNING", "", {"round": round, "rounds": 3}))
        if status == "gone":
            raise NoServer("the server localhost:8002 answers no longer (gone)")
        return Job(id, "tiny", status, "", {}), why


def steadily(
    monkeypatch: pytest.MonkeyPatch,
    *ends: tuple[str, str, int],
    absent: Sequence[tuple[str, ...]] = (),
) -> tuple[Server, list[str], Supervisor]:
    server, told = Server(list(ends), list(absent)), list[str]()

    @contextmanager
    def desk(kit: object) -> Iterator[Server]:
        yield server

    monkeypatch.setattr(steady, "desk", desk)
    monkeypatch.setattr(steady, "_PAUSE", 0.0)
    kit: Any = None
    study = tiny(sites=2)
    return server, told, Supervisor(kit, study, Timeouts(), told.append, told.append)


def test_a_run_that_nobody_disturbs_is_one_job(monkeypatch: pytest.MonkeyPatch):
    server, told, run = steadily(monkeypatch, (DONE, "", 2))
    run.run_to_end()
    assert [resume for resume, _ in server.submitted] == [False]
    assert told == ["job-1", "round 1 of 3", "round 2 of 3"]


def test_after_a_loss_it_waits_for_all_and_resumes(monkeypatch: pytest.MonkeyPatch):
    server, told, run = steadily(
        monkeypatch,
        (FAILED, SILENT, 1),
        (DONE, "", 2),
        absent=[(), ("birch",), ("alder", "birch"), ("alder", "birch")],
    )
    run.run_to_end()
    assert [resume for resume, _ in server.submitted] == [False, True]
    assert told[3:] == [
        "waiting for birch",
        "waiting for alder, birch",
        "job-2",
        "round 2 of 3",
    ]
    assert told[2].startswith(SILENT)


def test_a_server_that_is_lost_and_found_with_the_job_running_gets_no_second_job(
    monkeypatch: pytest.MonkeyPatch,
):
    server, _, run = steadily(monkeypatch, ("gone", "", 1), (DONE, "", 3))
    run.run_to_end()
    assert len(server.submitted) == 1


def test_a_job_that_was_lost_with_its_server_is_followed_by_another(
    monkeypatch: pytest.MonkeyPatch,
):
    server, _, run = steadily(
        monkeypatch, ("gone", "", 1), (LOST, "its server was lost", 0), (DONE, "", 3)
    )
    run.run_to_end()
    assert [resume for resume, _ in server.submitted] == [False, True]
    assert len({token for _, token in server.submitted}) == 2


def test_what_is_no_loss_stops_it(monkeypatch: pytest.MonkeyPatch):
    server, _, run = steadily(monkeypatch, (FAILED, NOT_FINITE, 1))
    with pytest.raises(
        RunFailed, match="job-1 ended as FINISHED:EXECUTION_EXCEPTION: site 'birch'"
    ):
        run.run_to_end()
    assert len(server.submitted) == 1


def test_it_gives_up_after_three_losses_in_a_row_but_not_while_rounds_are_done(
    monkeypatch: pytest.MonkeyPatch,
):
    lost = (FAILED, SILENT, 0)
    ends = (lost, lost, (FAILED, SILENT, 1), lost, (FAILED, SILENT, 2), lost, lost)
    server, _, run = steadily(monkeypatch, *ends)
    with pytest.raises(RunFailed, match="3 losses in a row, no round between them; then: site"):
        run.run_to_end()
    assert len(server.submitted) == len(ends)


@pytest.mark.parametrize(
    ("status", "reason", "expected"),
    [
        (FAILED, SILENT, True),
        (FAILED, UNBROUGHT, True),
        (FAILED, NOT_FINITE, False),
        (FAILED, "see its logs", False),
        ("FINISHED:ABORTED", "see its logs", False),
        (LOST, "its server was lost", True),
        ("FINISHED:FAILED_TO_RUN", "see its logs", True),
        (DONE, "", False),
    ],
)
def test_what_counts_as_a_loss(status: str, reason: str, expected: bool):
    assert is_loss(Job("1", "tiny", status, "", {}), reason) is expected


def test_who_does_not_wait_cannot_resume_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    words = ("federation", "submit", tmp_path, "--kit", tmp_path, "--on-loss", "wait", "--no-wait")
    done = inside(monkeypatch, capsys, *words)
    assert done.code == 2
    assert "leave out --no-wait" in done.err
