"""This command tries values of a study's keys, and writes the study that validates best.

Heavy modules are imported inside the command, so that `--help` answers at once.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from grandrounds.cli.app import (
    AcceptChanges,
    Devices,
    Json,
    Out,
    Quiet,
    Set,
    SitePaths,
    StudyPath,
    Track,
    Workers,
    app,
)
from grandrounds.cli.studies import resumable, to_trackers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from grandrounds.runs.sweep import Candidate, Sweep


@app.command()
def sweep(
    study: StudyPath,
    over: Annotated[
        list[str],
        typer.Option(
            "--over",
            help="KEY=VALUE,VALUE..., or with --random KEY=LOW..HIGH or KEY=log:LOW..HIGH; a key "
            "without a dot is an option of the method. With several, all combinations.",
        ),
    ],
    random: Annotated[
        int, typer.Option(min=0, help="Draw so many candidates; 0: try all combinations.")
    ] = 0,
    seed: Annotated[int, typer.Option(help="Another seed draws other candidates.")] = 1,
    seeds: Annotated[
        int, typer.Option(min=1, help="Train each candidate so often, from the study's seed on.")
    ] = 1,
    out: Out = None,
    set: Set = None,
    site: SitePaths = None,
    workers: Workers = 0,
    devices: Devices = None,
    accept_changes: AcceptChanges = False,
    track: Track = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Try values of a study's keys, and choose by validation; no candidate is ever tested."""
    from grandrounds.api.progress import plain_console
    from grandrounds.api.run import follow_comparison
    from grandrounds.core.device import num_cores, read_devices
    from grandrounds.report.page.html import write_report
    from grandrounds.report.tracking.tracker import check_trackers as check_trackers
    from grandrounds.runs.comparison import Comparison
    from grandrounds.runs.sweep import Sweep, candidate_studies, combinations, read_axis
    from grandrounds.study.file import read_table
    from grandrounds.study.site_file import read_site

    check_trackers(track or [])
    axes = [read_axis(text) for text in over]
    tried = combinations(axes, random=random, seed=seed)
    studies = candidate_studies(read_table(study), set or [], tried)
    named = read_devices(devices, [each.training.device for each in studies.values()])
    first = next(iter(studies.values()))
    comparison = Comparison(
        out or Path("runs") / f"{first.name}-sweep",
        studies,
        tuple(read_site(path) for path in site or []),
        min(max(workers or num_cores(), len(named)), len(studies) * seeds),
        seeds,
        accepts_changes=accept_changes,
        devices=named,
    )
    search = Sweep.of(comparison, axes)
    search.check_folder()
    with resumable("as it was"):
        follow_comparison(
            search.comparison,
            None,
            plain_console(stderr=True, quiet=quiet),
            [to_trackers(comparison.folder, track or [])],
        )
    found, best = search.choose()
    write_report(comparison.folder)
    _show(search, found, best, json=json, quiet=quiet)


def _show(
    search: "Sweep", found: "Sequence[Candidate]", best: "Candidate", *, json: bool, quiet: bool
) -> None:
    """Print how the candidates validated, and which was chosen."""
    from rich.table import Table

    from grandrounds.api.progress import plain_console
    from grandrounds.cli.output import print_json
    from grandrounds.cli.tables import print_table
    from grandrounds.core.run_folder import ComparisonFolder
    from grandrounds.runs.sweep import candidate_as_json, shown_score

    files = ComparisonFolder(search.comparison.folder)
    if json:
        print_json(
            {
                "folder": str(files.path),
                "report": str(files.report),
                "metric": search.metric,
                "chosen": best.name,
                "study": str(files.chosen),
                "candidates": [candidate_as_json(each) for each in found],
            }
        )
        return
    console = plain_console()
    if not quiet:
        title = f"Validation {search.metric} of the best round; no candidate was tested"
        table = Table("candidate", title=title)
        for column in ("validation", "best round"):
            table.add_column(column, justify="right")
        for each in found:
            rounds = ", ".join(str(round) for round in each.rounds.values())
            mark = " (chosen)" if each is best else ""
            table.add_row(f"{each.title}{mark}", shown_score(each.score), rounds)
        print_table(table, console)
        for sentence in search.sentences(found, best)[1:]:
            console.print(sentence, soft_wrap=True)
    console.print(f"chosen: {files.chosen}", soft_wrap=True)
    console.print(f"report: {files.report}", soft_wrap=True)
