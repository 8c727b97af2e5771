"""An admin session submits studies, and watches, fetches and aborts jobs."""

# NVFlare has no type stubs.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

import contextlib
import io
import logging
import re
import shutil
import time
from collections.abc import Callable, Container, Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias, cast
from uuid import uuid4

from nvflare.apis.fl_exception import FLCommunicationError
from nvflare.fuel.flare_api.api_spec import (
    AuthenticationError,
    AuthorizationError,
    InternalError,
    InvalidTarget,
    JobNotFound,
    JobNotRunning,
    NoClientsAvailable,
    NoConnection,
    NoReply,
    SessionClosed,
)
from nvflare.fuel.flare_api.flare_api import Session, new_secure_session

from grandrounds.core.errors import BadFolder, BadSite, BadStudy, RunFailed
from grandrounds.core.names import check_name
from grandrounds.engines.remote import Timeouts
from grandrounds.flare.job import ANSWERS, ENDS, RESULT, STATUS, export_job
from grandrounds.flare.kit import RIGHTS, Kit
from grandrounds.study.study import Study

DONE = "FINISHED:COMPLETED"
ABANDONED = "FINISHED:ABANDONED"  # what a server that starts says of a job that it lost
LOST = "LOST"  # a job that nobody runs, and whose run did not finish
ENDING = "ENDING"  # its process has ended; the server waits for the sites, and files the result
_LOOKS = 960  # in a row, a second apart; NVFlare 2.9 waits 900 s for the sites' last word
_LONG_LOG = 100_000  # characters, of a job that has begun long ago
_TOOK = re.compile(r"(?:(\d+) days?, )?(\d+):(\d+):(\d+)")  # as NVFlare writes a duration
_REJECTED = "error:client_registration "  # what NVFlare puts before the server's reason
_SILENT = {"error": "No replies"}  # what NVFlare says of a site that does not answer


class NoServer(RunFailed):
    """The federation's server does not answer."""


@dataclass(frozen=True)
class Job:
    """One job of a federation: NVFlare's id and status, and the progress of its study."""

    id: str
    name: str
    status: str
    submitted: str
    told: Mapping[str, Any]

    @property
    def progress(self) -> str:
        """Write how many of the rounds are done; empty where the coordinator did not report."""
        return f"{self.told['round']} of {self.told['rounds']}" if self.told else ""

    @property
    def is_over(self) -> bool:
        """Tell whether the job has ended, with or without success."""
        return self.is_lost or self.status.startswith("FINISHED") or "FAILED" in self.status

    @property
    def is_lost(self) -> bool:
        """Tell whether no process runs the job any longer."""
        return self.status == LOST

    @property
    def is_done(self) -> bool:
        """Tell whether the job's study was finished."""
        return self.status == DONE


Look: TypeAlias = Callable[[Job], None]


def unseen(job: Job) -> None:
    """Ignore a job's progress."""


