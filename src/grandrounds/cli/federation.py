"""These commands run a federation across hospitals, one for each step.

Heavy modules are imported inside the commands, so that `--help` answers at once.
"""

from contextlib import AbstractContextManager
from dataclasses import asdict
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from grandrounds.cli.app import AcceptChanges, Json, Out, Page, Quiet, Set, StudyPath, app
from grandrounds.core.errors import BadSite, BadStudy
from grandrounds.core.extras import install_command

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from grandrounds.core.code import Code
    from grandrounds.flare.kit import Kit
    from grandrounds.flare.session import AdminSession
    from grandrounds.study.study import Study

federation = typer.Typer(
    help="Run a study across hospitals, on NVIDIA FLARE.", no_args_is_help=True
)
app.add_typer(federation, name="federation")

_START = 180.0  # seconds in which a demonstration's processes must answer
AdminKit = Annotated[Path, typer.Option("--kit", help="The admin's startup kit.")]
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


OlderThan = Annotated[
    int, typer.Option(help="Keep what was written to within so many days; at least 1.")
]
Runs = Annotated[
    bool,
    typer.Option("--runs", help="Remove finished runs, too: models, private weights, states."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="List what goes; remove nothing.")]


@federation.command()
def start(
    kit: AnyKit,
    health: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=65535,
            help="Tell on this port of 127.0.0.1 whether it is well (/health), and counts for "
            "Prometheus (/metrics); 0: any free port.",
        ),
    ] = None,
) -> None:
    """Run the server, or a site, in the foreground until it is stopped."""
    need_flare()
    from grandrounds.flare.kit import Kit
    from grandrounds.flare.processes import run_kit as become

    become(Kit(kit), health=health)


