"""Where a run lies in an NVFlare workspace: it outlives the job that plays it."""

# NVFlare has no type stubs.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from nvflare.apis.fl_context import FLContext

STUDY = "study.toml"
SITE = "site.toml"  # in a kit; the simulator gives all sites one folder, and each has NAME.toml
RUNS = "grandrounds"
RESULT = "run"  # in the job's own folder: what anyone who fetches the job gets
STATUS = "grandrounds.status"


@dataclass(frozen=True)
class Places:
    """Where one party finds things: `study` as the job brought it, `run` on its own disk.

    `site` is its site file and `local` its own folder. A provisioned party has the certificate of
    the federation's authority, `root`; in the simulator there is none.
    """

    study: Path
    site: Path
    local: Path
    run: Path
    result: Path
    root: Path | None


def places(context: FLContext, run: str) -> Places:
    """Find the places of the job that is running."""
    engine = cast(Any, context.get_engine())
    workspace = engine.get_workspace()
    config = Path(workspace.get_app_config_dir(context.get_job_id()))
    local, root = Path(workspace.get_site_config_dir()), Path(workspace.get_startup_kit_dir())
    run_folder = Path(workspace.get_root_dir()) / RUNS / run
    authority = root / "rootCA.pem"
    provisioned = authority.exists()
    site = SITE if provisioned else f"{context.get_identity_name()}.toml"
    return Places(
        config / STUDY,
        local / site,
        local,
        run_folder,
        Path(workspace.get_run_dir(context.get_job_id())) / RESULT,
        authority if provisioned else None,
    )
