"""A supervisor brings a submitted run to its end: it waits for lost parties, and resumes it."""

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias
from uuid import uuid4

from grandrounds.core.errors import RunFailed
from grandrounds.engines.remote import Timeouts
from grandrounds.flare.kit import Kit
from grandrounds.flare.session import Job, NoServer, open_session
from grandrounds.study.study import Study

_Tell: TypeAlias = Callable[[str], None]
_PAUSE = 5.0  # seconds between checks for missing parties
_IN_VAIN = 3  # losses in a row, without a further round, after which it gives up
_SILENT = re.compile(r" failed in round \d+ \(\w+\): (SiteSilent|ConnectionError): ")
_NOT_BEGUN = "FINISHED:FAILED_TO_RUN"  # a site was gone when the job was sent there


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
class Supervisor:
    """Brings a study to its end although the server, a site, or all may be lost meanwhile."""

    kit: Kit
    study: Study
    patience: Timeouts
    tell: _Tell
    begun: _Tell
    resume: bool = False

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
        """Submit one job and wait for its end; reopen the session whenever it breaks off."""
        token, id = uuid4().hex, ""
        while True:
            wait_for_all(self.kit, self.study.trainers, self.tell)
            try:
                with open_session(self.kit) as session:
                    if not id:
                        id = session.submit(
                            self.study, self.patience, resume=self.resume, token=token
                        )
                        self.begun(id)
                    return session.wait(id, look=rounds)
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
