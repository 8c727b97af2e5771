"""These commands check, run and compare studies, and partition data for them.

Heavy modules are imported inside the commands, so that `--help` answers at once.
"""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from grandrounds.cli.app import (
    AcceptChanges,
    IncludeImages,
    Json,
    NoFigures,
    Out,
    Quiet,
    Set,
    SitePaths,
    StudyPath,
    Track,
    Workers,
    app,
)
from grandrounds.cli.results import report
from grandrounds.core.errors import BadInput
from grandrounds.core.events import Event, RunFinished

if TYPE_CHECKING:
    from rich.console import Console

    from grandrounds.runs.comparison import Comparison, ComparisonRun


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
    set: Set = None,
    site: SitePaths = None,
    track: Track = None,
    include_images: IncludeImages = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train a study, test it, and write its run folder and report."""
    from rich.console import Console

    from grandrounds.cli.output import show
    from grandrounds.cli.progress import ProgressBars, resumable_interrupt, warn
    from grandrounds.core.device import num_cores
    from grandrounds.report.page.html import write_report
    from grandrounds.report.tracking.tracker import tracked
    from grandrounds.runs.extend import extension
    from grandrounds.runs.loop import run as train
    from grandrounds.study.checks import notes
    from grandrounds.study.file import read_study
    from grandrounds.study.site_file import read_site

    overrides = [*(set or []), *([f"rounds={rounds}"] if rounds is not None else [])]
    resolved = read_study(study, overrides)
    folder = out or Path("runs") / resolved.name
    files = [read_site(path) for path in site or []]
    console = Console(stderr=True, quiet=quiet, markup=False)
    longer = extension(folder, resolved) if resume else None
    for note in (*notes(resolved), *([longer.sentence] if longer else [])):
        console.print(f"note: {note}", style="yellow", soft_wrap=True)
    with tracked(folder, track or [], warn) as trackers, ProgressBars(console) as bars:
        bars.add(resolved.title, resolved.build_method().title, resolved.rounds)
        listeners = [partial(bars.show, resolved.title), *trackers]
        at_once = workers or num_cores()
        with resumable_interrupt("with --resume"):
            train(
                resolved,
                folder,
                files=files,
                resume=resume,
                accept_changes=accept_changes,
                listeners=listeners,
                preparing=bars.prepare,
                workers=at_once,
            )
    show(folder, write_report(folder, include_images=include_images), as_json=json, quiet=quiet)


@app.command()
def check(
    study: StudyPath,
    site: SitePaths = None,
    set: Set = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Say what a study means and costs; with --site, whether that site can join. Nothing trains."""
    from grandrounds.cli.output import print_json
    from grandrounds.cli.study_output import print_site, print_study, study_as_json
    from grandrounds.runs.costs import estimate, plan_run
    from grandrounds.runs.site_data import check_joins, open_named
    from grandrounds.study.file import read_study

    resolved = read_study(study, set or [])
    plan = plan_run(resolved)
    cost = estimate(plan)
    opened = open_named(resolved, site or [])
    summaries = [summary for _, summary in opened]
    if json:
        print_json(study_as_json(plan, cost, summaries))
    elif not quiet:
        print_study(plan, cost)
        for summary in summaries:
            print_site(summary)
    for cohort, summary in opened:
        check_joins(resolved, cohort, summary)


@app.command()
def compare(
    study: StudyPath,
    arms: Annotated[
        str,
        typer.Option(
            help="METHOD[@TOPOLOGY][:KEY=VALUE...] with commas between, the one that the report is "
            "about first, for example pflsynth,fedavg@swarm,fedprox:mu=0.01,local."
        ),
    ],
    seeds: Annotated[
        int, typer.Option(help="Train each arm so often, from the study's seed on.")
    ] = 1,
    out: Out = None,
    set: Set = None,
    site: SitePaths = None,
    workers: Workers = 0,
    leave_one_out: Annotated[
        bool,
        typer.Option(
            "--leave-one-out", help="Train each arm without each site, and test it there."
        ),
    ] = False,
    matrix: Annotated[
        bool, typer.Option("--matrix", help="Score every site's model at every site.")
    ] = False,
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
    from rich.console import Console

    from grandrounds.core.device import num_cores
    from grandrounds.report.tracking.tracker import check_trackers as check_trackers
    from grandrounds.runs.arms import arms_of, check_equal, comparison_terms
    from grandrounds.runs.comparison import Comparison
    from grandrounds.study.file import read_table
    from grandrounds.study.site_file import read_site

    check_trackers(track or [])
    if seeds < 1:
        raise BadInput(f"--seeds is {seeds}; it must be 1 or more")
    table = read_table(study)
    studies = {arm: arm.study(table, set or []) for arm in arms_of(arms.split(","))}
    if not unequal:
        check_equal(studies)
    folder = out or Path("runs") / f"{next(iter(studies.values())).name}-compared"
    files = tuple(read_site(path) for path in site or [])
    at_once = min(workers or num_cores(), len(studies) * seeds)
    comparison = Comparison(
        folder, studies, files, at_once, seeds, leave_one_out, matrix, accept_changes
    )
    console = Console(stderr=True, quiet=quiet, markup=False)
    for sentence in comparison_terms(studies):
        console.print(sentence, markup=False, highlight=False, soft_wrap=True)
    _run_shown(comparison, console, track or [])
    report(folder, include_images=include_images, no_figures=no_figures, json=json, quiet=quiet)


def _run_shown(comparison: "Comparison", console: "Console", track: list[str]) -> None:
    """Run a comparison with a bar for each of its runs; trackers get each run once it is over."""
    from grandrounds.cli.progress import ProgressBars, resumable_interrupt, warn
    from grandrounds.report.tracking.tracker import replay

    cells = comparison.cells
    with ProgressBars(console, runs=len(cells)) as bars:
        for cell, study in cells.items():
            title, done = comparison.title(cell), comparison.is_done(cell)
            bars.add(cell.name, title, study.rounds, done=done)

        def hear(cell: "ComparisonRun", event: Event) -> None:
            bars.show(cell.name, event)
            if isinstance(event, RunFinished):
                for uri in track:
                    replay(comparison.run_folder(cell), uri, warn)

        with resumable_interrupt("as it was"):
            comparison.run(hear, bars.prepare)


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
