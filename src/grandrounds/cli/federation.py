"""Commands of a federation across hospitals: one for each step.

Heavy modules are imported inside the commands, so that `--help` answers at once.
"""

from pathlib import Path
from typing import Annotated, Literal

import typer

from grandrounds.cli.app import Json, Out, Quiet, Set, StudyPath, app

federation = typer.Typer(
    help="Run a study across hospitals, on NVIDIA FLARE.", no_args_is_help=True
)
at_site = typer.Typer(help="What a hospital decides for itself.", no_args_is_help=True)


app.add_typer(federation, name="federation")


app.add_typer(at_site, name="site")


AdminKit = Annotated[Path, typer.Option("--kit", help="The admin's startup kit.")]
SiteKit = Annotated[Path, typer.Option("--kit", help="The site's own startup kit.")]
AnyKit = Annotated[Path, typer.Argument(help="A startup kit: the server's or a site's.")]
JobId = Annotated[str, typer.Argument(help="The job's id, as submit and status print it.")]
OneStudy = Annotated[
    Path | None, typer.Option("--study", help="The study that this kit is to take part in.")
]
OneSite = Annotated[
    Path | None, typer.Option("--site", help="A site file to look at instead of the kit's own.")
]
NoWait = Annotated[bool, typer.Option("--no-wait", help="Do not wait until the job is over.")]
OnLoss = Annotated[
    Literal["stop", "wait"],
    typer.Option(
        help="When the server or a site is lost: stop, or wait until all are there and go on."
    ),
]
Silence = Annotated[
    float, typer.Option(min=1.0, help="Seconds without a sign of life after which a site is lost.")
]
Deadline = Annotated[
    float, typer.Option(min=0.0, help="Seconds that a site may take for one request; 0: no limit.")
]


@federation.command()
def provision(
    study: StudyPath,
    server: Annotated[
        str, typer.Option(help="The host name by which the sites reach the server; or localhost.")
    ],
    out: Annotated[Path, typer.Option(help="A new folder for the kits.")],
    port: Annotated[int, typer.Option(min=1, max=65535, help="The server's port.")] = 8002,
    json: Json = False,
) -> None:
    """Make certificates and startup kits: for the server, each site and the admin."""
    from grandrounds.cli.federating import provision_kits

    provision_kits(study, server, out, port=port, as_json=json)


@federation.command()
def start(kit: AnyKit) -> None:
    """Run the server, or a site, in the foreground until it is stopped."""
    from grandrounds.cli.federating import start_kit

    start_kit(kit)


@federation.command()
def submit(
    study: StudyPath,
    kit: AdminKit,
    no_wait: NoWait = False,
    on_loss: OnLoss = "stop",
    silence: Silence = 20.0,
    deadline: Deadline = 0.0,
    set: Set = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Submit a study that every site has accepted, and wait for its end."""
    from grandrounds.cli.federating import Submission

    submission = Submission(study, kit, tuple(set or ()), silence, deadline, quiet)
    submission.go(resume=False, wait=not no_wait, on_loss=on_loss, as_json=json)


@federation.command()
def resume(
    study: StudyPath,
    kit: AdminKit,
    no_wait: NoWait = False,
    on_loss: OnLoss = "stop",
    silence: Silence = 20.0,
    deadline: Deadline = 0.0,
    set: Set = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Go on with a study's run from the newest round that the server and all sites hold."""
    from grandrounds.cli.federating import Submission

    submission = Submission(study, kit, tuple(set or ()), silence, deadline, quiet)
    submission.go(resume=True, wait=not no_wait, on_loss=on_loss, as_json=json)


@federation.command()
def status(kit: AdminKit, json: Json = False) -> None:
    """Show which sites answer, and how far each job has come."""
    from grandrounds.cli.federating import show_status

    show_status(kit, as_json=json)


@federation.command()
def logs(job: JobId, kit: AdminKit) -> None:
    """Print the server's log of a job; a site's log stays at the site."""
    from grandrounds.cli.federating import show_logs

    show_logs(job, kit)


@federation.command()
def fetch(
    job: JobId,
    kit: AdminKit,
    out: Annotated[Path, typer.Option(help="A new folder for the run.")],
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Bring a job's run folder here, and write its report."""
    from grandrounds.cli.federating import fetch_job

    fetch_job(job, kit, out, as_json=json, quiet=quiet)


@federation.command()
def abort(job: JobId, kit: AdminKit) -> None:
    """Stop a job; what it has saved can be resumed."""
    from grandrounds.cli.federating import abort_job

    abort_job(job, kit)


@federation.command()
def export(
    study: StudyPath,
    out: Annotated[Path, typer.Option(help="A new folder for the job.")],
    set: Set = None,
    json: Json = False,
) -> None:
    """Write a study as a job folder, for NVFlare's own clients and its simulator."""
    from grandrounds.cli.federating import export_study

    export_study(study, out, set or [], as_json=json)


@federation.command()
def demo(out: Out = None, set: Set = None, json: Json = False, quiet: Quiet = False) -> None:
    """Do all of that on this machine: four simulated hospitals, a server, certificates, a run."""
    from grandrounds.cli.federating import demonstrate
    from grandrounds.study.file import example, read_study

    study = read_study(example("tiny"), set or [])
    demonstrate(study, out or Path("runs/federation"), as_json=json, quiet=quiet)


@at_site.command()
def accept(study: StudyPath, kit: SiteKit, set: Set = None, json: Json = False) -> None:
    """Show what a study asks for and what will leave the building, and sign its SHA-256."""
    from grandrounds.cli.federating import accept_study

    accept_study(study, kit, set or [], as_json=json)


@app.command()
def doctor(
    kit: Annotated[
        Path, typer.Argument(help="A startup kit: the server's, a site's, the admin's.")
    ],
    study: OneStudy = None,
    site: OneSite = None,
    set: Set = None,
    json: Json = False,
) -> None:
    """Look for what would stop this machine in a federation, and say how to mend it."""
    from grandrounds.cli.federating import need_flare

    need_flare()
    from grandrounds.cli.doctor import look_at

    if not look_at(kit, study, site, set or [], as_json=json):
        raise typer.Exit(1)
