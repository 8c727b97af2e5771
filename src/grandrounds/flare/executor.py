"""A hospital runs as an NVFlare executor: it answers its coordinator and takes its peers' mail."""

# NVFlare has no type stubs.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false

import os
from threading import Timer
from typing import cast

from nvflare.apis.event_type import EventType
from nvflare.apis.executor import Executor
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.apis.signal import Signal

from grandrounds.core.processes import end_when_orphaned
from grandrounds.engines.remote import Timeouts
from grandrounds.engines.remote_site import SiteAgent
from grandrounds.flare.job import job_paths
from grandrounds.flare.transport import ASK, MAIL, Transport
from grandrounds.runs.remote import serve_site
from grandrounds.study.file import read_study
from grandrounds.study.site_file import read_site

_PATIENCE = 10.0  # seconds in which a peer takes mail


class SiteExecutor(Executor):
    """Attends for one site to the run `run`, as long as the job lasts."""

    def __init__(self, run: str) -> None:
        super().__init__()
        self.run = run
        self._attendant: SiteAgent | None = None
        end_when_orphaned()  # NVFlare 2.9 spins for ever in a job whose site's own process is gone
        self._overdue = Timer(Timeouts().start, os._exit, [1])  # or was gone before this began
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
        """Refuse: no tasks are given out."""
        return make_reply(ReturnCode.TASK_UNKNOWN)

    def _attend(self, context: FLContext) -> SiteAgent:
        here, name = job_paths(context, self.run), cast(str, context.get_identity_name())
        post = Transport(context, name)

        def mail(peer: str, sealed: bytes) -> bytes:
            return post.send(MAIL, peer, sealed, _PATIENCE)

        study = read_study(here.study)
        files = [read_site(here.site)] if here.site.exists() else []
        accepted = here.local if here.root else None
        attendant = SiteAgent(serve_site(study, name, files, here.run, accepted), mail)
        post.answer(ASK, attendant.answer)
        post.answer(MAIL, attendant.receive_update)
        return attendant
