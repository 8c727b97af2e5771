"""Startup kits are made here: for the server, each site and the person who submits studies."""

# NVFlare has no type stubs.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

import contextlib
import io
import json
import shutil
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

from nvflare.lighter.prov_utils import prepare_builders
from nvflare.lighter.provision import prepare_project
from nvflare.lighter.provisioner import Provisioner

from grandrounds.core.errors import BadFolder, BadStudy
from grandrounds.core.files import write_bytes, write_text
from grandrounds.core.names import MOST, check_host, check_name, check_site_name
from grandrounds.flare.authority import (
    AUTHORITY,
    Authority,
    Settings,
    found_authority,
    make_key,
)
from grandrounds.flare.job import ALLOWED, REGISTRATION
from grandrounds.flare.kit import ADMINISTERS, LOOK, LOOKS, Kit, organisation
from grandrounds.flare.requests import SiteRequest
from grandrounds.study.revocation import REVOKED
from grandrounds.study.study import Study

ADMIN = "admin@grandrounds.org"
SERVER_PORT = 8002
CODE = ("byoc", "server-predeployed-flwr", "shell_commands")  # NVFlare's words for foreign code
_RIGHTS = (
    "submit_job",
    "clone_job",
    "manage_job",
    "download_job",
    "view",
    "operate",
    "app_command",
    "get_job_log",
    "report_version",
)
_MAY_LOOK = ("list_jobs", "check_status", "report_version", "app_command")
_LOOK_FILES = ("startup/fed_admin.json", "local/resources.json.default")
_LOOK_DOMAIN = "@look.grandrounds.org"
_LOG_STREAMS = ("site_log_streamer", "log_receiver")
_COORDINATOR = "coordinator"
_BUILDERS: Sequence[Mapping[str, Any]] = (
    {
        "path": "nvflare.lighter.impl.workspace.WorkspaceBuilder",
        "args": {"template_file": ["master_template.yml"]},
    },
    {
        "path": "nvflare.lighter.impl.static_file.StaticFileBuilder",
        "args": {"config_folder": "config"},
    },
)


def provision_kits(
    study: Study,
    server: str,
    out: Path,
    *,
    port: int = SERVER_PORT,
    requests: Mapping[str, SiteRequest] | None = None,
) -> dict[str, Path]:
    """Make an authority, and startup kits for the server, each site and the admin, below `out`.

    `server` is the name or address by which the sites reach the server; "localhost" keeps it on
    this machine. A site with one of the `requests` gets a kit without a private key, for its own.
    Before any key is made it raises `BadStudy` for a name that NVFlare does not take, and
    `BadFolder` where there are kits already: their keys would be lost.
    """
    if out.exists() and any(out.iterdir()):
        raise BadFolder(f"{out}: is not empty; give another --out, so that no key is overwritten")
    settings, sites, asked = Settings(study.name, server, port), study.trainers, requests or {}
    project = project_of(settings, sites)
    with _unsigned_kits(project) as made:
        authority = found_authority(settings, out / AUTHORITY)
        kits = {
            "server": _server_kit(authority, made / server[:MOST], out / "server"),
            "admin": _admin_kit(authority, made / ADMIN, out / "admin"),
        }
        for site in sites:
            kits[site] = _site_kit(authority, made, out / site, asked.get(site) or site)
    return kits


def make_site_kit(authority: Authority, request: SiteRequest, out: Path) -> Path:
    """Make the kit of one site, without a private key, for which it asks. Raises `BadInput`."""
    project = project_of(authority.settings, (request.site,))
    with _unsigned_kits(project) as made:
        return _site_kit(authority, made, out, request)


def project_of(settings: Settings, sites: Sequence[str]) -> dict[str, Any]:
    """Return what NVFlare makes kits of. Raises `BadStudy` for a name that it does not take."""
    server = settings.server
    check_name(settings.study, "study name")
    for site in sites:
        check_site_name(site)
    if check_host(server, "--server").lower() in [site.lower() for site in sites]:
        raise BadStudy(f"--server {server}: a site has this name; give the server's own host name")
    host = {"name": server, "type": "server", "org": _COORDINATOR, "fed_learn_port": settings.port}
    clients = [{"name": name, "type": "client", "org": organisation(name)} for name in sites]
    users = [
        {"name": ADMIN, "type": "admin", "org": _COORDINATOR, "role": ADMINISTERS},
        *(
            {"name": look_name(name), "type": "admin", "org": organisation(name), "role": LOOKS}
            for name in sites
        ),
    ]
    return {
        "api_version": 3,
        "name": settings.study,
        "participants": [host, *clients, *users],
        "builders": [dict(each) for each in _BUILDERS],
    }


