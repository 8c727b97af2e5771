"""These commands use finished runs: reports, evaluation, models, cards, trackers.

Heavy modules are imported inside the commands, so that `--help` answers at once.
"""

from pathlib import Path
from typing import Annotated

import typer

from grandrounds.cli.app import (
    AnyFolder,
    FinishedRunFolder,
    IncludeImages,
    Json,
    NoFigures,
    Quiet,
    SitePaths,
    app,
)
from grandrounds.core.errors import BadInput, BadStudy

BUNDLE = "bundle"


@app.command()
def report(
    folder: AnyFolder,
    serve: Annotated[
        bool,
        typer.Option("--serve", help="Show it live in this machine's browser, until Ctrl-C."),
    ] = False,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Where --serve listens; 0: any free port.")
    ] = 0,
    include_images: IncludeImages = False,
    no_figures: NoFigures = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write report.html anew from a run folder, or show the report of a running study live."""
    if serve and include_images:
        raise BadStudy("--include-images is for the written report; leave it or --serve out")
    if serve:
        from grandrounds.report.page.live import serve as serve_report

        serve_report(folder, port=port, as_json=json)
        return
    if port:
        raise BadStudy(f"--port {port} is for the live report; add --serve, or leave it out")

    from grandrounds.cli.output import show
    from grandrounds.report.page.html import write_report
    from grandrounds.report.paper.publish import publish

    path = write_report(folder, include_images=include_images)
    publish(folder, figures=not no_figures, include_images=include_images)
    show(folder, path, as_json=json, quiet=quiet)


@app.command()
def evaluate(
    folder: Annotated[Path, typer.Argument(help="A finished run's folder, or a comparison's.")],
    site: SitePaths = None,
    matrix: Annotated[
        bool, typer.Option("--matrix", help="Every site's model on every site's test patients.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Test a trained model on a site's data, one that never trained too; nothing trains."""
    if not site and not matrix:
        raise BadInput("evaluate: say what to test on: --site SITE.toml, or --matrix for all sites")
    from grandrounds.cli.output import print_json, print_means, print_patients
    from grandrounds.runs.evaluate import mean_matrix, means_at_sites, patients_scored
    from grandrounds.runs.folder import find_runs

    results: list[dict[str, object]] = []
    for run in find_runs(folder):
        paths = site or []
        means = mean_matrix(run, paths) if matrix else {"its model": means_at_sites(run, paths)}
        scores = means if matrix else means["its model"]
        patients = {} if matrix else {"patients": patients_scored(run, paths)}
        label = {"arm": run.score_label.arm, "seed": run.score_label.seed}
        results.append({**label, **patients, "scores": scores})
        if not json and not quiet:
            title = f"{run.score_label.arm}, seed {run.score_label.seed}"
            print_means(means, metric=run.study.task.metric, title=title)
            print_patients(patients.get("patients", {}))
    if json:
        print_json(results)