@federation.command(
    "resume",
    help="Go on with a study's run from the newest round that the server and all sites hold.",
)
@federation.command(
    "submit", help="Submit a study that every site has accepted, and wait for its end."
)
def submit(
    context: typer.Context,
    study: StudyPath,
    kit: AdminKit,
    no_wait: NoWait = False,
    on_loss: OnLoss = "stop",
    silence: Silence = 20.0,
    deadline: Deadline = 0.0,
    accept_changes: AcceptChanges = False,
    set: Set = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Submit a study as a job, or resume its run where that is the command's name."""
    if on_loss == "wait" and no_wait:
        raise BadStudy("--on-loss wait resumes the run itself; leave out --no-wait")
    need_flare()
    from grandrounds.api.progress import plain_console
    from grandrounds.cli.output import print_line
    from grandrounds.engines.remote import Timeouts
    from grandrounds.flare.kit import Kit
    from grandrounds.flare.session import open_session
    from grandrounds.flare.supervise import (
        RoundReporter,
        Submission,
        Supervisor,
        raise_if_failed,
    )
    from grandrounds.runs.remote import check_remote
    from grandrounds.study.installed import look_up

    resumes = context.command.name == "resume"
    resolved, admin = look_up(study, set or []).read(), Kit(kit)
    check_remote(resolved)
    patience = Timeouts(silence=silence, deadline=deadline)
    console = plain_console(stderr=True, quiet=quiet or json)
    tell = partial(console.print, soft_wrap=True)
    begun = partial(print_line, "job", as_json=json)
    if on_loss == "wait":
        Supervisor(admin, resolved, patience, tell, begun, resumes, accept_changes).run_to_end()
        return
    submission = Submission(admin, resolved, patience, begun, resumes, accept_changes)
    if not no_wait:
        raise_if_failed(*submission.run_to_end(RoundReporter(tell)))
        return
    with open_session(admin) as session:
        submission.submit(session)


@federation.command()
def check(
    study: StudyPath,
    kit: AdminKit,
    page: Page = None,
    silence: Silence = 20.0,
    deadline: Deadline = 0.0,
    set: Set = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Ask the sites that accepted a study for their statistics, and show them side by side."""
    need_flare()
    from grandrounds.cli.output import print_json
    from grandrounds.cli.statistics_output import (
        consortium_as_json,
        consortium_of,
        print_consortium,
        write_page,
    )
    from grandrounds.engines.remote import Timeouts
    from grandrounds.flare.kit import Kit
    from grandrounds.flare.supervise import survey_federation
    from grandrounds.runs.remote import check_remote
    from grandrounds.study.installed import look_up

    resolved = look_up(study, set or []).read()
    check_remote(resolved)
    told = survey_federation(Kit(kit), resolved, Timeouts(silence=silence, deadline=deadline))
    found = consortium_of(resolved, told)
    write_page(found, page)
    if json:
        print_json(consortium_as_json(found))
    elif not quiet:
        print_consortium(found)


@federation.command()
def status(
    kit: Annotated[Path, typer.Option("--kit", help="The admin's startup kit, or a site's.")],
    json: Json = False,
) -> None:
    """Show which sites answer, and how far each job has come."""
    from grandrounds.cli.federation_output import print_jobs
    from grandrounds.cli.output import print_json

    with _session(kit) as session:
        sites, jobs = session.responding_sites(), session.jobs()
    if json:
        print_json({"sites": sites, "jobs": [asdict(job) for job in jobs]})
    else:
        rows = [(job.id, job.name, job.status, job.progress, job.submitted) for job in jobs]
        print_jobs(sites, rows)


@federation.command()
def logs(job: JobId, kit: AdminKit) -> None:
    """Print the server's log of a job; a site's log stays at the site."""
    with _session(kit) as session:
        print(session.logs(job))


@federation.command()
def fetch(
    job: JobId,
    kit: AdminKit,
    out: Annotated[Path, typer.Option(help="A new folder for the run.")],
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Bring a job's run folder here, and write its report."""
    from grandrounds.cli.output import show
    from grandrounds.report.page.html import write_report

    with _session(kit) as session:
        folder = session.fetch(job, out)
    show(folder, write_report(folder), as_json=json, quiet=quiet)


@federation.command()
def abort(job: JobId, kit: AdminKit) -> None:
    """Stop a job; what it has saved can be resumed."""
    with _session(kit) as session:
        session.abort(job)


@federation.command()
def clean(
    kit: Annotated[Path, typer.Option("--kit", help="The server's startup kit, or the admin's.")],
    older_than: OlderThan = 30,
    runs: Runs = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Remove what finished jobs left at the server: their results, folders and logs."""
    need_flare()
    from grandrounds.cli.federation_output import print_leftovers
    from grandrounds.flare.kit import Kit
    from grandrounds.flare.retention import delete_stored, stored_leftovers
    from grandrounds.flare.session import open_session

    own = Kit(kit)
    if own.kind == "client":
        raise BadSite(f"{kit}: is a site's kit; give it to `grandrounds site clean`")
    if own.kind == "server":
        clean_kit(own, older_than, runs=runs, dry_run=dry_run, json=json)
        return
    if runs:
        raise BadStudy("--runs is for the server's kit and a site's: an admin's keeps no runs")
    with open_session(own) as session:
        found = stored_leftovers(session, days=older_than)
        gone = [] if dry_run else delete_stored(session, found)
    print_leftovers(found, gone, dry_run=dry_run, as_json=json)


def clean_kit(kit: "Kit", days: int, *, runs: bool, dry_run: bool, json: bool) -> None:
    """Remove what finished jobs left in a kit, or only list it; print both."""
    from grandrounds.cli.federation_output import print_leftovers
    from grandrounds.flare.retention import leftovers, remove_leftovers

    found = leftovers(kit, days=days, runs=runs)
    gone = [] if dry_run else remove_leftovers(kit, found)
    print_leftovers(found, gone, dry_run=dry_run, as_json=json)


@federation.command()
def export(
    study: StudyPath,
    out: Annotated[Path, typer.Option(help="A new folder for the job.")],
    set: Set = None,
    json: Json = False,
) -> None:
    """Write a study as a job folder, for NVFlare's own clients and its simulator."""
    need_flare()
    from grandrounds.cli.output import print_line
    from grandrounds.flare.job import export_job
    from grandrounds.runs.remote import check_remote
    from grandrounds.study.file import read_study

    resolved = read_study(study, set or [])
    check_remote(resolved)
    export_job(resolved, out)
    print_line("job", str(out), as_json=json)


@federation.command()
def demo(out: Out = None, set: Set = None, json: Json = False, quiet: Quiet = False) -> None:
    """Do all of that on this machine: four simulated hospitals, a server, certificates, a run."""
    need_flare()
    from grandrounds.api.progress import plain_console
    from grandrounds.cli.output import show
    from grandrounds.engines.remote import Timeouts
    from grandrounds.flare.kit import Kit
    from grandrounds.flare.processes import free_port, run_kits, wait_for_sites
    from grandrounds.flare.provision import provision_kits as make_kits
    from grandrounds.flare.session import open_session
    from grandrounds.flare.supervise import Submission, raise_if_failed
    from grandrounds.report.page.html import write_report
    from grandrounds.runs.remote import check_remote
    from grandrounds.study.file import example
    from grandrounds.study.installed import look_up

    unread, top = look_up(example("tiny"), set or []), out or Path("runs/federation")
    check_remote(study := unread.read())
    console = plain_console(stderr=True, quiet=quiet)
    kits = make_kits(study, "localhost", top / "kits", port=free_port())
    console.print(f"startup kits with keys and certificates in {top / 'kits'}", soft_wrap=True)
    _accept_at_all(kits, study, unread.code)
    console.print(f"accepted by {', '.join(study.trainers)}", soft_wrap=True)
    with run_kits(kit for name, kit in kits.items() if name != "admin"):
        admin = Kit(kits["admin"])
        wait_for_sites(admin, study.trainers, within=_START)
        console.print("server and sites run, each in a process of its own")
        submission = Submission(admin, study, Timeouts())
        raise_if_failed(*submission.run_to_end())
        with open_session(admin) as session:
            folder = session.fetch(submission.id, top / "run")
    show(folder, write_report(folder), as_json=json, quiet=quiet)


def _accept_at_all(kits: "Mapping[str, Path]", study: "Study", code: "Sequence[Code]") -> None:
    from grandrounds.flare.kit import Kit, accept_study
    from grandrounds.runs.costs import leaving_words

    for site in study.trainers:
        accept_study(study, Kit(kits[site]), leaving_words(study), code)


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
    need_flare()
    from grandrounds.cli.federation_output import print_findings
    from grandrounds.cli.output import print_json
    from grandrounds.flare.doctor import examine
    from grandrounds.flare.doctor.finding import Party
    from grandrounds.flare.kit import Kit
    from grandrounds.study.installed import look_up

    asked = look_up(study, set or []).read() if study else None
    found = examine(Party(Kit(kit), asked, site))
    findings = {name: asdict(finding) for name, finding in found.items()}
    if json:
        print_json([{"check": name, **finding} for name, finding in findings.items()])
    else:
        print_findings(findings)
    if any(finding.verdict == "bad" for finding in found.values()):
        raise typer.Exit(1)


def need_flare() -> None:
    """Raise `BadStudy` where NVFlare is not installed."""
    if find_spec("nvflare") is None:
        raise BadStudy(f"NVIDIA FLARE is not installed here: {install_command('flare')}")


def _session(kit: Path) -> "AbstractContextManager[AdminSession]":
    """Open a session with the server of a kit. Raises `BadStudy` without NVFlare."""
    need_flare()
    from grandrounds.flare.kit import Kit
    from grandrounds.flare.session import open_session

    return open_session(Kit(kit))
