"""One site at a time joins a federation, is renewed, or leaves; no other kit changes."""

from collections.abc import Sequence
from pathlib import Path

from grandrounds.core.errors import BadFolder, BadSite, BadStudy, WrongSignature
from grandrounds.core.names import check_distinct
from grandrounds.flare.authority import Authority, Issued
from grandrounds.flare.kit import Kit
from grandrounds.flare.provision import make_site_kit
from grandrounds.flare.requests import SiteRequest
from grandrounds.study.revocation import keep_list, list_beside


def add_site(authority: Authority, request: SiteRequest, out: Path) -> Path:
    """Make the kit of a site that is new in a federation. Raises `BadInput`."""
    known = authority.owners
    if request.site in known:
        raise BadStudy(
            f"site '{request.site}' has a certificate of this federation; "
            "`grandrounds federation renew` makes another"
        )
    check_distinct((*known, authority.settings.server, request.site), "site")
    _check(authority, request, out)
    return make_site_kit(authority, request, out)


def renew_site(
    authority: Authority, request: SiteRequest, out: Path, *, revoke: bool = False
) -> Path:
    """Make a new kit of a site that is known; `revoke` what it had before. Raises `BadInput`."""
    before = authority.of(request.site)
    _check(authority, request, out)
    if revoke:
        authority.revoke(each.serial for each in before)
    return make_site_kit(authority, request, out)


def revoke_site(authority: Authority, site: str) -> Sequence[Issued]:
    """Revoke all that a site has, and return it. Raises `BadStudy` for what is no site."""
    if site in ("server", "admin"):
        raise BadStudy(f"'{site}' is no site: after a theft of its key, provision the kits anew")
    found = authority.of(site)
    if not found:
        raise BadStudy(f"site '{site}' has no certificate that still counts")
    authority.revoke(each.serial for each in found)
    return found


def hand_list(authority: Authority, server: Path) -> None:
    """Put the list of revoked certificates into the server's kit. Raises `BadSite`."""
    kit = Kit(server)
    if kit.kind != "server":
        raise BadSite(f"{server}: is not the server's kit")
    if authority.revoked.exists():
        try:
            kept = keep_list(authority.revoked.read_bytes(), kit.root)
        except WrongSignature as error:
            raise BadSite(f"{server}: {error}; give the kit of the same federation") from None
        if kept != authority.list:
            raise BadSite(
                f"{server}: has list {kept.number} of revoked certificates, newer than list "
                f"{authority.list.number} of {authority.folder}; copy {list_beside(kit.root)} to "
                f"{authority.revoked}, and revoke again"
            )


def _check(authority: Authority, request: SiteRequest, out: Path) -> None:
    """Check that a kit is new, and that its key is of nobody else and was never revoked.

    Raises `BadFolder` and `BadStudy`.
    """
    if out.exists():
        raise BadFolder(f"{out}: is there already; give another --out")
    gone = authority.list.serials
    for each in authority.register:
        if each.key == request.digest and each.owner != request.site:
            raise BadStudy(f"the key of '{request.site}' is that of '{each.owner}'; make a new one")
        if each.key == request.digest and int(each.serial, 16) in gone:
            raise BadStudy(
                f"a certificate of this key of '{request.site}' was revoked; make a new one"
            )
