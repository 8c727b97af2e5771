"""The command `audit`: attacks on a finished run, at a site."""

from pathlib import Path
from typing import Annotated

import typer

from grandrounds.cli.app import FinishedRunFolder, Json, Quiet, app


@app.command()
def audit(
    folder: FinishedRunFolder,
    site: Annotated[
        list[str] | None,
        typer.Option("--site", help="A simulated site.", show_default="all simulated ones"),
    ] = None,
    site_file: Annotated[
        list[Path] | None,
        typer.Option(
            "--site-file", help="A site file (TOML) that says where a real site's data lies."
        ),
    ] = None,
    attempts: Annotated[
        int, typer.Option(min=1, help="Training patients whose images are sought.")
    ] = 3,
    steps: Annotated[int, typer.Option(min=1, help="Steps of each search for an image.")] = 150,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Attack a site's part of a run with its data, and say what the run reveals of patients."""
    from grandrounds.api.progress import plain_console
    from grandrounds.audit.attacks import audit_site
    from grandrounds.audit.inversion import Search
    from grandrounds.audit.sites import sites_asked
    from grandrounds.audit.updates import Attempts
    from grandrounds.cli.audit_output import print_findings
    from grandrounds.runs.folder import TrainedRun

    run = TrainedRun(folder)
    console = plain_console(stderr=True)

    def told(attack: str) -> None:
        if not quiet and not json:
            console.print(f"made: {attack}", soft_wrap=True)

    how = Attempts(attempts, Search(steps=steps))
    found = [
        audit_site(run, name, file, how, told)
        for name, file in sites_asked(run, site or [], site_file or []).items()
    ]
    print_findings(found, as_json=json, quiet=quiet)
