"""What `grandrounds compare` does: arms and seeds on equal terms, and one report for all."""

import os
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from grandrounds.cli.output import show
from grandrounds.cli.progress import Bars, stoppable, warn
from grandrounds.core.errors import BadInput
from grandrounds.core.events import Event, RunFinished
from grandrounds.report.page.html import write_report
from grandrounds.report.paper.publish import publish
from grandrounds.report.tracking.tracker import check, replay
from grandrounds.runs.arms import arms_of, check_equal, terms
from grandrounds.runs.comparison import Cell, Comparison
from grandrounds.study.file import read_table
from grandrounds.study.site_file import read_site


def compare_arms(
    path: Path,
    labels: Sequence[str],
    *,
    out: Path | None,
    seeds: int,
    overrides: Sequence[str],
    sites: Sequence[Path],
    workers: int,
    unequal: bool,
    leave_one_out: bool = False,
    crosses: bool = False,
    track: Sequence[str] = (),
    include_images: bool = False,
    figures: bool = True,
    as_json: bool,
    quiet: bool,
) -> None:
    """Run arms side by side; what is done already is kept. Then write one report for all."""
    check(track)
    if seeds < 1:
        raise BadInput(f"--seeds is {seeds}; it must be 1 or more")
    table = read_table(path)
    studies = {arm: arm.study(table, overrides) for arm in arms_of(labels)}
    if not unequal:
        check_equal(studies)
    folder = out or Path("runs") / f"{next(iter(studies.values())).name}-compared"
    files = tuple(read_site(site) for site in sites)
    at_once = min(workers or os.cpu_count() or 1, len(studies) * seeds)
    comparison = Comparison(folder, studies, files, at_once, seeds, leave_one_out, crosses)
    console = Console(stderr=True, quiet=quiet)
    for sentence in terms(studies):
        console.print(sentence, markup=False, highlight=False)
    _follow(comparison, console, track)
    report = write_report(folder, include_images=include_images)
    publish(folder, figures=figures, include_images=include_images)
    show(folder, report, as_json=as_json, quiet=quiet)


def _follow(comparison: Comparison, console: Console, track: Sequence[str]) -> None:
    cells = comparison.cells
    with Bars(console, runs=len(cells)) as bars:
        for cell, study in cells.items():
            title = cell.arm.title(study)
            title = title if comparison.num_seeds == 1 else f"{title}, seed {cell.seed}"
            title = f"{title}, without {cell.left_out}" if cell.left_out else title
            bars.add(cell.name, title, study.rounds, done=comparison.is_done(cell))

        def hear(cell: Cell, event: Event) -> None:
            bars.hear(cell.name, event)
            if isinstance(event, RunFinished):
                for uri in track:
                    replay(comparison.run_folder(cell), uri, warn)

        with stoppable("as it was"):
            comparison.run(hear)
