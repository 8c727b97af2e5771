"""What the person who submits studies does: submit, watch, fetch, abort."""

# NVFlare has no type stubs.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

import contextlib
import io
import logging
import shutil
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

from nvflare.fuel.flare_api.api_spec import (
    AuthenticationError,
    AuthorizationError,
    InternalError,
    InvalidTarget,
    JobNotFound,
    JobNotRunning,
    NoConnection,
    NoReply,
)
from nvflare.fuel.flare_api.flare_api import Session, new_secure_session

from grandrounds.errors import BadFolder, BadStudy, RunFailed
from grandrounds.flare.job import export_job
from grandrounds.flare.kits import ADMIN
from grandrounds.flare.places import RESULT, STATUS
from grandrounds.flare.starting import Kit
from grandrounds.study import Study

DONE = "FINISHED:COMPLETED"


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
    def is_over(self) -> bool:
        """Tell whether it has ended, well or not."""
        return self.status.startswith("FINISHED") or "FAILED" in self.status

    @property
    def is_done(self) -> bool:
        """Tell whether its study came to its end."""
        return self.status == DONE


@dataclass(frozen=True)
class Desk:
    """A session with the federation's server, by the admin's kit."""

    session: Session

    @property
    def connected(self) -> tuple[str, ...]:
        """Name the sites that are connected."""
        return tuple(sorted(client.name for client in self.session.get_connected_client_list()))

    def submit(self, study: Study, *, resume: bool = False) -> str:
        """Submit a study as a job, and give its id."""
        with TemporaryDirectory() as made:
            folder = Path(made) / study.name
            export_job(study, folder, resume=resume)
            return self.session.submit_job(str(folder))

    def jobs(self) -> list[Job]:
        """List all jobs, the newest first."""
        found = cast(list[dict[str, Any]], self.session.list_jobs() or [])
        jobs = [self._job(meta) for meta in found]
        return sorted(jobs, key=lambda job: job.submitted, reverse=True)

    def job(self, id: str) -> Job:
        """Look at one job. Raises `BadFolder` where there is none of this id."""
        with _known(id):
            return self._job(cast(dict[str, Any], self.session.get_job_meta(id)))

    def _job(self, meta: Mapping[str, Any]) -> Job:
        id = str(meta["job_id"])
        status = str(meta.get("status", ""))
        told = self._told(id) if status == "RUNNING" else {}
        name = str(meta.get("name") or meta.get("job_name", ""))
        return Job(id, name, status, str(meta.get("submit_time_iso") or ""), told)

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

    def wait(self, id: str, *, every: float = 1.0) -> Job:
        """Wait until a job is over."""
        while not (job := self.job(id)).is_over:
            time.sleep(every)
        return job

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
def desk(kit: Kit, *, timeout: float = 20.0) -> Generator[Desk, None, None]:
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
        yield Desk(session)
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