def look_name(site: str) -> str:
    """Return the name under which a site's people look at the status; no site has such a name.

    The names of two long sites may be the same: both may look, and nothing else.
    """
    return site[: MOST - len(_LOOK_DOMAIN)] + _LOOK_DOMAIN


@contextmanager
def _unsigned_kits(project: dict[str, Any]) -> Generator[Path, None, None]:
    """Let NVFlare write the kits' files, without keys and certificates."""
    with TemporaryDirectory() as made, contextlib.redirect_stdout(io.StringIO()):
        found = prepare_project(project)
        _cut_host(found.get_server())
        Provisioner(made, prepare_builders(project)).provision(found)
        [production] = Path(made).glob("*/prod_00")
        yield production


def _cut_host(server: Any) -> None:
    """Cut a long host's name to what a certificate has; sites still call the whole name."""
    if len(host := str(server.name)) > MOST:
        server.name = server.subject = host[:MOST]
        server.set_prop("default_host", host)


def _server_kit(authority: Authority, made: Path, out: Path) -> Path:
    kit, key = _copied(authority, made, out), make_key(out / "startup" / "server.key")
    name = authority.settings.server[:MOST]
    own = authority.issue(name, "server", key.public_key(), organisation=_COORDINATOR)
    write_bytes(kit.certificate, own)
    _restrict(kit, components=[{"id": "registration", "path": REGISTRATION, "args": {}}])
    return out


def _admin_kit(authority: Authority, made: Path, out: Path) -> Path:
    kit, key = _copied(authority, made, out), make_key(out / "startup" / "client.key").public_key()
    own = authority.issue(ADMIN, "admin", key, organisation=_COORDINATOR, role=ADMINISTERS)
    write_bytes(kit.certificate, own)
    return out


def _site_kit(authority: Authority, made: Path, out: Path, asks: SiteRequest | str) -> Path:
    """Make a site's kit, for the key that it asks with, or with a new key in it."""
    site = asks if isinstance(asks, str) else asks.site
    kit, org = _copied(authority, made / site, out), organisation(site)
    key = make_key(kit.key).public_key() if isinstance(asks, str) else asks.key
    own = authority.issue(site, site, key, organisation=org)
    write_bytes(kit.certificate, own)
    _restrict(kit)
    for name in _LOOK_FILES:
        source, target = made / look_name(site) / name, out / LOOK / name
        write_bytes(target, source.read_bytes())
    shutil.copy(authority.root, kit.folder / LOOK / "startup")
    looks = authority.issue(look_name(site), site, key, organisation=org, role=LOOKS)
    write_bytes(kit.look.certificate, looks)
    _use_the_site_s_key(kit.look.startup / "fed_admin.json")
    return out


def _use_the_site_s_key(path: Path) -> None:
    """Let a session look with the key of the kit in which its own folder lies."""
    settings = cast(dict[str, dict[str, Any]], json.loads(path.read_text()))
    settings["admin"]["client_key"] = "../../startup/client.key"
    write_text(path, json.dumps(settings, indent=2) + "\n")


def _copied(authority: Authority, made: Path, out: Path) -> Kit:
    """Copy what NVFlare made of a kit, and add what the authority gives to all."""
    shutil.copytree(made, out)
    shutil.copy(authority.root, out / "startup")
    if authority.revoked.exists():
        write_bytes(out / "local" / REVOKED, authority.revoked.read_bytes())
    return Kit(out)


def _restrict(kit: Kit, components: Sequence[Mapping[str, Any]] = ()) -> None:
    """Replace NVFlare's default settings of a party by restricted ones."""
    _settle(kit.local / "resources.json", lambda found: _restricted(found, components))
    _settle(kit.local / "authorization.json", _without_code)


def _settle(path: Path, restrict: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    default = path.with_name(f"{path.name}.default")
    settings = cast(dict[str, Any], json.loads(default.read_text()))
    path.write_text(json.dumps(restrict(settings), indent=2) + "\n")
    default.unlink()


def _restricted(settings: dict[str, Any], ours: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """Return settings that allow only our two classes in a job and stream no log."""
    components = cast(list[dict[str, Any]], settings["components"])
    return settings | {
        "class_allow_list": list(ALLOWED),
        "allow_log_streaming": False,
        "components": [*(e for e in components if e["id"] not in _LOG_STREAMS), *ours],
    }


def _without_code(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the rights of the two roles that certificates have: all but code, and to look."""
    nobody = dict.fromkeys(CODE, "none")
    roles = {ADMINISTERS: _RIGHTS, LOOKS: _MAY_LOOK}
    found = {role: dict.fromkeys(rights, "any") | nobody for role, rights in roles.items()}
    return settings | {"permissions": found}
