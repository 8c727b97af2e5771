"""Starting a kit's process: the server's, or a site's."""

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from grandrounds.errors import BadSite
from grandrounds.weights import write_atomically

STORAGE = "/tmp/nvflare"  # where NVFlare's template lets a server keep its jobs


@dataclass(frozen=True)
class Kit:
    """A startup kit on this machine. Raises `BadSite` for a folder that is none."""

    folder: Path

    def __post_init__(self) -> None:
        if not (self.startup / "rootCA.pem").exists():
            raise BadSite(
                f"{self.folder}: no startup kit (startup/rootCA.pem is missing); "
                "give one of the folders that `grandrounds federation provision` made"
            )

    @property
    def startup(self) -> Path:
        """Give the folder of keys, certificates and addresses, which is signed as a whole."""
        return self.folder / "startup"

    @property
    def local(self) -> Path:
        """Give the folder of what this party decides for itself."""
        return self.folder / "local"

    @property
    def kind(self) -> Literal["server", "client", "admin"]:
        """Say whose kit it is."""
        for kind in ("server", "client"):
            if (self.startup / f"fed_{kind}.json").exists():
                return kind
        return "admin"

    @property
    def name(self) -> str:
        """Give the site's name, or the server's host."""
        if self.kind == "client":
            return str(self._settings["client"]["fqsn"])
        return self.address[0]

    @property
    def address(self) -> tuple[str, int]:
        """Give the server's host and port."""
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


def command(kit: Kit) -> list[str]:
    """Give the command that runs a kit's process in the foreground. Raises `BadSite`."""
    if kit.kind == "admin":
        raise BadSite(f"{kit.folder}: is the kit to submit studies with; nothing runs from it")
    at_home(kit)
    who = [f"uid={kit.name}"] if kit.kind == "client" else []
    module = f"nvflare.private.fed.app.{kit.kind}.{kit.kind}_train"
    workspace = ["-m", str(kit.folder.absolute()), "-s", f"fed_{kit.kind}.json"]
    settings = ["secure_train=true", *who, f"org={_org(kit)}", "config_folder=config"]
    return [sys.executable, "-u", "-m", module, *workspace, "--set", *settings]


def start(kit: Kit) -> None:
    """Become the kit's process: it ends when this one is told to."""
    words = command(kit)
    os.execv(words[0], words)


def at_home(kit: Kit) -> None:
    """Let a server keep its jobs in its own kit, wherever that was put."""
    resources = kit.local / "resources.json"
    text = resources.read_text()
    settings = text.replace(STORAGE, str(kit.folder.absolute() / "storage"))
    if settings != text:
        write_atomically(resources, settings.encode())


def _org(kit: Kit) -> str:
    return kit.name if kit.kind == "client" else "coordinator"
