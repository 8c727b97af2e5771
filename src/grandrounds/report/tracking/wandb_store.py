"""Weights & Biases, as a server or as a folder, is a store; only this module imports wandb."""

# wandb comes with types that are only partly known.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import wandb

from grandrounds.core.errors import BadInput
from grandrounds.core.files import write_text
from grandrounds.report.tracking.points import EVERY_ROUND, TEST, Beginning, Logged, PointBatch

OFFLINE = "offline:"
KEYS = ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")
# A server that is gone must not delay a round for long, and W&B prints nothing here.
CAREFUL_WANDB = {"WANDB_ERROR_REPORTING": "false", "WANDB_SILENT": "true"}
PATIENCE = 15.0  # seconds for a server to answer that a run begins
# Nothing of the machine leaves it: no host, user, path, code, package, output or usage.
DISCREET: Mapping[str, Any] = {
    "console": "off",
    "disable_code": True,
    "disable_git": True,
    "disable_job_creation": True,
    "email": "",
    "host": "",
    "init_timeout": PATIENCE,
    "label_disable": True,
    "program": "",
    "program_abspath": "",
    "program_relpath": "",
    "save_code": False,
    "silent": True,
    "username": "",
    "x_disable_machine_info": True,
    "x_disable_meta": True,
    "x_disable_stats": True,
    "x_save_requirements": False,
}


@dataclass
class WandB:
    """Runs in W&B, in a project: that of the address, or offline one with the study's name.

    A run's key is its project and its id. Offline, nothing is sent: a run is a file below the
    folder, and beside it stands what it holds, which W&B itself cannot tell before it is sent.
    """

    address: str
    _run: Any = None
    _key: str = ""
    _logged: Logged = field(default_factory=Logged)

    @property
    def _folder(self) -> Path:
        """Return the folder of W&B's own files."""
        named = self.address.removeprefix(OFFLINE) if self.address.startswith(OFFLINE) else ""
        return Path(named or os.environ.get("WANDB_DIR", "."))

    @property
    def _mode(self) -> str:
        if self.address.startswith(OFFLINE):
            return "offline"
        return os.environ.get("WANDB_MODE", "online")

    def begin(self, beginning: Beginning) -> str:
        """Make a run, and return its key."""
        project = beginning.name if self.address.startswith(OFFLINE) else self.address
        self._key = self._key or f"{project}:{uuid4().hex[:12]}"
        self._open(
            name=beginning.title,
            group=beginning.tags.get("comparison", beginning.name),
            config={**beginning.tags, **beginning.parameters},
        )
        return self._key

    def resume(self, key: str) -> Logged:
        """Open a run that was made before, and return what it holds."""
        self._key = key
        self._open()
        if self._mode == "online":
            tested = any(name.startswith(TEST) for name in dict(self._run.summary))
            return Logged(frozenset(range(self._run.step)), tested)
        return self._logged

    def log(self, batch: PointBatch) -> None:
        """Add a round as one step; what comes after the last round is the run's summary."""
        if EVERY_ROUND in batch.metrics:
            self._run.log({**batch.metrics, "_timestamp": batch.moment}, step=batch.round)
        else:
            self._run.summary.update(dict(batch.metrics))
        self._run.summary.update({n: v for n, v in batch.tags.items() if n != "failed"})
        self._remember(self._logged.with_points(batch))

    def end(self, batch: PointBatch) -> None:
        """Log how the run ended, and write all of it out."""
        failed = {name: word for name, word in batch.tags.items() if name == "failed"}
        self._run.summary.update({"status": str(batch.status), **failed})
        self._remember(replace(self._logged, status=str(batch.status)))
        self._finish(0 if batch.status == "FINISHED" else 1)

    def close(self) -> None:
        """Write out a run that goes on elsewhere, or later."""
        if self._run is not None:
            self._finish(0)

    def _finish(self, code: int) -> None:
        self._run.finish(exit_code=code)
        self._run = None

    def _open(self, **words: Any) -> None:
        if self._mode == "online":
            _check_key()
        for variable, value in CAREFUL_WANDB.items():
            os.environ.setdefault(variable, value)
        project, _, number = self._key.rpartition(":")
        entity, _, name = project.rpartition("/")
        self._folder.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            entity=entity or None,
            project=name,
            id=number,
            resume="allow",
            mode="offline" if self._mode == "offline" else None,
            dir=str(self._folder),
            reinit="create_new",
            settings=wandb.Settings(**DISCREET),
            **words,
        )
        self._logged = self._remembered()

    @property
    def _notes(self) -> Path:
        return self._folder / "wandb" / f"{self._key.rpartition(':')[2]}.json"

    def _remember(self, logged: Logged) -> None:
        self._logged = logged
        held = {
            "rounds": sorted(logged.rounds),
            "tested": logged.tested,
            "status": logged.status,
        }
        if self._mode != "online":
            refusal = "{path}: cannot be written: {reason}"
            write_text(self._notes, json.dumps(held) + "\n", refusal=refusal)

    def _remembered(self) -> Logged:
        if self._mode == "online" or not self._notes.exists():
            return Logged()
        held = json.loads(self._notes.read_text("utf-8"))
        return Logged(frozenset(held["rounds"]), bool(held["tested"]), str(held["status"]))


def _check_key() -> None:
    """Refuse a server whose key is not known here, before anybody is asked for it."""
    if any(os.environ.get(name) for name in KEYS):
        return
    server = str(wandb.setup().settings.base_url)
    path = os.environ.get("NETRC") or str(Path.home() / ".netrc")
    try:
        known = netrc(path).authenticators(urlsplit(server).hostname or "")
    except (OSError, NetrcParseError):
        known = None
    if known is None:
        raise BadInput(
            f"no key of {server} is known here; give it once with `wandb login`, or in "
            "WANDB_API_KEY, or keep the runs here with wandb:offline:DIR"
        )
