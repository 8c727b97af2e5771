"""A submission is one job and the wait for its end; a supervisor resumes its run after a loss."""

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeAlias
from uuid import uuid4

from grandrounds.core.errors import RunFailed
from grandrounds.core.site_statistics import SiteStatistics
from grandrounds.engines.remote import Timeouts
from grandrounds.flare.job import TOLD_BY_SITES
from grandrounds.flare.kit import Kit
from grandrounds.flare.session import AdminSession, Job, Look, NoServer, open_session, unseen
from grandrounds.runs.survey import read_statistics
from grandrounds.study.study import Study

_Tell: TypeAlias = Callable[[str], None]
_GONE = 30.0  # seconds without an answer after which a server is gone
_AGAIN = 1.0  # second before it is asked again
_PAUSE = 5.0  # seconds between checks for missing parties
_IN_VAIN = 3  # losses in a row, without a further round, after which it gives up
_SILENT = re.compile(r" failed in round \d+ \(\w+\): (SiteSilent|ConnectionError): ")
_NOT_BEGUN = "FINISHED:FAILED_TO_RUN"  # a site was gone when the job was sent there


def unheard(id: str) -> None:
    """Ignore a job's id."""


@dataclass
class RoundReporter:
    """Reports every further round of a study's jobs."""

    tell: _Tell
    best: int = 0

    def __call__(self, job: Job) -> None:
        """Report a running job's round, if it is a further one."""
        if (round := int(job.told.get("round", 0))) > self.best:
            self.best = round
            self.tell(f"round {round} of {job.told['rounds']}")


@dataclass
class Submission:
    """One job: submitted once, and waited for although sessions with the server break off."""

    kit: Kit
    study: Study
    patience: Timeouts
    begun: _Tell = unheard
    resume: bool = False
    accept_changes: bool = False
    survey: bool = False
    id: str = ""
    token: str = field(default_factory=lambda: uuid4().hex)

    def submit(self, session: AdminSession) -> None:
        """Submit the job, if that is not done yet."""
        if not self.id:
            self.id = session.submit(
                self.study,
                self.patience,
                resume=self.resume,
                accept_changes=self.accept_changes,
                survey=self.survey,
                token=self.token,
            )
            self.begun(self.id)

    def run_to_end(self, look: Look = unseen) -> tuple[Job, str]:
        """Submit the job and wait until it is over; return it, and why it failed.

        A busy server leaves a question without an answer now and then, so it is asked for half a
        minute more, in fresh sessions. Raises `NoServer` after that.
        """
        answered = time.monotonic()

        def seen(job: Job) -> None:
            nonlocal answered
            answered = time.monotonic()
            look(job)

        while True:
            try:
                with open_session(self.kit) as session:
                    self.submit(session)
                    return session.wait(self.id, look=seen)
            except NoServer:
                if time.monotonic() > answered + _GONE:
                    raise
            time.sleep(_AGAIN)


def survey_federation(kit: Kit, study: Study, patience: Timeouts) -> tuple[SiteStatistics, ...]:
    """Ask a federation's sites for their statistics, in a job of its own.

    Raises `RunFailed` where a site refuses or fails, and `BadFolder` where what came is not that.
    """
    submission = Submission(kit, study, patience, survey=True)
    raise_if_failed(*submission.run_to_end())
    with TemporaryDirectory() as made, open_session(kit) as session:
        folder = session.fetch(submission.id, Path(made) / "told")
        return read_statistics(folder / TOLD_BY_SITES, study)


@dataclass
class Supervisor:
    """Brings a study to its end although the server, a site, or all may be lost meanwhile."""

    kit: Kit
    study: Study
    patience: Timeouts
    tell: _Tell
    begun: _Tell
    resume: bool = False
    accept_changes: bool = False

    def run_to_end(self) -> None:
        """Submit the study, and resume it after every loss, once all parties answer again.

        Raises `RunFailed` for any other failure, or after three losses in a row without a
        round between them.
        """
        rounds, losses, best = RoundReporter(self.tell), 0, 0
        while True:
            job, why = self._one_job(rounds)
            if not is_loss(job, why):
                raise_if_failed(job, why)
                return
            losses = 1 if rounds.best > best else losses + 1
            best = rounds.best
            if losses == _IN_VAIN:
                raise RunFailed(f"{_IN_VAIN} losses in a row, no round between them; then: {why}")
            self.tell(f"{why}; the run is resumed as soon as all are there")
            self.resume = True

    def _one_job(self, rounds: RoundReporter) -> tuple[Job, str]:
        """Wait until all are there, and for the end of one job; the same again if it breaks off."""
        submission = Submission(
            self.kit, self.study, self.patience, self.begun, self.resume, self.accept_changes
        )
        while True:
            wait_for_all(self.kit, self.study.trainers, self.tell)
            try:
                return submission.run_to_end(rounds)
            except NoServer as error:
                self.tell(str(error))


def raise_if_failed(job: Job, why: str) -> None:
    """Raise `RunFailed`, with the reason, for a job that was not done."""
    if not job.is_done:
        raise RunFailed(f"job {job.id} ended as {job.status}: {why}")


def wait_for_all(kit: Kit, sites: Sequence[str], tell: _Tell) -> None:
    """Wait until the server and every site answer."""
    said = ""
    while missing := _missing(kit, sites):
        words = f"waiting for {', '.join(missing)}"
        if words != said:
            tell(words)
            said = words
        time.sleep(_PAUSE)


def _missing(kit: Kit, sites: Sequence[str]) -> list[str]:
    try:
        with open_session(kit) as session:
            there = session.responding_sites()
    except NoServer:
        return ["the server"]
    return [site for site in sites if site not in there]


def is_loss(job: Job, reason: str) -> bool:
    """Tell whether a job failed because a party was lost, and not by an error of the run."""
    return job.is_lost or job.status == _NOT_BEGUN or bool(_SILENT.search(reason))
