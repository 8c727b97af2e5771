"""The person who submits studies does so here, and watches, fetches and aborts jobs."""

# NVFlare has no type stubs.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

import contextlib
import io
import logging
import shutil
import time
from collections.abc import Callable, Container, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias, cast
from uuid import uuid4

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
)
from nvflare.fuel.flare_api.flare_api import Session, new_secure_session

from grandrounds.core.errors import BadFolder, BadStudy, RunFailed
from grandrounds.engines.remote import Timeouts
from grandrounds.flare.job import RESULT, STATUS, export_job
from grandrounds.flare.kit import Kit
from grandrounds.flare.provision import ADMIN
from grandrounds.study.study import Study

DONE = "FINISHED:COMPLETED"
LOST = "LOST"  # a job whose server was killed: NVFlare 2.9 calls it RUNNING for ever
_LOOKS = 10  # in a row at a job that seems to be lost: one that ends seems so for a moment
_SILENT = {"error": "No replies"}  # what NVFlare says of a site that does not answer


class NoServer(RunFailed):
    """The federation's server does not answer."""


@dataclass(frozen=True)
class Job:
    """One job of a federation: NVFlare's id and status, and how far its study has come."""

    id: str
    name: str
    status: str
    submitted: str
    told: Mapping[str, Any]

    @property
    def progress(self) -> str:
        """Say how many rounds of how many are done, if the coordinator said so."""
        return f"{self.told['round']} of {self.told['rounds']}" if self.told else ""

    @property
    def is_over(self) -> bool:
        """Tell whether it has ended, well or not."""
        return self.status.startswith("FINISHED") or "FAILED" in self.status

    @property
    def is_lost(self) -> bool:
        """Tell whether no process plays it any longer."""
        return self.status == LOST

    @property
    def is_done(self) -> bool:
        """Tell whether its study came to its end."""
        return self.status == DONE


Look: TypeAlias = Callable[[Job], None]


def unseen(job: Job) -> None:
    """See a job and do nothing."""


@dataclass(frozen=True)
class AdminSession:
    """A session with the federation's server, by the admin's kit."""

    session: Session

    def responding_sites(self) -> tuple[str, ...]:
        """Ask all sites, and name those that answer; a lost one is connected for minutes."""
        try:
            found = cast(dict[str, object], self.session.report_version("client"))
        except NoClientsAvailable:
            return ()
        return tuple(sorted(name for name, said in found.items() if said != _SILENT))

    def submit(
        self, study: Study, patience: Timeouts, *, resume: bool = False, token: str = ""
    ) -> str:
        """Submit a study as a job, and give its id; with a token again without a second job."""
        with TemporaryDirectory() as made:
            folder = Path(made) / study.name
            silence, deadline = patience.silence, patience.deadline
            export_job(study, folder, resume=resume, silence=silence, deadline=deadline)
            return self.session.submit_job(str(folder), token or uuid4().hex)

    def jobs(self) -> list[Job]:
        """List all jobs, the newest first."""
        found = cast(list[dict[str, Any]], self.session.list_jobs() or [])
        played = self._played()
        jobs = [self._job(meta, played) for meta in found]
        return sorted(jobs, key=lambda job: job.submitted, reverse=True)

    def job(self, id: str) -> Job:
        """Look at one job. Raises `BadFolder` where there is none of this id."""
        with _known(id):
            return self._job(cast(dict[str, Any], self.session.get_job_meta(id)), self._played())

    def _played(self) -> set[str]:
        """Ask which jobs the server plays just now."""
        return {str(job.job_id) for job in self.session.get_system_info().job_info}

    def _job(self, meta: Mapping[str, Any], played: Container[str]) -> Job:
        id = str(meta["job_id"])
        status = str(meta.get("status", ""))
        if status == "RUNNING" and id not in played:
            status = LOST
        told = self._told(id) if status == "RUNNING" else {}
        name = str(meta.get("name") or meta.get("job_name", ""))
        submitted = str(meta.get("submit_time_iso") or meta.get("submit_time") or "")
        return Job(id, name, status, submitted, told)

    def _told(self, id: str) -> Mapping[str, Any]:
        """Ask the coordinator how far it is; it may just be starting, or ending."""
        try:
            return self.session.do_app_command(id, STATUS, {})
        except (
            AuthorizationError,
            InternalError,
            InvalidTarget,
            JobNotFound,
            JobNotRunning,
            NoReply,
        ):
            return {}

    def wait(self, id: str, *, look: Look = unseen) -> tuple[Job, str]:
        """Wait until a job is over, and let `look` see it meanwhile; give why it failed, if so."""
        lost = 0
        while not (job := self.job(id)).is_over and lost < _LOOKS:
            lost = lost + 1 if job.is_lost else 0
            look(job)
            time.sleep(1.0)
        if job.is_lost:
            return job, "its server was lost"
        return job, "" if job.is_done else self.reason(id)

    def logs(self, id: str) -> str:
        """Give the server's log of a job; a site's log stays at the site."""
        with _known(id):
            return str(self.session.get_job_logs(id)["logs"].get("server", ""))

    def reason(self, id: str) -> str:
        """Give what the server's log says last of why a job failed."""
        start = "Exception in workflow study: "
        found = [line.partition(start)[2] for line in self.logs(id).splitlines() if start in line]
        return found[-1] if found else "see its logs"

    def abort(self, id: str) -> None:
        """Stop a job; what it has saved can be resumed."""
        with _known(id):
            self.session.abort_job(id)

    def fetch(self, id: str, out: Path) -> Path:
        """Bring a job's run folder here, without states. Raises `BadFolder`."""
        if out.exists() and any(out.iterdir()):
            raise BadFolder(f"{out}: is not empty; give another --out")
        with TemporaryDirectory() as made, _known(id):
            got = Path(self.session.download_job_result(id, made))
            found = next(iter(got.rglob(RESULT)), None)
            if found is None:
                raise BadFolder(f"job {id} left no results: it is not over, or failed at once")
            shutil.copytree(found, out, dirs_exist_ok=True)
        return out


@contextmanager
def open_session(kit: Kit, *, timeout: float = 20.0) -> Generator[AdminSession, None, None]:
    """Open a session with a federation's server. Raises `NoServer`, also where it ends midway."""
    host, port = kit.address
    # What NVFlare would log here on stderr, one sentence says.
    logging.getLogger().addHandler(logging.NullHandler())
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            session = new_secure_session(ADMIN, str(kit.folder.absolute()), timeout=timeout)
        except (NoConnection, AuthenticationError) as error:
            raise NoServer(f"the server {host}:{port} does not answer ({error})") from None
    try:
        yield AdminSession(session)
    except NoConnection as error:
        raise NoServer(
            f"the server {host}:{port} answers no longer ({error}); once it is there again, "
            "`grandrounds federation status` says what became of the job"
        ) from None
    finally:
        session.close()


@contextmanager
def _known(id: str) -> Generator[None, None, None]:
    try:
        yield
    except (JobNotFound, ValueError):
        raise BadStudy(
            f"there is no job {id}; `grandrounds federation status` lists them"
        ) from None
    except AuthorizationError as error:
        raise BadStudy(f"job {id}: this kit may not do that ({error})") from None
