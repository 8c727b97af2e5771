"""A site runs as an NVFlare executor: it answers the coordinator and receives updates of peers."""

# NVFlare has no type stubs.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false

import os
from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from hashlib import sha256
from threading import Timer
from typing import cast

from nvflare.apis.event_type import EventType
from nvflare.apis.executor import Executor
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.apis.signal import Signal

from grandrounds.core.errors import BadInput
from grandrounds.core.failures import Disclosure
from grandrounds.core.processes import end_when_orphaned
from grandrounds.data.statistics import problem_in_statistics
from grandrounds.engines.in_process import InProcessEngine
from grandrounds.engines.remote import Timeouts
from grandrounds.engines.remote_site import SiteAgent
from grandrounds.flare.job import JobPaths, check_run, hold_job, job_paths
from grandrounds.flare.kit import Kit
from grandrounds.flare.transport import ASK, MAIL, SERVER, SMALL, Transport
from grandrounds.models.pretrained import look_up_files_in
from grandrounds.runs.costs import largest_letter
from grandrounds.runs.ledgers import site_ledger
from grandrounds.runs.remote import closed_site, identity_of, serve_site, study_guard
from grandrounds.runs.survey import plan_statistics, serve_statistics
from grandrounds.site.guard import SurveyGuard
from grandrounds.study.file import fingerprint, read_study
from grandrounds.study.installed import read_accepted
from grandrounds.study.revocation import keep_list
from grandrounds.study.site_file import SiteSource, read_site
from grandrounds.study.study import Study

_PATIENCE = 10.0  # seconds in which a peer must receive an update


class SiteExecutor(Executor):
    """Answers for one site in the run `run`, as long as the job lasts.

    With `survey` it answers with its statistics, and nobody trains. Raises `BadStudy` where `run`
    is no name.
    """

    def __init__(self, run: str, survey: bool = False) -> None:
        super().__init__()
        self.run = check_run(run)
        self.survey = survey
        self._attendant: SiteAgent | None = None
        end_when_orphaned()  # NVFlare 2.9 loops for ever in a job whose site's own process is gone
        self._overdue = Timer(Timeouts().start, os._exit, [1])  # or was gone before this started
        self._overdue.daemon = True
        self._overdue.start()

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Open the site at the start of a job, and close it at the end."""
        if event_type == EventType.START_RUN:
            self._overdue.cancel()
            self._attendant = self._attend(fl_ctx)
        elif event_type == EventType.END_RUN and self._attendant:
            self._attendant.close()

    def execute(
        self,
        task_name: str,  # noqa: ARG002 - NVFlare calls with these names
        shareable: Shareable,  # noqa: ARG002
        fl_ctx: FLContext,  # noqa: ARG002
        abort_signal: Signal,  # noqa: ARG002
    ) -> Shareable:
        """Refuse every task: the controller sends none."""
        return make_reply(ReturnCode.TASK_UNKNOWN)

    def _attend(self, context: FLContext) -> SiteAgent:
        paths, name = job_paths(context, self.run), cast(str, context.get_identity_name())
        if paths.root:
            hold_job(paths)
            look_up_files_in(paths.local)
        try:
            study = study_of_job(paths, name)
        except BadInput as refusal:
            return self._refuse(context, paths, name, refusal)
        if self.survey:
            return self._answer_survey(context, paths, name, study)
        identity = identity_of(fingerprint(study), paths.run, paths.root, "client")
        parties, largest = (SERVER, *study.trainers), largest_letter(study)
        transport = Transport(context, name, parties=parties, largest=largest)

        def mail(peer: str, envelope: bytes) -> bytes:
            return transport.send(MAIL, peer, envelope, _PATIENCE)

        agent = SiteAgent(
            open_site_of_kit(study, name, paths),
            mail,
            Disclosure(name, study.names),
            identity=identity,
            coordinator=_coordinator(paths),
            guard=partial(study_guard, study),
            ledger=site_ledger(study, paths.run, name, identity),
            learn=partial(keep_list, root=paths.root) if paths.root else bytes,
        )
        transport.answer(ASK, agent.answer)
        transport.answer(MAIL, agent.receive_update)
        return agent

    def _answer_survey(
        self, context: FLContext, paths: JobPaths, name: str, study: Study
    ) -> SiteAgent:
        """Answer with the site's statistics, which the accepted study lists, and nothing else."""
        plan = plan_statistics(study, name)
        identity = identity_of(fingerprint(study), paths.run, paths.root, "client")
        agent = SiteAgent(
            serve_statistics(
                study, name, partial(_files, paths), paths.local if paths.root else None
            ),
            _to_nobody,
            Disclosure(name, study.names),
            identity=identity,
            coordinator=_coordinator(paths),
            guard=lambda _: SurveyGuard(partial(problem_in_statistics, plan=plan, site=name)),
            ledger=site_ledger(study, paths.run, name, identity),
            learn=partial(keep_list, root=paths.root) if paths.root else bytes,
        )
        transport = Transport(context, name, parties=(SERVER,), largest=SMALL)
        transport.answer(ASK, agent.answer)
        return agent

    def _refuse(
        self, context: FLContext, paths: JobPaths, name: str, refusal: BadInput
    ) -> SiteAgent:
        """Let the coordinator hear why this site does not read the study, and answer nothing."""
        study = sha256(paths.study.read_bytes()).hexdigest()
        agent = SiteAgent(
            closed_site(refusal),
            _to_nobody,
            Disclosure(name),
            identity=identity_of(study, paths.run, paths.root, "client"),
            coordinator=_coordinator(paths),
        )
        transport = Transport(context, name, parties=(SERVER,), largest=SMALL)
        transport.answer(ASK, agent.answer)
        return agent


def _coordinator(paths: JobPaths) -> str:
    """Return the name by which the coordinator signs; in the simulator nobody does."""
    return Kit(paths.root.parent.parent).coordinator if paths.root else ""


def _to_nobody(peer: str, envelope: bytes) -> bytes:  # noqa: ARG001
    raise ConnectionError("this site is closed")


def study_of_job(paths: JobPaths, site: str) -> Study:
    """Read the study of a job; in a federation only with code that the site accepted.

    Raises `BadSite` and `BadStudy`.
    """
    if paths.root is None:
        return read_study(paths.study)
    return read_accepted(paths.study, site=site, accepted=paths.local, root=paths.root)


def _files(paths: JobPaths) -> list[SiteSource]:
    """Read the site's own file, if it has one. Raises `BadSite`."""
    return [read_site(paths.site)] if paths.site.exists() else []


@contextmanager
def open_site_of_kit(
    study: Study, name: str, paths: JobPaths
) -> Generator[tuple[InProcessEngine, bytes], None, None]:
    """Open the site with its site file; the coordinator hears of one that cannot be read, too."""
    files = _files(paths)
    accepted = paths.local if paths.root else None
    key = identity_of(fingerprint(study), paths.run, paths.root, "client").key
    with serve_site(study, name, files, paths.run, accepted, key) as hosted:
        yield hosted
