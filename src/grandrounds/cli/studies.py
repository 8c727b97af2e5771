"""These commands check, run and compare studies, and partition data for them.

Heavy modules are imported inside the commands, so that `--help` answers at once.
"""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from grandrounds.cli.app import (
    AcceptChanges,
    Devices,
    IncludeImages,
    Json,
    NoFigures,
    Out,
    Page,
    Quiet,
    Set,
    SitePaths,
    StudyPath,
    Track,
    Workers,
    app,
)
from grandrounds.cli.results import report
from grandrounds.core.errors import Stopped
from grandrounds.core.events import Event, RunFinished

if TYPE_CHECKING:
    from collections.abc import Sequence

    from grandrounds.runs.comparison import ComparisonRun, OnEvent


@contextmanager
def resumable(how: str) -> Generator[None, None, None]:
    """Turn Ctrl-C into a sentence that says how to go on. Raises `Stopped`."""
    try:
        yield
    except KeyboardInterrupt:
        raise Stopped(
            f"stopped; every finished round is saved. Give the same command again {how} to go on."
        ) from None


@app.command()
def demo(
    out: Out = None,
    set: Set = None,
    workers: Workers = 0,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Four simulated hospitals learn MRI synthesis: pFLSynth beside FedAvg and training alone."""
    from grandrounds.algorithms import DEMO_ARMS
    from grandrounds.study.file import example

    compare(
        example("demo"),
        ",".join(DEMO_ARMS),
        out=out or Path("runs/demo"),
        set=set,
        workers=workers,
        json=json,
        quiet=quiet,
    )


@app.command()
def run(
    study: StudyPath,
    out: Out = None,
    rounds: Annotated[
        int | None,
        typer.Option(help="Override the number of rounds; more than before with --resume."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where a run stopped.")] = False,
    accept_changes: AcceptChanges = False,
    workers: Annotated[
        int,
        typer.Option(min=0, help="How many processes share the sites; 0: one for each core."),
    ] = 1,
    devices: Devices = None,
    set: Set = None,
    site: SitePaths = None,
    track: Track = None,
    include_images: IncludeImages = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train a study, test it, and write its run folder and report."""
    from grandrounds.api.progress import plain_console, warn
    from grandrounds.api.run import run as run_with
    from grandrounds.cli.output import show
    from grandrounds.report.tracking.tracker import tracked
    from grandrounds.study.file import read_study
    from grandrounds.study.site_file import read_site

    overrides = [*(set or []), *([f"rounds={rounds}"] if rounds is not None else [])]
    resolved = read_study(study, overrides)
    folder = out or Path("runs") / resolved.name
    files = [read_site(path) for path in site or []]
    with tracked(folder, track or [], warn) as trackers, resumable("with --resume"):
        done = run_with(
            resolved,
            folder,
            data=files,
            workers=workers,
            devices=devices,
            resume=resume,
            accept_changes=accept_changes,
            progress=plain_console(stderr=True, quiet=quiet),
            listeners=trackers,
        )
    show(folder, done.report(include_images=include_images), as_json=json, quiet=quiet)


@app.command()
def check(
    study: StudyPath,
    site: SitePaths = None,
    set: Set = None,
    page: Page = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Say what a study means and costs; with --site, whether that site can join. Nothing trains."""
    from grandrounds.cli.output import print_json
    from grandrounds.cli.privacy_output import (
        check_all_join,
        planned_as_json,
        planned_at,
        print_planned,
    )
    from grandrounds.cli.statistics_output import (
        consortium_as_json,
        consortium_of,
        print_surveyed,
        write_page,
    )
    from grandrounds.cli.study_output import print_site, print_study, study_as_json
    from grandrounds.runs.costs import estimate, plan_run
    from grandrounds.runs.site_data import open_named
    from grandrounds.runs.survey import survey_opened
    from grandrounds.study.file import read_study
    from grandrounds.study.site_file import read_site
    from grandrounds.tasks import SupervisedTask

    resolved = read_study(study, set or [])
    cost = estimate(plan := plan_run(resolved))
    opened = open_named(resolved, site or [])
    summaries = [summary for _, summary in opened]
    surveyed = survey_opened(resolved, site or [], [cohort for cohort, _ in opened])
    found = consortium_of(resolved, [each.answer for each in surveyed])
    files = [read_site(path) for path in site or []]
    planned = planned_at(resolved, [cohort for cohort, _ in opened], files)
    if json:
        told = {"statistics": consortium_as_json(found)} if surveyed else {}
        told |= {"epsilon": planned_as_json(planned)} if planned else {}
        print_json(study_as_json(plan, cost, summaries) | told)
    elif not quiet:
        print_study(plan, cost)
        for summary in summaries:
            print_site(summary, items=isinstance(resolved.task, SupervisedTask))
        print_surveyed(surveyed, found)
        print_planned(resolved, planned)
    write_page(found, page)
    check_all_join(resolved, opened, files)


@app.command()
def compare(
    study: StudyPath,
    arms: Annotated[
        str,
        typer.Option(
            help="METHOD[@TOPOLOGY][:KEY=VALUE...] with commas between, the one that the report is "
            "about first, for example pflsynth,fedavg@swarm,fedprox:mu=0.01,local,local:steps=x4; "
            "derived from arms that train alone: alone, ensemble, sites-average."
        ),
    ],
    seeds: Annotated[
        int, typer.Option(help="Train each arm so often, from the study's seed on.")
    ] = 1,
    out: Out = None,
    set: Set = None,
    site: SitePaths = None,
    workers: Workers = 0,
    devices: Devices = None,
    leave_one_out: Annotated[
        bool,
        typer.Option(
            "--leave-one-out", help="Train each arm without each site, and test it there."
        ),
    ] = False,
    matrix: Annotated[
        bool, typer.Option("--matrix", help="Score every site's model at every site.")
    ] = False,
    budget: Annotated[
        Literal["local-steps", "steps-in-a-row", "wall-clock"],
        typer.Option(help="What is equal for all arms; the others follow from it."),
    ] = "local-steps",
    unequal: Annotated[
        bool, typer.Option("--unequal", help="Allow arms that differ in budget, data or rounds.")
    ] = False,
    accept_changes: AcceptChanges = False,
    track: Track = None,
    include_images: IncludeImages = False,
    no_figures: NoFigures = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train several arms on the same data, splits and seeds, and report them side by side."""
    from grandrounds.api.progress import plain_console
    from grandrounds.api.run import compare as compare_arms
    from grandrounds.report.tracking.tracker import check_trackers as check_trackers
    from grandrounds.runs.arms import read_arms
    from grandrounds.study.file import read_table
    from grandrounds.study.site_file import read_site

    check_trackers(track or [])
    first = read_arms(arms.split(","))[0][0].study(read_table(study), set or [])
    folder = out or Path("runs") / f"{first.name}-compared"
    files = [read_site(path) for path in site or []]
    with resumable("as it was"):
        compare_arms(
            study,
            arms.split(","),
            folder,
            seeds=seeds,
            workers=workers,
            devices=devices,
            data=files,
            leave_one_out=leave_one_out,
            matrix=matrix,
            budget=budget,
            unequal=unequal,
            overrides=set or [],
            accept_changes=accept_changes,
            progress=plain_console(stderr=True, quiet=quiet),
            listeners=[to_trackers(folder, track or [])],
        )
    report(
        folder,
        include_images=include_images,
        no_figures=no_figures,
        json=json,
        quiet=quiet,
    )


def to_trackers(folder: Path, uris: "Sequence[str]") -> "OnEvent":
    """Return a listener that gives each run of a comparison to trackers once it is over."""
    from grandrounds.api.progress import warn
    from grandrounds.report.tracking.tracker import replay

    def log(run: "ComparisonRun", event: Event) -> None:
        if isinstance(event, RunFinished) and not run.again:
            for uri in uris:
                replay(folder / run.name, uri, warn)

    return log


@app.command()
def partition(
    source: Annotated[Path, typer.Argument(help="An image stack or a MedMNIST file (.npz).")],
    variable: Annotated[str, typer.Option(help="Its variable that the sites differ in.")],
    out: Annotated[Path, typer.Option("--out", help="A new folder for the sites.")],
    sites: Annotated[int, typer.Option(help="How many sites.")] = 4,
    alpha: Annotated[
        float, typer.Option(help="How alike their proportions are; inf: as in the dataset.")
    ] = 0.5,
    seed: Annotated[int, typer.Option(help="Another seed deals anew.")] = 1,
    least: Annotated[int, typer.Option(help="The fewest patients of a class at a site.")] = 10,
    cases: Annotated[int, typer.Option(help="Patients of a site; 0: all there are.")] = 0,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Deal one dataset to pseudo-sites with unlike label proportions (Hsu et al. 2019)."""
    from grandrounds.cli.output import print_json
    from grandrounds.cli.study_output import print_patients
    from grandrounds.data.partition import PartitionPlan, assign, counts, read_dataset, write_sites

    plan = PartitionPlan(sites, alpha, seed, least=least, cases=cases)
    pool = read_dataset(source, variable)
    dealt = assign(pool.labels, plan)
    write_sites(pool, dealt, plan, out)
    patients = dict(zip(plan.names, counts(pool.labels, dealt), strict=True))
    if json:
        print_json({"variable": variable, "sites": patients})
    elif not quiet:
        print_patients(variable, patients)


@app.command()
def schema() -> None:
    """Print the JSON Schema of the study file, for editors."""
    from grandrounds.cli.output import print_json
    from grandrounds.study.file import study_schema as study_schema

    print_json(study_schema())
