"""A job that is waited for, a run that goes on by itself: what ends the wait and what does not."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from traceback import print_exc
from types import SimpleNamespace
from typing import Any

import pytest

from grandrounds.core.errors import BadSite, RunFailed
from grandrounds.engines.remote import Timeouts
from tests.helpers.command import inside
from tests.helpers.federation import tiny
from tests.helpers.flare_federation import needs_flare

pytest.importorskip("nvflare", reason="NVIDIA FLARE is not installed")

from nvflare.apis.fl_exception import FLCommunicationError
from nvflare.fuel.flare_api.api_spec import AuthorizationError, NoConnection, SessionClosed

from grandrounds.flare import session as sessions
from grandrounds.flare import supervise as steady
from grandrounds.flare.job import ANSWERS, ENDS
from grandrounds.flare.session import DONE, LOST, Job, NoServer
from grandrounds.flare.supervise import Submission, Supervisor, is_loss

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

    def responding_sites(self) -> tuple[str, ...]:
        missing = self.absent.pop(0) if self.absent else ()
        return tuple(site for site in ("alder", "birch") if site not in missing)

    def submit(
        self,
        study: object,
        patience: Timeouts,
        *,
        resume: bool,
        accept_changes: bool,
        survey: bool,
        token: str,
    ) -> str:
        assert not accept_changes
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

    monkeypatch.setattr(steady, "open_session", desk)
    for pause in ("_PAUSE", "_AGAIN", "_GONE"):
        monkeypatch.setattr(steady, pause, 0.0)
    kit: Any = None
    study = tiny(sites=2)
    return server, told, Supervisor(kit, study, Timeouts(), told.append, told.append)


class Busy:
    """An NVFlare server that leaves questions unanswered, as this list tells, and plays one job."""

    def __init__(self, job: str = "", *failures: Exception) -> None:
        self.failures, self.unanswered, self.opened = list(failures), job, 0

    def __call__(self, *words: object, timeout: float) -> "Busy":
        self.opened += 1
        return self

    def submit_job(self, folder: str, token: str) -> str:
        return "job-1"

    def get_job_meta(self, id: str) -> dict[str, str]:
        if self.failures:
            raise self.failures.pop(0)
        return {"job_id": id, "status": "RUNNING" if self.unanswered else DONE}

    def get_system_info(self) -> Any:
        return SimpleNamespace(job_info=[SimpleNamespace(job_id="job-1")])

    def get_job_logs(self, id: str) -> dict[str, dict[str, str]]:
        return {"logs": {"server": f"INFO - {ANSWERS}"}}

    def do_app_command(self, id: str, topic: str, data: object) -> dict[str, object]:
        message, self.unanswered = self.unanswered, ""
        raise NoConnection(message)

    def close(self) -> None:
        pass


class Reception:
    """The kit of an admin, and the address of a server that is asked in a test."""

    folder, address, kind, right = Path("KIT"), ("localhost", 8002), "admin", "look"
    user = "admin@grandrounds.org"


def at(server: Any, monkeypatch: pytest.MonkeyPatch, *, gone: float = 30.0) -> Submission:
    monkeypatch.setattr(sessions, "new_secure_session", server)
    monkeypatch.setattr(sessions.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(steady, "_GONE", gone)
    kit: Any = Reception()
    return Submission(kit, tiny(sites=2), Timeouts())


def test_looks_that_fail_are_repeated_in_fresh_sessions_for_one_and_the_same_job(
    monkeypatch: pytest.MonkeyPatch,
):
    server = Busy("", NoConnection("no reply"), SessionClosed("the session is closed on server"))
    submission = at(server, monkeypatch)
    job, why = submission.run_to_end()
    assert (job.id, job.is_done, why) == ("job-1", True, "")
    assert server.opened == 3


def test_a_job_that_does_not_tell_its_progress_says_nothing_of_the_server(
    monkeypatch: pytest.MonkeyPatch,
):
    """NVFlare's server waits for the job as long as the session waits for the server."""
    server, seen = Busy("no reply"), list[Job]()
    at(server, monkeypatch).run_to_end(seen.append)
    assert [(job.status, job.progress) for job in seen] == [("RUNNING", "")]
    assert server.opened == 1


