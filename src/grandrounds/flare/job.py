"""A study becomes an NVFlare job that uses two classes of the sites' allow-list and has no code."""

# NVFlare has no type stubs.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from nvflare.apis.fl_context import FLContext

from grandrounds.core.errors import BadInput
from grandrounds.core.files import write_text
from grandrounds.core.names import MOST, check_name
from grandrounds.core.processes import hold
from grandrounds.core.run_folder import RunFolder, SiteFolder
from grandrounds.flare.kit import RUNS
from grandrounds.runs.folder import check_unchanged
from grandrounds.runs.survey import survey_run
from grandrounds.study.file import fingerprint, to_toml
from grandrounds.study.study import Study

STUDY = RunFolder.study
SITE = "site.toml"  # in a kit; the simulator gives all sites one folder, and each has NAME.toml
TOLD_BY_SITES = "statistics.json"  # in the result of a job that asked for statistics
RESULT = "run"  # in the job's own folder: what anyone who fetches the job gets
IN_USE = "in-use.lock"  # in the job's own folder: held as long as its process lives
STATUS = "grandrounds.status"
ANSWERS = f"{STATUS} is answered"  # in the log of a job, from when on it is
ENDS = f"{STATUS} is answered no longer"  # in the log of a job that ends
CONTROLLER = "grandrounds.flare.controller.StudyController"
EXECUTOR = "grandrounds.flare.executor.SiteExecutor"
ALLOWED = (CONTROLLER, EXECUTOR)
REGISTRATION = "grandrounds.flare.registration.Registration"  # in the server's kit, not in a job
_FILTERS: Mapping[str, list[object]] = {"task_data_filters": [], "task_result_filters": []}
_PAUSE = 1.0  # seconds between a site's requests for tasks, of which there are none


def run_name(study: Study) -> str:
    """Return the name of a study's run folder at the server and the sites.

    Sites that join later do not change it, so that their run goes on where it is.
    """
    end = f"-{fingerprint(study.before(1))[:12]}"
    return check_run(study.name[: MOST - len(end)] + end)


def check_run(run: object) -> str:
    """Return a job's argument `run`: a name, never a path out of the party's own runs.

    Whoever submits a job writes its arguments. Raises `BadStudy`.
    """
    return check_name(run, "run")


def export_job(
    study: Study, folder: Path, *, run: str = "", survey: bool = False, **arguments: object
) -> None:
    """Write the job folder of a study: for this server and its clients, or for the simulator.

    With `survey` nobody trains: the sites are asked for their statistics, in a run of another name.
    Raises `BadStudy` where `run` is no name.
    """
    run = check_run(run or run_name(study))
    asks: dict[str, object] = {"survey": True} if survey else {}
    run = survey_run(run) if survey else run
    sites = list(study.trainers)
    config = folder / "app" / "config"
    _write(
        folder / "meta.json",
        {
            "name": study.name,
            "resource_spec": {},
            "min_clients": len(sites),
            "mandatory_clients": sites,
            "deploy_map": {"app": ["@ALL"]},
        },
    )
    workflow = {"id": "study", "path": CONTROLLER, "args": {"run": run, **asks, **arguments}}
    executor = {"tasks": ["*"], "executor": {"path": EXECUTOR, "args": {"run": run, **asks}}}
    pace = {"format_version": 2, "task_request_interval": _PAUSE}
    _write(config / "config_fed_server.json", {**pace, "workflows": [workflow], **_FILTERS})
    _write(config / "config_fed_client.json", {**pace, "executors": [executor], **_FILTERS})
    write_text(config / STUDY, to_toml(study))


def _write(path: Path, value: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(value, indent=2) + "\n")


@dataclass(frozen=True)
class JobPaths:
    """The paths of one party: `study` is in the job's folder, `run` on the party's own disk.

    `site` is its site file and `local` its own folder. A provisioned party has the certificate of
    the federation's authority, `root`; in the simulator there is none.
    """

    study: Path
    site: Path
    local: Path
    run: Path
    result: Path
    root: Path | None


def job_paths(context: FLContext, run: str) -> JobPaths:
    """Return the paths of the job that is running. Raises `BadStudy` where `run` is no name."""
    engine = cast(Any, context.get_engine())
    workspace = engine.get_workspace()
    config = Path(workspace.get_app_config_dir(context.get_job_id()))
    local, root = Path(workspace.get_site_config_dir()), Path(workspace.get_startup_kit_dir())
    run_folder = Path(workspace.get_root_dir()) / RUNS / check_run(run)
    authority = root / "rootCA.pem"
    provisioned = authority.exists()
    site = (
        SITE
        if provisioned
        else f"{check_name(cast(object, context.get_identity_name()), 'site')}.toml"
    )
    return JobPaths(
        config / STUDY,
        local / site,
        local,
        run_folder,
        Path(workspace.get_run_dir(context.get_job_id())) / RESULT,
        authority if provisioned else None,
    )


def hand_out(study: Study, run: Path, result: Path) -> None:
    """Copy a study's run folder, without states and locks, to where NVFlare's clients fetch it.

    Nothing is copied from the run of another study, which a job can name as its own.
    """
    if _holds(run, study):
        leave = shutil.ignore_patterns(RunFolder.state, SiteFolder.merged, RunFolder.lock)
        shutil.copytree(run, result, ignore=leave, dirs_exist_ok=True)


def _holds(run: Path, study: Study) -> bool:
    try:
        check_unchanged(run, study)
    except BadInput:
        return False
    return True


def hold_job(paths: JobPaths) -> None:
    """Mark a party's folder of a job as in use until this process ends."""
    hold(paths.result.with_name(IN_USE))
