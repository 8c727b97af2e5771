"""A study as an NVFlare job: classes on the sites' allow-list, and no code."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from grandrounds.flare.places import STUDY
from grandrounds.study import Study
from grandrounds.study_file import fingerprint, to_toml
from grandrounds.weights import write_atomically

CONTROLLER = "grandrounds.flare.controller.StudyController"
EXECUTOR = "grandrounds.flare.executor.SiteExecutor"
ALLOWED = (CONTROLLER, EXECUTOR)

_FILTERS: Mapping[str, list[object]] = {"task_data_filters": [], "task_result_filters": []}
_PAUSE = 1.0  # seconds between a site's questions for tasks, of which there are none


def run_name(study: Study) -> str:
    """Name the run of a study on the disks of server and sites."""
    return f"{study.name}-{fingerprint(study)[:12]}"


def export_job(study: Study, folder: Path, *, run: str = "", **arguments: object) -> None:
    """Write the job folder of a study: for this server and its clients, or for the simulator."""
    run = run or run_name(study)
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
    workflow = {"id": "study", "path": CONTROLLER, "args": {"run": run, **arguments}}
    executor = {"tasks": ["*"], "executor": {"path": EXECUTOR, "args": {"run": run}}}
    pace = {"format_version": 2, "task_request_interval": _PAUSE}
    _write(config / "config_fed_server.json", {**pace, "workflows": [workflow], **_FILTERS})
    _write(config / "config_fed_client.json", {**pace, "executors": [executor], **_FILTERS})
    write_atomically(config / STUDY, to_toml(study).encode())


def _write(path: Path, value: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (json.dumps(value, indent=2) + "\n").encode())