@app.command()
def adapt(
    folder: FinishedRunFolder,
    site: Annotated[
        str, typer.Option(help="The new site's file, or the name of a held-out simulated site.")
    ],
    epochs: Annotated[int, typer.Option(min=1, help="Epochs over the site's training data.")] = 10,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Let a new site train its private part of a finished model, and compare it with alone."""
    from grandrounds.cli.output import print_adaptation, print_json
    from grandrounds.core.run_folder import RunFolder
    from grandrounds.runs.adapt import adapt as adapt_model
    from grandrounds.runs.folder import TrainedRun
    from grandrounds.runs.site_data import find_site

    run = TrainedRun(folder)
    new_site, task = find_site(run.study, site), run.study.make_task()
    models = adapt_model(run, new_site, epochs=epochs)
    steps = {model.name: model.steps for model in models}
    scores = {model.name: task.summary(model.scores) for model in models}
    if json:
        rows = {name: {"steps": steps[name], "scores": scores[name]} for name in steps}
        print_json({new_site.name: rows})
    elif not quiet:
        print_adaptation(new_site.name, steps, scores)
        print(f"private part: {RunFolder(folder).adapted(new_site.name).private()}")


@app.command()
def export(
    folder: FinishedRunFolder,
    site: Annotated[str, typer.Option(help="The site whose model it is.")],
    out: Annotated[Path, typer.Option("--out", help="A new file, or a folder for a bundle.")],
    task: Annotated[str, typer.Option(help="One of the site's tasks, for example T1w->T2w.")] = "",
    format: Annotated[
        str, typer.Option(help="torch-export, torchscript, onnx or bundle (MONAI).")
    ] = "torch-export",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write a site's trained model for other programs; they need no grandrounds."""
    from grandrounds.cli.output import print_json
    from grandrounds.inference.export import FORMATS
    from grandrounds.inference.export import export_program as export_file
    from grandrounds.inference.monai_bundle import export_bundle
    from grandrounds.inference.predictor import predictor_for
    from grandrounds.inference.trained_model import load_trained_model

    if format not in (*FORMATS, BUNDLE):
        known = ", ".join((*FORMATS, BUNDLE))
        raise BadInput(f"--format {format}: is unknown; known: {known}")
    model = predictor_for(load_trained_model(folder, site), task)
    bundled = format == BUNDLE
    error = export_bundle(model, out) if bundled else export_file(model, format, out)
    if json:
        facts = {
            "path": str(out),
            "format": format,
            "site": site,
            "tasks": model.labels,
            "round": model.trained.round,
            "input": ["batch", len(model.contrasts), *model.trained.study.elements.size],
            "largest_difference": error,
        }
        print_json(facts)
    elif not quiet:
        print(f"{format}: {out} ({', '.join(model.labels)}; at most {error:.1e} from exact)")


@app.command()
def synthesize(
    folder: FinishedRunFolder,
    volume: Annotated[
        Path,
        typer.Argument(
            metavar="INPUT",
            help="A NIfTI volume or a DICOM series' folder; with --missing a folder of a cohort, "
            "or its site file.",
        ),
    ],
    out: Annotated[
        Path,
        typer.Argument(
            metavar="OUTPUT", help="A new NIfTI volume; with --dicom or --missing a folder."
        ),
    ],
    site: Annotated[str, typer.Option(help="The site whose model it is.")],
    source: Annotated[str, typer.Option("--from", help="The contrast of INPUT.")] = "",
    target: Annotated[str, typer.Option("--to", help="The contrast to make.")] = "",
    missing: Annotated[
        bool, typer.Option("--missing", help="Make all that a cohort's sessions lack.")
    ] = False,
    brain: Annotated[
        Path | None, typer.Option(help="A brain mask of INPUT; without one, the head counts.")
    ] = None,
    dicom: Annotated[
        bool, typer.Option("--dicom", help="Write a DICOM series of INPUT's study, as a folder.")
    ] = False,
    uncertainty: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A new NIfTI volume of how far predictions differ."),
    ] = None,
    uncertainty_by: Annotated[
        str, typer.Option(help="Between what: views, dropout, rounds or seeds.")
    ] = "views",
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Go on where the model has not seen the like.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make a contrast that was not measured, on the grid of the volume that was."""
    from grandrounds.cli.synthesis import Asked, fill, make

    asked = Asked(folder, site, volume, out, json, quiet)
    if missing:
        given = {
            "--from": source,
            "--to": target,
            "--brain": brain,
            "--dicom": dicom,
            "--uncertainty": uncertainty,
        }
        fill(asked, anyway=anyway, unused=[name for name, value in given.items() if value])
        return
    make(
        asked,
        (source, target),
        brain=brain,
        dicom=dicom,
        uncertainty=uncertainty,
        spread_by=uncertainty_by,
        anyway=anyway,
    )


@app.command()
def card(
    folder: AnyFolder,
    out: Annotated[
        Path | None, typer.Option("--out", help="Where to.", show_default="DIR/card")
    ] = None,
    arm: Annotated[str | None, typer.Option(help="The arm of a comparison.")] = None,
    seed: Annotated[
        int | None, typer.Option(help="The seed of a comparison's arm.", show_default="its first")
    ] = None,
) -> None:
    """Write a model card and a data sheet, filled from the study and the results."""
    from grandrounds.report.cards.write import write_cards

    for path in write_cards(folder, out=out, arm=arm, seed=seed):
        print(path)


@app.command()
def track(
    folder: AnyFolder,
    to: Annotated[
        list[str], typer.Option("--to", help="A tracker, as --track of the command run has it.")
    ],
) -> None:
    """Bring what a tracker lacks of a run to it, from the run's journal."""
    from grandrounds.api.progress import warn
    from grandrounds.report.tracking.tracker import replay, runs_in

    done = [replay(run, uri, warn) for uri in to for run in runs_in(folder)]
    if not all(done):
        raise typer.Exit(1)
