"""A federation's kits, sites and jobs, and what the doctor finds, are printed here."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.table import Table
from rich.text import Text

from grandrounds.api.progress import plain_console
from grandrounds.cli.output import print_json
from grandrounds.cli.tables import print_table
from grandrounds.flare.kit import RIGHTS, Kit, Right
from grandrounds.flare.requests import SiteRequest
from grandrounds.flare.retention import Leftover

_COLOURS = {"ok": "green", "soon": "yellow", "bad": "red", "skipped": "dim"}
_ONCE: Mapping[Right, str] = {
    "coordinate": "grandrounds federation start KIT",
    "administer": "grandrounds federation submit STUDY --kit KIT",
    "train": "grandrounds site accept STUDY --kit KIT, then federation start KIT",
}


def print_kits(kits: Mapping[str, Path], authority: Path) -> None:
    """Print each startup kit, what it may do, and what to do with it; and who can make others."""
    table = Table("kit", "for", "there, once", title="Startup kits")
    for name, folder in kits.items():
        kit = Kit(folder)
        once = _ONCE[kit.right]
        whose = f"{name}: {kit.right}"
        if not kit.key.exists():
            once = f"grandrounds site install KIT --key FOLDER, {once}"
        table.add_row(str(folder), whose, once)
    console = plain_console()
    print_table(table, console)
    for right, words in RIGHTS.items():
        console.print(f"{right}: {words}", soft_wrap=True)
    console.print(
        f"{authority}: its key can make a kit for anyone. Keep it offline, with whoever answers "
        "for the federation; it adds, renews and revokes sites.",
        soft_wrap=True,
    )


def print_request(request: SiteRequest, path: Path) -> None:
    """Print what a site sends to the authority, and what it reads out to it."""
    plain_console().print(
        f"request: {path}\nSHA-256 of the key: {request.digest}\n"
        "send the request to the coordinator, and read the SHA-256 out over another line; the "
        "key beside it stays here",
        soft_wrap=True,
    )


def print_new_kit(kit: Path, request: SiteRequest, note: str) -> None:
    """Print a site's new kit, and the key that it is for."""
    plain_console().print(
        f"kit: {kit}\nfor: {request.site}, with the key of SHA-256 {request.digest}\n"
        f"compare the SHA-256 with the site before you hand the kit over; {note}",
        soft_wrap=True,
    )


def print_revoked(number: int, path: Path, server: Path | None) -> None:
    """Print where the new list of revoked certificates is, and what makes it count."""
    there = (
        f"it is in {server}: the server refuses them from now on, the sites from the next run on"
        if server
        else f"put it into the server's kit, as KIT/local/{path.name}; until then it does not count"
    )
    plain_console().print(f"list {number} of revoked certificates: {path}\n{there}", soft_wrap=True)


def print_jobs(sites: Sequence[str], jobs: Sequence[tuple[str, str, str, str, str]]) -> None:
    """Print which sites answer, and each job's id, study, status, round and time."""
    console = plain_console()
    console.print(f"there: {', '.join(sites) or 'no site'}", soft_wrap=True)
    for id, study, status, progress, submitted in jobs:
        reached = f", round {progress}" if progress else ""
        console.print(Text(f"{id}  {status}{reached}"), soft_wrap=True)
        console.print(Text(f"    {study}, submitted {submitted}"), soft_wrap=True)


def print_leftovers(
    found: Sequence[Leftover], gone: Sequence[Leftover], *, dry_run: bool, as_json: bool
) -> None:
    """Print what jobs left: what was removed, or would be, and what stays for which reason."""
    going = [each for each in found if each.goes] if dry_run else gone
    total = sum(each.bytes for each in going)
    if as_json:
        said = {"dry_run": dry_run, "removed": len(gone), "bytes": total}
        print_json(said | {"found": [asdict(each) for each in found]})
        return
    console = plain_console()
    for each in found:
        stays = each.stays or ("" if dry_run or each in gone else "it began to run")
        size = f"{each.bytes:,} bytes, " if each.bytes else ""
        console.print(Text(each.where), soft_wrap=True)
        verdict = f"stays: {stays}" if stays else "goes"
        console.print(Text(f"  {each.what}, {size}{each.days:.0f} days old; {verdict}"))
    done = "would be removed; leave out --dry-run to do it" if dry_run else "removed"
    console.print(f"{len(going)} of {len(found)}, {total:,} bytes, {done}", soft_wrap=True)


def print_findings(findings: Mapping[str, Mapping[str, str]]) -> None:
    """Print the finding of each check of the doctor, and what mends it."""
    table = Table.grid("", "", "", padding=(0, 2, 0, 0))
    for name, finding in findings.items():
        mend = f"\nmend: {finding['mend']}" if finding["mend"] else ""
        verdict = Text(finding["verdict"], _COLOURS[finding["verdict"]])
        table.add_row(verdict, Text(name), Text(f"{finding['found']}{mend}"))
    print_table(table)
