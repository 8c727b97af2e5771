"""Many studies in one job of NVFlare, one after the other: a controller and an executor."""

import time
from functools import partial
from pathlib import Path
from typing import Any, cast

from nvflare.apis.event_type import EventType
from nvflare.apis.fl_context import FLContext
from nvflare.apis.signal import Signal

from grandrounds.core.failures import Disclosure
from grandrounds.engines.remote_site import SiteAgent
from grandrounds.flare.controller import StudyController
from grandrounds.flare.executor import SiteExecutor
from grandrounds.flare.job import job_paths
from grandrounds.flare.transport import ASK, MAIL, SERVER, Transport
from grandrounds.runs.remote import run_remotely, serve_site, study_guard
from grandrounds.study.file import read_study

CLASSES = ("tests.helpers.flare_grid.GridController", "tests.helpers.flare_grid.GridExecutor")
OPEN = "grid.open"
STUDIES = "studies"  # a folder beside the job's own study
WIDE: Any = {"parties": (SERVER, "alder", "birch"), "largest": 2**31}
SECONDS = 60.0  # for a site's process to be there


class GridController(StudyController):
    """Conducts every study of the folder; before each one the sites are told to open for it."""

    def control_flow(self, abort_signal: Signal, fl_ctx: FLContext) -> None:
        """Run them all. Raises what stops the first that fails."""
        here, post = job_paths(fl_ctx, self.run), Transport(fl_ctx, SERVER, **WIDE)
        for path in sorted((here.study.parent / STUDIES).iterdir()):
            study = read_study(path)
            for site in study.trainers:
                told_to_open(post, site, path.stem)
            call = partial(post.send, ASK)
            run_remotely(study, here.run / path.stem, call, patience=self.patience)


def told_to_open(post: Transport, site: str, arm: str) -> None:
    """Tell a site which study comes next, as soon as its process is there."""
    end = time.monotonic() + SECONDS
    while True:
        try:
            post.send(OPEN, site, arm.encode(), SECONDS)
        except ConnectionError:
            if time.monotonic() > end:
                raise
            time.sleep(1.0)
        else:
            return


class GridExecutor(SiteExecutor):
    """Attends for one site to one study after the other."""

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Be ready for the first study at the start of the job, and close the last at its end."""
        if event_type == EventType.START_RUN:
            self._overdue.cancel()
            post = Transport(fl_ctx, str(fl_ctx.get_identity_name()), **WIDE)
            post.answer(OPEN, partial(self._next, fl_ctx, post))
            post.answer(ASK, lambda sealed: self._now.answer(sealed))
            post.answer(MAIL, lambda sealed: self._now.receive_update(sealed))
        else:
            super().handle_event(event_type, fl_ctx)

    @property
    def _now(self) -> SiteAgent:
        assert self._attendant
        return self._attendant

    def _next(self, context: FLContext, post: Transport, arm: bytes) -> bytes:
        if self._attendant:
            self._attendant.close()
        here, name = job_paths(context, self.run), arm.decode()
        study = read_study(here.study.parent / STUDIES / f"{name}.toml")
        site = cast(str, context.get_identity_name())

        def mail(peer: str, sealed: bytes) -> bytes:
            return post.send(MAIL, peer, sealed, SECONDS)

        self._attendant = SiteAgent(
            serve_site(study, site, (), Path(here.run) / name),
            mail,
            Disclosure(site, study.names),
            guard=partial(study_guard, study),
        )
        return b""
