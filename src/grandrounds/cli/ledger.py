"""With these commands a data officer reads what left, and proves that nobody changed the record.

Heavy modules are imported inside the commands, so that `--help` answers at once.
"""

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from grandrounds.cli.app import Json, app

ledgers = typer.Typer(
    help="What left each site: the record, and the proof that it is whole.", no_args_is_help=True
)
app.add_typer(ledgers, name="ledger")

RunOrFile = Annotated[Path, typer.Argument(help="A run's folder, or one ledger (ledger.jsonl).")]
OneSite = Annotated[str, typer.Option("--site", help="The ledger of this site alone.")]
Root = Annotated[
    Path | None,
    typer.Option("--root", help="The certificate of the federation's authority (rootCA.pem)."),
]


@ledgers.command()
def show(path: RunOrFile, site: OneSite = "", json: Json = False) -> None:
    """Print every message that left a site: to whom, what it was called, how much."""
    from grandrounds.cli.ledger_output import print_ledger
    from grandrounds.cli.output import print_json
    from grandrounds.core.ledger import read_ledger

    files = _files(path, site)
    if json:
        found = {str(file): [asdict(line) for line in read_ledger(file)] for file in files}
        print_json(found)
        return
    for file in files:
        print_ledger(file, list(read_ledger(file)))


@ledgers.command()
def verify(
    path: RunOrFile,
    site: OneSite = "",
    other: Annotated[
        list[Path] | None,
        typer.Option("--with", help="The ledger of a site that lies elsewhere."),
    ] = None,
    root: Root = None,
    json: Json = False,
) -> None:
    """Check that no line was changed, removed, moved, repeated or cut; exit code 1 if one was."""
    from grandrounds.cli.ledger_output import checked_as_json, print_checked
    from grandrounds.cli.output import print_json
    from grandrounds.report.analysis.ledgers import LedgersChecked, check_file, check_ledgers

    check = partial(_signed_by, root=root or _root_near(path))
    if path.is_dir() and not site:
        found = check_ledgers(path, check, other or ())
    else:
        alone = tuple(check_file(file, check) for file in _files(path, site))
        found = LedgersChecked(alone, {}, {}, (), compared=False)
    if json:
        print_json(checked_as_json(found))
    else:
        print_checked(found)


@app.command()
def dossier(
    folder: Annotated[Path, typer.Argument(help="A run's folder.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="A new folder.", show_default="RUN/dossier")
    ] = None,
    root: Root = None,
    json: Json = False,
) -> None:
    """Write one folder for the data officer: what left, from whom, and the proof of it."""
    from grandrounds.cli.output import print_json
    from grandrounds.core.run_folder import RunFolder
    from grandrounds.report.dossier.write import DOSSIER_PAGE, write_dossier

    place = out or RunFolder(folder).dossier
    told = write_dossier(folder, place, partial(_signed_by, root=root or _root_near(folder)))
    if json:
        left = {site.name: {"messages": site.messages, "bytes": site.bytes} for site in told.sites}
        print_json({"dossier": str(place), "intact": not told.broken, "left": left})
        return
    print(f"dossier: {place / DOSSIER_PAGE}")
    if told.broken:
        print(f"not intact: {told.broken}")


def _files(path: Path, site: str) -> list[Path]:
    """Return the ledgers that a command is about. Raises `BadFolder`."""
    from grandrounds.core.errors import BadFolder
    from grandrounds.report.analysis.ledgers import ledger_files

    if not path.is_dir():
        return [path]
    central, found = ledger_files(path)
    if site and site not in found:
        known = ", ".join(found) or "none"
        raise BadFolder(f"{path}: has no ledger of a site '{site}'; those here are of: {known}")
    if site:
        return [found[site]]
    return [*([] if central is None else [central]), *found.values()]


def _signed_by(
    certificate: str, signature: str, statement: bytes, moment: float, *, root: Path | None
) -> str:
    """Return who signed a line. Raises `ValueError`, and `BadInput` without cryptography."""
    from grandrounds.core.extras import install_command

    try:
        from grandrounds.study.identity import signer_then
    except ImportError:
        from grandrounds.core.errors import BadInput

        raise BadInput(
            f"the ledger is signed; to check signatures, install: {install_command('flare')}"
        ) from None
    return signer_then(certificate, signature, statement, moment, root)


def _root_near(path: Path) -> Path | None:
    """Return the authority's certificate of the kit in which a run or a ledger lies."""
    above = (folder / "startup" / "rootCA.pem" for folder in path.resolve().parents)
    return next((each for each in above if each.exists()), None)