def test_a_server_that_stays_silent_is_gone(monkeypatch: pytest.MonkeyPatch):
    server = Busy("", *[NoConnection("no reply")] * 9)
    with pytest.raises(NoServer, match=r"localhost:8002 answers no longer \(no reply\); once"):
        at(server, monkeypatch, gone=0.0).run_to_end()
    assert server.opened == 1


class Ending(Busy):
    """An NVFlare server on which one job has these statuses, and no process."""

    def __init__(self, *statuses: str) -> None:
        super().__init__()
        self.statuses = list(statuses)

    def get_job_meta(self, id: str) -> dict[str, str]:
        status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
        return {"job_id": id, "status": status}

    def get_system_info(self) -> Any:
        return SimpleNamespace(job_info=[])


def test_a_job_whose_process_has_ended_is_waited_for_as_long_as_its_result_is_filed(
    monkeypatch: pytest.MonkeyPatch,
):
    """NVFlare waits for a site's last word for a quarter of an hour: that is no loss."""
    server, seen = Ending(*["RUNNING"] * 899, DONE), list[Job]()
    job, why = at(server, monkeypatch).run_to_end(seen.append)
    assert (job.status, why) == (DONE, "")
    assert {job.status for job in seen} == {"ENDING"}


def test_a_job_that_its_server_abandoned_is_lost_at_once(monkeypatch: pytest.MonkeyPatch):
    seen = list[Job]()
    job, why = at(Ending("FINISHED:ABANDONED"), monkeypatch).run_to_end(seen.append)
    assert (job.status, why, seen) == (LOST, "its server was lost", [])
    assert is_loss(job, why)


def test_a_job_that_ends_for_ever_is_lost(monkeypatch: pytest.MonkeyPatch):
    """Its server was killed, and started by other means than ours."""
    job, why = at(Ending("RUNNING"), monkeypatch).run_to_end()
    assert (job.status, why) == (LOST, "its server was lost")


@pytest.mark.parametrize("log", ["", f"{ANSWERS}\n{ENDS}"])
def test_a_coordinator_that_does_not_answer_is_not_asked(log: str, monkeypatch: pytest.MonkeyPatch):
    """NVFlare's server would log the question as an error."""
    server = Busy("no reply")
    monkeypatch.setattr(server, "get_job_logs", lambda id: {"logs": {"server": log}})
    monkeypatch.setattr(server, "do_app_command", lambda *_: pytest.fail("it was asked"))
    monkeypatch.setattr(sessions, "new_secure_session", server)
    kit: Any = Reception()
    with sessions.open_session(kit) as session:
        assert (session.job("job-1").status, session.job("job-1").progress) == ("RUNNING", "")


@pytest.mark.parametrize("error", [NoConnection, FLCommunicationError])
def test_a_server_that_never_answers_is_said_so_in_a_sentence(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
):
    def unheard(*words: object, timeout: float) -> None:
        raise error("failed to challenge server")

    with pytest.raises(NoServer, match=r"does not answer \(failed to challenge server\)"):
        at(unheard, monkeypatch, gone=0.0).run_to_end()


def test_a_server_that_lets_a_kit_not_in_is_said_so_with_its_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def rejected(*words: object, timeout: float) -> None:
        try:
            raise FLCommunicationError("error:client_registration 'admin': it was revoked")
        except FLCommunicationError as error:
            print_exc()
            raise FLCommunicationError("error:client_registration", error)  # noqa: B904

    with pytest.raises(NoServer, match=r"8002 does not let this kit in: 'admin': it was revoked$"):
        at(rejected, monkeypatch, gone=0.0).run_to_end()
    assert capsys.readouterr().err == ""  # the sentence replaces what NVFlare prints


def test_a_kit_that_may_not_do_what_is_asked_is_told_so_at_once(monkeypatch: pytest.MonkeyPatch):
    server = Busy("", AuthorizationError("not authorized"))
    sentence = r"KIT: the server does not let this kit do that \(not authorized\); it sees which"
    with pytest.raises(BadSite, match=sentence):
        at(server, monkeypatch).run_to_end()
    assert server.opened == 1


def test_no_session_is_opened_with_the_server_s_kit(monkeypatch: pytest.MonkeyPatch):
    submission = at(Busy(), monkeypatch)
    monkeypatch.setattr(submission.kit, "kind", "server", raising=False)
    monkeypatch.setattr(submission.kit, "right", "coordinate", raising=False)
    with pytest.raises(BadSite, match="give the admin's kit, or a site's"):
        submission.run_to_end()


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
