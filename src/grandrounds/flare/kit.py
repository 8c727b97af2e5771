"""A startup kit holds a party's identity, and signs the studies that a site accepts."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast

from grandrounds.core.code import Code
from grandrounds.core.errors import BadSite
from grandrounds.core.names import check_site_name
from grandrounds.core.run_folder import RunFolder, SiteFolder
from grandrounds.study.acceptance import Acceptance, accept, save_acceptance
from grandrounds.study.file import fingerprint
from grandrounds.study.identity import read_certificate, role_of
from grandrounds.study.study import Study

RUNS = "grandrounds"  # in a kit: the folder of a party's runs
LOOK = "look"  # in a site's kit: the kit with which its people see the status
ADMINISTERS, LOOKS = "project_admin", "member"  # NVFlare's roles, which stand in a certificate
Right: TypeAlias = Literal["coordinate", "train", "look", "administer"]
RIGHTS: Mapping[Right, str] = {
    "coordinate": "runs the server, carries what the parties send each other, and trains nothing",
    "train": "answers for its site in studies that the site has accepted, and sees the status",
    "look": "sees which sites answer and how far each job has come, and may do nothing else",
    "administer": "submits, resumes, aborts and fetches studies, and reads the server's logs",
}


@dataclass(frozen=True)
class Kit:
    """A startup kit on this machine. Raises `BadSite` for any other folder."""

    folder: Path

    def __post_init__(self) -> None:
        if not (self.startup / "rootCA.pem").exists():
            raise BadSite(
                f"{self.folder}: no startup kit (startup/rootCA.pem is missing); "
                "give one of the folders that `grandrounds federation provision` made"
            )

    @property
    def startup(self) -> Path:
        """Return the folder of keys, certificates and addresses."""
        return self.folder / "startup"

    @property
    def local(self) -> Path:
        """Return the folder of the party's own settings, which no newer kit replaces."""
        return self.folder / "local"

    @property
    def running(self) -> Path:
        """Return the file that the kit's process holds as long as it lives."""
        return self.folder / "running.lock"

    @property
    def root(self) -> Path:
        """Return the path of the certificate of the federation's authority."""
        return self.startup / "rootCA.pem"

    @property
    def certificate(self) -> Path:
        """Return the path of the party's certificate."""
        return self.startup / f"{self._pair}.crt"

    @property
    def key(self) -> Path:
        """Return the path of the certificate's private key."""
        return self.startup / f"{self._pair}.key"

    @property
    def _pair(self) -> str:
        return "server" if self.kind == "server" else "client"

    @property
    def look(self) -> "Kit":
        """Return the kit with which a site's people see the status, and may do nothing else.

        It has a certificate of its own for the site's key. Raises `BadSite` where there is none.
        """
        return Kit(self.folder / LOOK)

    @property
    def user(self) -> str:
        """Return the name under which an admin's kit, or a site's `look`, opens a session."""
        return str(self._read("fed_admin.json")["admin"]["username"])

    @property
    def right(self) -> Right:
        """Return what the federation lets this kit do, by its certificate. Raises `BadSite`."""
        if self.kind == "server":
            return "coordinate"
        if self.kind == "client":
            return "train"
        role = role_of(read_certificate(self.certificate))
        return "administer" if role == ADMINISTERS else "look"

    @property
    def kind(self) -> Literal["server", "client", "admin"]:
        """Return whose kit it is."""
        for kind in ("server", "client"):
            if (self.startup / f"fed_{kind}.json").exists():
                return kind
        return "admin"

    @property
    def name(self) -> str:
        """Return the site's name, or the server's host. Raises `BadSite` for no site's name."""
        if self.kind == "client":
            site = self._settings["client"]["fqsn"]
            return check_site_name(site, f"{self.folder}: its site", BadSite)
        return self.address[0]

    @property
    def coordinator(self) -> str:
        """Return the name in the server's certificate, as a site's kit knows it."""
        server = self._settings["servers"][0]
        return str(server.get("identity") or self.address[0])

    @property
    def address(self) -> tuple[str, int]:
        """Return the server's host and port."""
        if self.kind == "admin":
            admin = self._read("fed_admin.json")["admin"]
            return str(admin["host"]), int(admin["port"])
        target = str(self._settings["servers"][0]["service"]["target"])
        host, _, port = target.rpartition(":")
        return host, int(port)

    @property
    def _settings(self) -> dict[str, Any]:
        return self._read(f"fed_{self.kind}.json")

    def _read(self, name: str) -> dict[str, Any]:
        return cast(dict[str, Any], json.loads((self.startup / name).read_text()))


def organisation(site: str) -> str:
    """Return the name of a site's organisation, in which NVFlare 2.9 takes no '-'."""
    return site.replace("-", "_")


def check_kit(study: Study, kit: Kit) -> None:
    """Refuse a kit that is not that of a site of the study. Raises `BadSite`."""
    if kit.kind != "client" or kit.name not in study.trainers:
        known = ", ".join(study.trainers)
        raise BadSite(f"{kit.folder}: is not the kit of a site of this study; it has {known}")


def ledgers_of(kit: Kit) -> list[Path]:
    """List the ledgers of a kit's site, and the logs of older versions; the oldest first."""
    at_site = f"{RUNS}/*/{RunFolder.sites}/{kit.name}"
    names = (SiteFolder.older_log, SiteFolder.ledger)
    found = [path for name in names for path in kit.folder.glob(f"{at_site}/{name}")]
    return sorted(found, key=lambda path: path.stat().st_mtime)


def accept_study(
    study: Study, kit: Kit, policy: Sequence[str] = (), code: Sequence[Code] = ()
) -> tuple[Acceptance, Path]:
    """Sign a study, its policy and its code with a site's key; save that in the kit, return both.

    Raises `BadSite` where the kit is not that of a site of the study.
    """
    check_kit(study, kit)
    acceptance = accept(fingerprint(study), kit.key, kit.certificate, policy, code)
    return acceptance, save_acceptance(acceptance, kit.local)
