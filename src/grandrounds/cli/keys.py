"""With these commands a coordinator makes kits, and adds, renews and revokes single sites.

Heavy modules are imported inside the commands, so that `--help` answers at once.
"""

from pathlib import Path
from typing import Annotated

import typer

from grandrounds.cli.app import Json, StudyPath
from grandrounds.cli.federation import federation, need_flare

AuthorityFolder = Annotated[
    Path,
    typer.Option("--authority", help="The authority's folder, which provision made."),
]
RequestPath = Annotated[
    Path, typer.Argument(help="A site's request: NAME.csr.", show_default=False)
]
NewKit = Annotated[Path, typer.Option("--out", help="A new folder for the site's kit.")]
ServerKit = Annotated[
    Path | None,
    typer.Option("--kit", help="The server's kit, to put the list of revoked certificates there."),
]


@federation.command()
def provision(
    study: StudyPath,
    server: Annotated[
        str, typer.Option(help="The host name by which the sites reach the server; or localhost.")
    ],
    out: Annotated[Path, typer.Option(help="A new folder for the kits.")],
    port: Annotated[int, typer.Option(min=1, max=65535, help="The server's port.")] = 8002,
    requests: Annotated[
        Path | None,
        typer.Option(help="A folder of requests; the kit of a site with NAME.csr has no key."),
    ] = None,
    json: Json = False,
) -> None:
    """Make an authority, and startup kits: for the server, each site and the admin."""
    need_flare()
    from grandrounds.cli.federation_output import print_kits
    from grandrounds.cli.output import print_json
    from grandrounds.flare.authority import AUTHORITY
    from grandrounds.flare.provision import provision_kits
    from grandrounds.flare.requests import requests_in
    from grandrounds.runs.remote import check_remote
    from grandrounds.study.installed import look_up

    resolved = look_up(study).read()
    check_remote(resolved)
    asked = requests_in(requests, resolved.trainers) if requests else None
    kits = provision_kits(resolved, server, out, port=port, requests=asked)
    if json:
        print_json({name: str(kit) for name, kit in (kits | {AUTHORITY: out / AUTHORITY}).items()})
    else:
        print_kits(kits, out / AUTHORITY)


@federation.command()
def add(request: RequestPath, authority: AuthorityFolder, out: NewKit, json: Json = False) -> None:
    """Make a kit for a new site, by its request; all other kits stay as they are."""
    need_flare()
    from grandrounds.cli.federation_output import print_new_kit
    from grandrounds.cli.output import print_json
    from grandrounds.flare.authority import Authority
    from grandrounds.flare.membership import add_site
    from grandrounds.flare.requests import read_request

    asked = read_request(request)
    kit = add_site(Authority(authority), asked, out)
    if json:
        print_json({"site": asked.site, "kit": str(kit), "key": asked.digest})
    else:
        print_new_kit(kit, asked, "a study must name the site before it takes part")


@federation.command()
def renew(
    request: RequestPath,
    authority: AuthorityFolder,
    out: NewKit,
    revoke_old: Annotated[
        bool, typer.Option("--revoke-old", help="Revoke the site's earlier certificates, too.")
    ] = False,
    kit: ServerKit = None,
    json: Json = False,
) -> None:
    """Make a new kit for a site, by a new request; all other kits stay as they are."""
    need_flare()
    from grandrounds.cli.federation_output import print_new_kit, print_revoked
    from grandrounds.cli.output import print_json
    from grandrounds.flare.authority import Authority
    from grandrounds.flare.membership import hand_list, renew_site
    from grandrounds.flare.requests import read_request

    asked, issuer = read_request(request), Authority(authority)
    made = renew_site(issuer, asked, out, revoke=revoke_old)
    if kit:
        hand_list(issuer, kit)
    if json:
        print_json({"site": asked.site, "kit": str(made), "key": asked.digest})
        return
    print_new_kit(made, asked, "the site accepts its studies anew with it")
    if revoke_old:
        print_revoked(issuer.list.number, issuer.revoked, kit)


@federation.command()
def revoke(
    site: Annotated[str, typer.Argument(help="The site's name.")],
    authority: AuthorityFolder,
    kit: ServerKit = None,
    json: Json = False,
) -> None:
    """Revoke all certificates of a site; the other sites' kits stay as they are."""
    need_flare()
    from grandrounds.cli.federation_output import print_revoked
    from grandrounds.cli.output import print_json
    from grandrounds.flare.authority import Authority
    from grandrounds.flare.membership import hand_list, revoke_site

    issuer = Authority(authority)
    gone = revoke_site(issuer, site)
    if kit:
        hand_list(issuer, kit)
    if json:
        serials = [each.serial for each in gone]
        print_json({"list": str(issuer.revoked), "number": issuer.list.number, "serials": serials})
    else:
        print_revoked(issuer.list.number, issuer.revoked, kit)
