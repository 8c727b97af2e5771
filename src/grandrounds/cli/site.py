"""With these commands a hospital decides for itself, and sees what it decided and answered.

Heavy modules are imported inside the commands, so that `--help` answers at once.
"""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from grandrounds.cli.app import Json, Set, StudyPath, app
from grandrounds.cli.federation import DryRun, OlderThan, Runs, clean_kit, need_flare
from grandrounds.core.errors import BadSite

if TYPE_CHECKING:
    from collections.abc import Sequence

    from grandrounds.core.code import Code
    from grandrounds.study.study import Study

at_site = typer.Typer(help="What a hospital decides for itself.", no_args_is_help=True)
app.add_typer(at_site, name="site")

SiteKit = Annotated[Path, typer.Option("--kit", help="The site's own startup kit.")]


@at_site.command()
def accept(
    study: StudyPath,
    kit: SiteKit,
    set: Set = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be signed, and sign nothing.")
    ] = False,
    json: Json = False,
) -> None:
    """Show what a study asks for and what will leave the building, and sign both."""
    need_flare()
    from grandrounds.api.progress import plain_console
    from grandrounds.cli.output import print_json
    from grandrounds.cli.privacy_output import show_own_budget
    from grandrounds.cli.study_output import leaving_as_json, print_code, print_leaving
    from grandrounds.flare.job import SITE
    from grandrounds.flare.kit import Kit, accept_study, check_kit
    from grandrounds.models.pretrained import look_up_files_in
    from grandrounds.runs.costs import leaving_words
    from grandrounds.study.installed import look_up

    unread, own = look_up(study, set or []), Kit(kit)
    look_up_files_in(own.local)
    if not json:
        print_code(unread.code)  # before it is imported
    resolved = unread.read()
    check_kit(resolved, own)
    show_own_budget(resolved, own.local / SITE, quiet=json)
    if dry_run:
        _show_unsigned(resolved, own.name, unread.code, json=json)
        return
    acceptance, path = accept_study(resolved, own, leaving_words(resolved), unread.code)
    if json:
        print_json(asdict(acceptance) | {"file": str(path), "leaves": leaving_as_json(resolved)})
        return
    print_leaving(resolved, acceptance.site)
    signed = f"accepted by '{acceptance.site}': {acceptance.study}\nsigned in {path}"
    plain_console().print(signed, soft_wrap=True)


def _show_unsigned(study: "Study", site: str, code: "Sequence[Code]", *, json: bool) -> None:
    """Show what a site would sign."""
    from grandrounds.api.progress import plain_console
    from grandrounds.cli.output import print_json
    from grandrounds.cli.study_output import leaving_as_json, print_leaving
    from grandrounds.study.file import fingerprint

    if json:
        shown = {"site": site, "study": fingerprint(study), "code": [asdict(each) for each in code]}
        print_json(shown | {"leaves": leaving_as_json(study)})
        return
    print_leaving(study, site)
    words = f"not signed: {fingerprint(study)}; leave out --dry-run to accept it"
    plain_console().print(words, soft_wrap=True)


@at_site.command()
def acceptances(
    kit: SiteKit,
    withdraw: Annotated[
        str | None,
        typer.Option(help="Withdraw the acceptance of this study: its SHA-256, or a beginning."),
    ] = None,
    json: Json = False,
) -> None:
    """List the studies that a site has accepted; withdraw one."""
    need_flare()
    from grandrounds.cli.output import print_json, print_line
    from grandrounds.cli.study_output import print_acceptances
    from grandrounds.flare.kit import Kit
    from grandrounds.study.acceptance import list_acceptances, withdraw_acceptance

    local = Kit(kit).local
    if withdraw is not None:
        print_line("withdrawn", withdraw_acceptance(withdraw, local).study, as_json=json)
        return
    found = list_acceptances(local)
    if json:
        print_json([asdict(each) for each in found])
    else:
        print_acceptances(found)


@at_site.command()
def log(kit: SiteKit, json: Json = False) -> None:
    """Print what was asked of a site by whom, what left it, and what it refused."""
    need_flare()
    from grandrounds.cli.output import print_json
    from grandrounds.cli.study_output import print_requests
    from grandrounds.core.ledger import NOTES, read_ledger
    from grandrounds.flare.kit import Kit, ledgers_of

    found = [line for path in ledgers_of(Kit(kit)) for line in read_ledger(path)]
    lines = [line for line in found if line.entry.asked not in NOTES]
    if json:
        print_json([{"time": line.time, **asdict(line.entry)} for line in lines])
    else:
        print_requests(lines)


@at_site.command()
def clean(
    kit: SiteKit,
    older_than: OlderThan = 30,
    runs: Runs = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Remove what finished jobs left at a site; its log of what it was asked always stays."""
    need_flare()
    from grandrounds.flare.kit import Kit

    own = Kit(kit)
    if own.kind != "client":
        raise BadSite(f"{kit}: is not a site's kit; give it to `grandrounds federation clean`")
    clean_kit(own, older_than, runs=runs, dry_run=dry_run, json=json)


@at_site.command()
def request(
    name: Annotated[str, typer.Argument(help="The site's name, as studies call it.")],
    out: Annotated[Path, typer.Option(help="A folder for the key, which never leaves it.")],
    json: Json = False,
) -> None:
    """Make a site's own private key, and a request for a certificate of it."""
    need_flare()
    from grandrounds.cli.federation_output import print_request
    from grandrounds.cli.output import print_json
    from grandrounds.flare.requests import make_request

    asked, path = make_request(name, out)
    if json:
        print_json({"site": asked.site, "request": str(path), "key": asked.digest})
    else:
        print_request(asked, path)


@at_site.command()
def install(
    kit: Annotated[Path, typer.Argument(help="The kit that the coordinator made by the request.")],
    key: Annotated[Path, typer.Option(help="The folder of the key, which request made.")],
    into: Annotated[
        Path | None,
        typer.Option(help="The site's kit so far; all but its certificate and key stays."),
    ] = None,
    json: Json = False,
) -> None:
    """Complete a kit with the site's own key; or renew the kit that the site has."""
    need_flare()
    from grandrounds.cli.output import print_line
    from grandrounds.flare.kit import Kit
    from grandrounds.flare.requests import install_key

    complete = install_key(Kit(kit), key, Kit(into) if into else None)
    print_line("kit", str(complete.folder), as_json=json)
