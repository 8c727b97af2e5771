"""One tracker of one run: hears events, and brings to its store what the store lacks.

What a store refuses waits, and is tried again after the next round: training never stops for it.
"""

import json
import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import time
from typing import Protocol, TypeAlias, cast

from grandrounds.events import Event, RunStarted
from grandrounds.tracking.points import Batch, Beginning, Gathering, Logged

Tell: TypeAlias = Callable[[str], None]
RECORD = "tracking.json"


class Store(Protocol):
    """Where a tracker keeps runs."""

    def begin(self, beginning: Beginning) -> str:
        """Make a run, and give the key by which it is found again."""
        ...

    def resume(self, key: str) -> Logged:
        """Open a run that was made before, and tell what it holds."""
        ...

    def log(self, batch: Batch) -> None:
        """Add a batch's points and tags: all or none where the store can."""
        ...

    def end(self, batch: Batch) -> None:
        """Note how the run ended."""
        ...


@dataclass
class Tracker:
    """A listener that brings a run to one store; `tell` gets a sentence where that fails."""

    uri: str
    folder: Path
    store: Store
    tell: Tell
    _gathering: Gathering = field(default_factory=Gathering)
    _beginning: Beginning | None = None
    _logged: Logged | None = None
    _waiting: list[Batch] = field(default_factory=list[Batch])
    _warned: bool = False

    def __call__(self, event: Event) -> None:
        """Hear an event as it happens, and bring to the store what it completes."""
        if self.hear(time(), event):
            self.deliver()

    def hear(self, moment: float, event: Event) -> bool:
        """Hear an event of a moment (unix seconds); tell whether there is something to deliver."""
        starts = isinstance(event, RunStarted)
        if starts and self._beginning is None:
            self._beginning = beginning(self.folder, moment, event)
        batch = self._gathering.hear(moment, event)
        if batch:
            self._waiting.append(batch)
        return starts or batch is not None

    def deliver(self) -> None:
        """Bring to the store what waits; what it refuses goes on waiting."""
        if self._beginning:
            self._deliver(self._beginning)

    def close(self) -> bool:
        """Say in the end what could not be brought to the store; tell whether all could."""
        if self._waiting:
            self.tell(
                f"{len(self._waiting)} rounds or results of {self.folder} are not in "
                f"{shown(self.uri)}; bring them there with: "
                f"grandrounds track {self.folder} --to {shown(self.uri)}"
            )
        return not self._waiting and self._logged is not None

    def _deliver(self, beginning: Beginning) -> None:
        try:
            self._logged = self._logged or self._opened(beginning)
            while self._waiting:
                self._logged = self._with_points(self._waiting[0], self._logged)
                self._logged = self._with_status(self._waiting[0], self._logged)
                del self._waiting[0]
        except Exception as error:  # whatever a tracker's client raises: training must not stop
            self._warn(error)

    def _opened(self, beginning: Beginning) -> Logged:
        known = recorded(self.folder)
        if key := known.get(shown(self.uri)):
            return self.store.resume(key)
        key = self.store.begin(beginning)
        record(self.folder, known | {shown(self.uri): key})
        return Logged()

    def _with_points(self, batch: Batch, logged: Logged) -> Logged:
        if not logged.lacks(batch):
            return logged
        self.store.log(batch)
        return logged.with_points(batch)

    def _with_status(self, batch: Batch, logged: Logged) -> Logged:
        if batch.status is None or batch.status == logged.status:
            return logged
        self.store.end(batch)
        return replace(logged, status=batch.status)

    def _warn(self, error: Exception) -> None:
        if self._warned:
            return
        self._warned = True
        reason = shown(str(error).strip().partition("\n")[0]).rstrip(".")
        self.tell(
            f"{shown(self.uri)} takes no points ({type(error).__name__}: {reason}). Training does "
            "not stop for it: the journal keeps everything, and each round is a new try."
        )


def beginning(folder: Path, moment: float, started: RunStarted) -> Beginning:
    """Tell what a run is, from its first event and the study in its folder."""
    study = tomllib.loads((folder / "study.toml").read_text("utf-8"))
    made = {
        "fingerprint": started.study,
        "grandrounds": started.version,
        "torch": started.torch,
        "device": started.device,
        "precision": started.precision,
        "threads": str(started.threads),
    }
    tags = {"arm": started.arm, "seed": str(started.seed), "method": started.title}
    tags |= _comparison(folder)
    without = f"-without-{tags['left_out']}" if "left_out" in tags else ""
    title = f"{started.arm}/seed-{started.seed}{without}"
    return Beginning(started.name, title, made | flattened(study), tags, moment)


def _comparison(folder: Path) -> dict[str, str]:
    """Name the comparison of a run, if it has one: FOLDER[/without/SITE]/arms/ARM/seed-N."""
    above = folder.resolve().parents
    if len(above) > 2 and (above[2] / "arms.toml").exists():
        return {"comparison": above[2].name}
    if len(above) > 4 and (above[4] / "arms.toml").exists():
        return {"comparison": above[4].name, "left_out": above[2].name}
    return {}


def flattened(value: object, where: str = "") -> dict[str, str]:
    """Write a TOML table as one line for each option; tables in a list go by their name."""
    match value:
        case dict():
            table = cast(dict[str, object], value)
            found = [flattened(item, f"{where}.{key}") for key, item in table.items()]
            return {path: word for each in found for path, word in each.items()}
        case [dict(), *_]:  # pyright: ignore[reportUnknownVariableType]
            tables = cast(list[dict[str, object]], value)
            return flattened({str(table["name"]): table for table in tables}, where)
        case list():
            return {where.removeprefix("."): ", ".join(map(str, cast(list[object], value)))}
        case _:
            return {where.removeprefix("."): str(value)}


def recorded(folder: Path) -> dict[str, str]:
    """Read which run of which tracker a run folder is."""
    path = folder / RECORD
    return json.loads(path.read_text("utf-8")) if path.exists() else {}


def record(folder: Path, known: dict[str, str]) -> None:
    """Keep which run of which tracker a run folder is, whole or not at all."""
    partial = folder / f"{RECORD}.partial"
    partial.write_text(json.dumps(known, indent=2) + "\n", "utf-8")
    partial.replace(folder / RECORD)


def shown(uri: str) -> str:
    """Leave a user's name and password out of an address."""
    return re.sub(r"//[^/@\s]*@", "//", uri)