@dataclass(frozen=True)
class AdminSession:
    """A session with the federation's server, opened with the admin's kit."""

    session: Session

    def responding_sites(self) -> tuple[str, ...]:
        """Return the sites that answer; NVFlare calls a lost one connected for minutes."""
        try:
            replies = cast(dict[str, object], self.session.report_version("client"))
        except NoClientsAvailable:
            return ()
        return tuple(sorted(name for name, reply in replies.items() if reply != _SILENT))

    def submit(
        self,
        study: Study,
        patience: Timeouts,
        *,
        resume: bool = False,
        accept_changes: bool = False,
        survey: bool = False,
        token: str = "",
    ) -> str:
        """Submit a study as a job, and return its id; the same token again makes no second job.

        With `survey` the job asks for the sites' statistics alone.
        """
        with TemporaryDirectory() as made:
            folder = Path(made) / study.name
            export_job(
                study,
                folder,
                resume=resume,
                accept_changes=accept_changes,
                survey=survey,
                silence=patience.silence,
                deadline=patience.deadline,
            )
            return self.session.submit_job(str(folder), token or uuid4().hex)

    def jobs(self) -> list[Job]:
        """Return all jobs, the newest first."""
        metas = cast(list[dict[str, Any]], self.session.list_jobs() or [])
        running = self._running_jobs()
        jobs = [self._job(meta, running) for meta in metas]
        return sorted(jobs, key=lambda job: job.submitted, reverse=True)

    def job(self, id: str) -> Job:
        """Return one job. Raises `BadStudy` where there is none of this id."""
        with _known(id):
            return self._job(
                cast(dict[str, Any], self.session.get_job_meta(id)), self._running_jobs()
            )

    def _running_jobs(self) -> set[str]:
        """Return the ids of the jobs that the server runs now."""
        return {str(job.job_id) for job in self.session.get_system_info().job_info}

    def _job(self, meta: Mapping[str, Any], running: Container[str]) -> Job:
        id = str(meta["job_id"])
        status = str(meta.get("status", ""))
        if status == ABANDONED:
            status = LOST
        elif status == "RUNNING" and id not in running:
            status = ENDING
        reported = self._progress(id) if status == "RUNNING" else {}
        name = str(meta.get("name") or meta.get("job_name", ""))
        submitted = str(meta.get("submit_time_iso") or meta.get("submit_time") or "")
        return Job(id, name, status, submitted, reported)

    def _progress(self, id: str) -> Mapping[str, Any]:
        """Ask the coordinator for the progress; empty where it is starting or ending.

        One that does not answer yet is not asked: NVFlare's server would log it as an error.
        NVFlare's server hands the question to the job's process, and waits for the answer exactly
        as long as this session waits for the server: a missing one says nothing of the server.
        """
        if not self._answers(id):
            return {}
        try:
            return self.session.do_app_command(id, STATUS, {})
        except (
            AuthorizationError,
            InternalError,
            InvalidTarget,
            JobNotFound,
            JobNotRunning,
            NoConnection,
            NoReply,
        ):
            return {}

    def _answers(self, id: str) -> bool:
        """Tell by its job's log whether the coordinator answers; a long one has lost its start.

        A kit that may only look cannot read the log, and asks.
        """
        try:
            log = str(self.session.get_job_logs(id)["logs"].get("server", ""))
        except AuthorizationError:
            return True
        return ENDS not in log and (ANSWERS in log or len(log) > _LONG_LOG)

    def wait(self, id: str, *, look: Look = unseen) -> tuple[Job, str]:
        """Wait until a job is over, and call `look` meanwhile; return the job and why it failed."""
        ending = 0
        while not (job := self.job(id)).is_over:
            ending = ending + 1 if job.status == ENDING else 0
            if ending > _LOOKS:  # of a server that was not started by `federation start`
                job = replace(job, status=LOST)
                break
            look(job)
            time.sleep(1.0)
        if job.is_lost:
            return job, "its server was lost"
        return job, "" if job.is_done else self.reason(id)

    def logs(self, id: str) -> str:
        """Return the server's log of a job; a site's log stays at the site."""
        with _known(id):
            return str(self.session.get_job_logs(id)["logs"].get("server", ""))

    def reason(self, id: str) -> str:
        """Return the last reason in the server's log for a job's failure."""
        start = "Exception in workflow study: "
        reasons = [line.partition(start)[2] for line in self.logs(id).splitlines() if start in line]
        return reasons[-1] if reasons else "see its logs"

    def days_since_end(self, job: Job) -> float:
        """Return how many days ago a job ended; since it began where the server was lost."""
        with _known(job.id):
            meta = cast(dict[str, Any], self.session.get_job_meta(job.id))
        began = float(meta["submit_time"])
        with suppress(ValueError, KeyError):
            began = datetime.fromisoformat(str(meta["start_time"])).timestamp()
        took = _TOOK.match(str(meta.get("duration", "")))
        seconds = _seconds(*took.groups(default="0")) if took else 0.0
        return max(0.0, time.time() - began - seconds) / 86_400.0

    def delete(self, id: str) -> None:
        """Delete a job that is over, with its result, from the server's store."""
        with _known(id):
            self.session.delete_job(id)

    def abort(self, id: str) -> None:
        """Abort a job; its run can be resumed from what it has saved."""
        with _known(id):
            self.session.abort_job(id)

    def fetch(self, id: str, out: Path) -> Path:
        """Download a job's run folder, without states. Raises `BadFolder`."""
        if out.exists() and any(out.iterdir()):
            raise BadFolder(f"{out}: is not empty; give another --out")
        with TemporaryDirectory() as made, _known(id):
            download = Path(self.session.download_job_result(id, made))
            run = next(iter(download.rglob(RESULT)), None)
            if run is None:
                raise BadFolder(f"job {id} left no results: it is not over, or failed at once")
            shutil.copytree(run, out, dirs_exist_ok=True)
        return out


@contextmanager
def open_session(kit: Kit, *, timeout: float = 20.0) -> Generator[AdminSession, None, None]:
    """Open a session with a federation's server; with a site's kit, to look at its status.

    Raises `NoServer`, also where it breaks off, and `BadSite` for a kit that the server does not
    let do what was asked.
    """
    if kit.kind == "server":
        raise BadSite(f"{kit.folder}: {RIGHTS[kit.right]}; give the admin's kit, or a site's")
    own = kit.look if kit.kind == "client" else kit
    host, port = own.address
    # The sentence of `NoServer` replaces what NVFlare would log here on stderr, or print.
    logging.getLogger().addHandler(logging.NullHandler())
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            session = new_secure_session(own.user, str(own.folder.absolute()), timeout=timeout)
        except (
            AuthenticationError,
            FLCommunicationError,
            InternalError,
            NoConnection,
        ) as error:
            what = _refusal(error) or f"does not answer ({error})"
            raise NoServer(f"the server {host}:{port} {what}") from None
    try:
        yield AdminSession(session)
    except AuthorizationError as error:
        raise _not_allowed(own, error) from None
    except (NoConnection, SessionClosed) as error:
        raise NoServer(
            f"the server {host}:{port} answers no longer ({error}); once it is there again, "
            "`grandrounds federation status` says what became of the job"
        ) from None
    finally:
        session.close()


def _refusal(error: Exception) -> str:
    """Say why a server that answers lets this kit not in; empty where it does not answer."""
    cause = str(error.__context__ or "")
    if cause.startswith(_REJECTED):
        return f"does not let this kit in: {cause.removeprefix(_REJECTED)}"
    return f"does not let this kit in ({error})" if isinstance(error, AuthenticationError) else ""


def _not_allowed(kit: Kit, error: AuthorizationError) -> BadSite:
    return BadSite(
        f"{kit.folder}: the server does not let this kit do that ({error}); it {RIGHTS[kit.right]}"
    )


@contextmanager
def _known(id: str) -> Generator[None, None, None]:
    check_name(id, "job id")
    try:
        yield
    except (JobNotFound, ValueError):
        raise BadStudy(
            f"there is no job {id}; `grandrounds federation status` lists them"
        ) from None


def _seconds(days: str, hours: str, minutes: str, seconds: str) -> float:
    return ((int(days) * 24 + int(hours)) * 60 + int(minutes)) * 60.0 + int(seconds)
