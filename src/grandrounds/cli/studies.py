"""Commands on a study: try one, check it, run it, compare methods on it.

Heavy modules are imported inside the commands, so that `--help` answers at once.
"""

import json
from pathlib import Path
from typing import Annotated

import typer

from grandrounds.cli.app import (
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


@app.command()
def demo(
    out: Out = None,
    set: Set = None,
    workers: Workers = 0,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Four simulated hospitals learn MRI synthesis: pFLSynth beside FedAvg and training alone."""
    from grandrounds.cli.comparing import compare_arms
    from grandrounds.runs.comparison import DEMO_ARMS
    from grandrounds.study.file import example

    compare_arms(
        example("demo"),
        DEMO_ARMS,
        out=out or Path("runs/demo"),
        seeds=1,
        overrides=set or [],
        sites=[],
        workers=workers,
        unequal=False,
        as_json=json,
        quiet=quiet,
    )


@app.command()
def run(
    study: StudyPath,
    out: Out = None,
    rounds: Annotated[int | None, typer.Option(help="Override the number of rounds.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where a run stopped.")] = False,
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
    from grandrounds.cli.commands import run_study

    overrides = [*(set or []), *([f"rounds={rounds}"] if rounds is not None else [])]
    run_study(
        study,
        out=out,
        overrides=overrides,
        sites=site or [],
        workers=workers,
        track=track or [],
        include_images=include_images,
        resume=resume,
        as_json=json,
        quiet=quiet,
    )


@app.command()
def check(
    study: StudyPath,
    site: SitePaths = None,
    set: Set = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Say what a study means and costs; with --site, whether that site can join. Nothing trains."""
    from grandrounds.cli.commands import check_study

    check_study(study, overrides=set or [], sites=site or [], as_json=json, quiet=quiet)


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
    track: Track = None,
    include_images: IncludeImages = False,
    no_figures: NoFigures = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train several arms on the same data, splits and seeds, and report them side by side."""
    from grandrounds.cli.comparing import compare_arms

    compare_arms(
        study,
        arms.split(","),
        out=out,
        seeds=seeds,
        overrides=set or [],
        sites=site or [],
        workers=workers,
        unequal=unequal,
        leave_one_out=leave_one_out,
        crosses=matrix,
        track=track or [],
        include_images=include_images,
        figures=not no_figures,
        as_json=json,
        quiet=quiet,
    )


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
    from grandrounds.cli.commands import deal_out
    from grandrounds.data.partition import Deal

    plan = Deal(sites, alpha, seed, least=least, cases=cases)
    deal_out(source, variable, plan, out=out, as_json=json, quiet=quiet)


@app.command()
def schema() -> None:
    """Print the JSON Schema of the study file, for editors."""
    from grandrounds.study.file import schema as study_schema

    print(json.dumps(study_schema(), indent=2))
