"""With these commands a hospital brings its own images from its archive, and prepares them."""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from grandrounds.cli.app import Json, Quiet
from grandrounds.cli.site import at_site
from grandrounds.core.errors import BadSite, Stopped

if TYPE_CHECKING:
    from rich.console import Console

    from grandrounds.data.archive.overview import ArchiveOverview, ToldCase
    from grandrounds.data.archive.settings import Archive
    from grandrounds.data.archive.sources import Tell

SiteFilePath = Annotated[Path, typer.Argument(help="The site file (TOML).", show_default=False)]
_DOING = {
    "headers": "reading headers",
    "series found": "asking the PACS for series",
    "sessions": "converting sessions",
}


@at_site.command()
def ingest(
    site: SiteFilePath,
    status: Annotated[
        bool, typer.Option("--status", help="Do nothing; print how far each case is.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Bring a site's images from its archive, a PACS or a folder, into a flat folder of volumes."""
    if status:
        archive(site, cases=False, json=json)
        return
    from grandrounds.cli.output import print_json
    from grandrounds.data.archive.ingest import ingest as bring
    from grandrounds.data.archive.overview import read_overview

    settings = _archive_of(site)
    with _resumable(), _telling(quiet) as tell:
        bring(settings, tell)
    found = read_overview(settings)
    if json:
        print_json(asdict(found) | {"volumes": str(settings.volumes)})
        return
    _print_counts(found)
    _print_reasons(found)
    print(f"volumes: {settings.volumes}")


@at_site.command()
def archive(
    site: SiteFilePath,
    cases: Annotated[
        bool, typer.Option("--cases", help="Print every case, not only the refused ones.")
    ] = False,
    json: Json = False,
) -> None:
    """Print how far each case of a site's archive is, and what its headers hold of patients."""
    from grandrounds.cli.output import print_json
    from grandrounds.data.archive.overview import read_overview

    settings = _archive_of(site)
    found = read_overview(settings)
    if json:
        print_json(asdict(found) | {"volumes": str(settings.volumes)})
        return
    _print_counts(found)
    _print_cases(found.cases if cases else found.of_state("refused", "set aside", "found"))
    _print_findings(found)
    _print_notes(found)


def _archive_of(site: Path) -> "Archive":
    from grandrounds.study.site_file import read_site

    found = read_site(site).archive
    if found is None:
        raise BadSite(f"{site}: has no [archive]; it says where the images of this site come from")
    return found


@contextmanager
def _resumable() -> Generator[None]:
    """Turn Ctrl-C into a sentence that says how to go on. Raises `Stopped`."""
    try:
        yield
    except KeyboardInterrupt:
        raise Stopped(
            "stopped; what is done is kept. Give the same command again to go on."
        ) from None


@contextmanager
def _telling(quiet: bool) -> "Generator[Tell]":
    """Show on stderr how far the work is."""
    from grandrounds.api.progress import plain_console

    console = plain_console(stderr=True, quiet=quiet)
    if not console.is_terminal:
        yield _lines(console)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        tasks = {name: bars.add_task(words, visible=False) for name, words in _DOING.items()}

        def tell(what: str, done: int, total: int) -> None:
            bars.update(tasks[what], completed=done, total=total or None, visible=True)

        yield tell


def _lines(console: "Console") -> "Tell":
    """Return what prints a line about every tenth of the work, for a log."""
    last: dict[str, int] = {}

    def tell(what: str, done: int, total: int) -> None:
        step = 10 * done // total if total else done // 100
        if last.get(what) != step:
            last[what] = step
            of = f" of {total}" if total else ""
            console.print(f"{_DOING[what]}: {done}{of}", soft_wrap=True)

    return tell


def _print_counts(found: "ArchiveOverview") -> None:
    from rich.table import Table

    from grandrounds.cli.tables import print_table

    table = Table("state", title=f"Cases of {found.kind}")
    table.add_column("cases", justify="right")
    for state, number in found.states.items():
        table.add_row(state, str(number))
    print_table(table)
    print(f"checked: {found.patients} patients, {found.sessions} sessions")
    if found.late_sessions:
        print(f"not numbered by date, since they came later: {found.late_sessions} sessions")
    for what, number in found.left_out.items():
        print(f"left out: {number} {what}")


def _print_reasons(found: "ArchiveOverview") -> None:
    """Print why cases were refused, the most frequent reason first."""
    from collections import Counter

    refused = Counter(case.reason for case in found.of_state("refused"))
    for reason, number in refused.most_common():
        print(f"refused: {number} ({reason})")
    if aside := len(found.of_state("set aside")):
        print(f"set aside: {aside} (another series of the session has the contrast, and is better)")
    for note, number in sorted(found.notes.items()):
        print(f"note: {number} of {len(found.cases)} cases: {note}")


def _print_cases(cases: "tuple[ToldCase, ...]") -> None:
    from rich.table import Table

    from grandrounds.cli.tables import print_table

    if not cases:
        return
    table = Table("case", "patient", "session", "contrast", "state", "why")
    for case in cases:
        words = case.reason or case.why
        table.add_row(case.id, case.patient, case.session, case.contrast, case.state, words)
    print_table(table)


def _print_findings(found: "ArchiveOverview") -> None:
    from rich.table import Table

    from grandrounds.cli.tables import print_table
    from grandrounds.data.archive.overview import DISCLAIMER

    if not found.findings:
        return
    table = Table("in the headers", title=f"What identifies people, in {found.files} files")
    table.add_column("files", justify="right")
    for name, number in found.findings.items():
        table.add_row(name, str(number))
    print_table(table)
    print(DISCLAIMER)


def _print_notes(found: "ArchiveOverview") -> None:
    for note, number in sorted(found.notes.items()):
        print(f"note: {number} of {len(found.cases)} cases: {note}")


@at_site.command()
def prepare(
    site: Annotated[Path, typer.Argument(help="The site file, with a table [prepare].")],
    workers: Annotated[
        int, typer.Option(help="How many sessions at a time; 0: one for each core.")
    ] = 0,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Correct, register and resample a site's volumes for training; a page shows how well."""
    from grandrounds.cli.preparation import prepare_volumes_of

    prepare_volumes_of(site, workers=workers, json=json, quiet=quiet)
