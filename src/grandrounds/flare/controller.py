"""The coordinator runs as an NVFlare controller, from a study's first round to its last."""

# NVFlare has no type stubs.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false

from dataclasses import asdict, dataclass, field
from typing import Any, cast

from nvflare.apis.client import Client
from nvflare.apis.fl_context import FLContext
from nvflare.apis.impl.controller import Controller
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal

from grandrounds.core.errors import Stopped
from grandrounds.core.events import Event, RoundFinished, SiteMissed
from grandrounds.core.files import make_folder
from grandrounds.core.processes import end_when_orphaned
from grandrounds.engines.remote import Call, Timeouts
from grandrounds.flare.job import (
    ANSWERS,
    ENDS,
    STATUS,
    TOLD_BY_SITES,
    JobPaths,
    check_run,
    hand_out,
    hold_job,
    job_paths,
)
from grandrounds.flare.transport import ASK, SERVER, Transport
from grandrounds.models.pretrained import look_up_files_in
from grandrounds.runs.costs import largest_letter
from grandrounds.runs.remote import run_remotely
from grandrounds.runs.survey import ask_statistics, write_statistics
from grandrounds.study.file import read_study
from grandrounds.study.installed import look_up
from grandrounds.study.study import Study


@dataclass
class Progress:
    """The progress of a run, for NVFlare's status command."""

    rounds: int
    round: int = 0
    score: float | None = None
    missed: list[str] = field(default_factory=list[str])

    def __call__(self, event: Event) -> None:
        """Update the progress by an event."""
        if isinstance(event, RoundFinished):
            self.round, self.score = event.round, event.score
        elif isinstance(event, SiteMissed):
            self.missed.append(f"{event.site}: {event.error}: {event.message}")

    def answer(self, *_: object) -> dict[str, object]:
        """Answer NVFlare's command of this name."""
        return asdict(self)


class StudyController(Controller):
    """Runs the study of a job in the run folder `run`, from the newest saved round if it `resume`s.

    With `survey` nobody trains, and the sites are asked for their statistics.

    Its arguments are in the job's config_fed_server.json; see `Timeouts` for the seconds. Any error
    ends the job as failed: a job that finished has finished its study. Raises `BadStudy` where
    `run` is no name.
    """

    def __init__(
        self,
        run: str,
        resume: bool = False,
        silence: float = 20.0,
        deadline: float = 0.0,
        accept_changes: bool = False,
        survey: bool = False,
    ) -> None:
        super().__init__()
        self.run = check_run(run)
        self.resume = resume
        self.accept_changes = accept_changes
        self.survey = survey
        self.patience = Timeouts(silence=silence, deadline=deadline)

    def start_controller(self, fl_ctx: FLContext) -> None:
        """End a job's own process once its server's process is gone."""
        paths = job_paths(fl_ctx, self.run)
        if paths.root:
            end_when_orphaned()
            hold_job(paths)

    def control_flow(self, abort_signal: Signal, fl_ctx: FLContext) -> None:
        """Run the study to its end. Raises what stops it; NVFlare turns that into a failed job."""

        def call(site: str, envelope: bytes, timeout: float) -> bytes:
            if cast(bool, abort_signal.triggered):
                raise Stopped("the job was aborted; what is saved can be resumed")
            return transport.send(ASK, site, envelope, timeout)

        paths = job_paths(fl_ctx, self.run)
        if paths.root:
            look_up_files_in(paths.local)
        study = look_up(paths.study).read() if paths.root else read_study(paths.study)
        largest = largest_letter(study)
        transport = Transport(fl_ctx, SERVER, parties=study.trainers, largest=largest)
        if self.survey:
            self._survey(study, paths, call)
            return
        progress = Progress(study.rounds)
        cast(Any, fl_ctx.get_engine()).register_app_command(STATUS, progress.answer)
        self.log_info(fl_ctx, ANSWERS)
        try:
            run_remotely(
                study,
                paths.run,
                call,
                patience=self.patience,
                root=paths.root,
                resume=self.resume,
                accept_changes=self.accept_changes,
                listeners=[progress],
            )
        finally:
            hand_out(study, paths.run, paths.result)
            self.log_info(fl_ctx, ENDS)

    def _survey(self, study: Study, paths: JobPaths, call: Call) -> None:
        """Ask the sites for their statistics, and hand them out as the job's result."""
        found = ask_statistics(study, paths.run, call, patience=self.patience, root=paths.root)
        make_folder(paths.result)
        write_statistics(study, found, paths.result / TOLD_BY_SITES)

    def stop_controller(self, fl_ctx: FLContext) -> None:
        """Do nothing: `control_flow` has ended."""

    def process_result_of_unknown_task(
        self,
        client: Client,
        task_name: str,
        client_task_id: str,
        result: Shareable,
        fl_ctx: FLContext,
    ) -> None:
        """Do nothing: this controller sends no tasks."""
