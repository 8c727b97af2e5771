"""Startup kits are made here: for the server, each site and the person who submits studies."""

# NVFlare has no type stubs.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

import contextlib
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

from nvflare.lighter.prov_utils import prepare_builders
from nvflare.lighter.provision import prepare_project
from nvflare.lighter.provisioner import Provisioner

from grandrounds.core.errors import BadFolder, BadStudy
from grandrounds.core.names import MOST, check_host, check_name, check_site_name
from grandrounds.flare.job import ALLOWED
from grandrounds.flare.kit import Kit, organisation
from grandrounds.study.study import Study

ADMIN = "admin@grandrounds.org"
SERVER_PORT = 8002
VALID_DAYS = 365 * 2
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
_LOG_STREAMS = ("site_log_streamer", "log_receiver")
_BUILDERS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("workspace.WorkspaceBuilder", {"template_file": ["master_template.yml"]}),
    ("static_file.StaticFileBuilder", {"config_folder": "config"}),
    ("cert.CertBuilder", {"root_valid_days": VALID_DAYS}),
    ("signature.SignatureBuilder", {}),
)


def provision_kits(
    study: Study, server: str, out: Path, *, port: int = SERVER_PORT
) -> dict[str, Path]:
    """Make certificates and startup kits for the server, each site and the admin, below `out`.

    `server` is the name or address by which the sites reach the server; "localhost" keeps it on
    this machine. Before any key is made it raises `BadStudy` for a name that NVFlare does not take,
    and `BadFolder` where there are kits already: their keys would be lost.
    """
    if out.exists() and any(out.iterdir()):
        raise BadFolder(f"{out}: is not empty; give another --out, so that no key is overwritten")
    project = project_of(study, server, port)
    with TemporaryDirectory() as made, contextlib.redirect_stdout(io.StringIO()):
        provisioner = Provisioner(made, prepare_builders(project))
        provisioner.provision(prepare_project(project))
        [production] = Path(made).glob("*/prod_00")
        # NVFlare cuts a long host's name to what a certificate's common name may have.
        names = {server[:MOST]: "server", ADMIN: "admin"} | {name: name for name in study.trainers}
        return {
            folder: _hand_over(production / name, out / folder) for name, folder in names.items()
        }


def project_of(study: Study, server: str, port: int) -> dict[str, Any]:
    """Return what NVFlare makes kits of. Raises `BadStudy` for a name that it does not take."""
    check_name(study.name, "study name")
    for site in study.trainers:
        check_site_name(site)
    if check_host(server, "--server").lower() in [site.lower() for site in study.trainers]:
        raise BadStudy(f"--server {server}: a site has this name; give the server's own host name")
    sites = [{"name": name, "type": "client", "org": organisation(name)} for name in study.trainers]
    host = {"name": server, "type": "server", "org": "coordinator", "fed_learn_port": port}
    admin = {"name": ADMIN, "type": "admin", "org": "coordinator", "role": "project_admin"}
    builders = [{"path": f"nvflare.lighter.impl.{path}", "args": args} for path, args in _BUILDERS]
    return {
        "api_version": 3,
        "name": study.name,
        "participants": [host, *sites, admin],
        "builders": builders,
    }


def _hand_over(made: Path, kit: Path) -> Path:
    shutil.copytree(made, kit)
    if Kit(kit).kind != "admin":
        _settle(kit / "local" / "resources.json", _restricted)
        _settle(kit / "local" / "authorization.json", _without_code)
    return kit


def _settle(path: Path, restrict: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Replace NVFlare's default settings by restricted ones."""
    default = path.with_name(f"{path.name}.default")
    settings = cast(dict[str, Any], json.loads(default.read_text()))
    path.write_text(json.dumps(restrict(settings), indent=2) + "\n")
    default.unlink()


def _restricted(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings that allow only our two classes and stream no log."""
    components = cast(list[dict[str, Any]], settings["components"])
    return settings | {
        "class_allow_list": list(ALLOWED),
        "allow_log_streaming": False,
        "components": [each for each in components if each["id"] not in _LOG_STREAMS],
    }


def _without_code(settings: dict[str, Any]) -> dict[str, Any]:
    """Return permissions without code or shell commands, which the allow-list does not bind."""
    permissions = cast(dict[str, dict[str, str] | str], settings["permissions"])
    nobody = dict.fromkeys(CODE, "none")
    found = {
        role: (dict.fromkeys(_RIGHTS, "any") if isinstance(rights, str) else rights) | nobody
        for role, rights in permissions.items()
    }
    return settings | {"permissions": found}
