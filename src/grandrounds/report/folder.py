"""Reading a run folder, or a comparison of several, as it lies on disk."""

import csv
import math
import tomllib
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from grandrounds.errors import BadFolder
from grandrounds.events import RunStarted
from grandrounds.journal import Stamped, read_journal, surviving

Image = NDArray[np.float32]
COLUMNS = ("arm", "seed", "site", "patient", "case", "task", "metric", "value", "round")


@dataclass(frozen=True)
class StudyFile:
    """The resolved study: its text, and the few choices that a report speaks of."""

    text: str
    method: str
    task: str
    sites: tuple[str, ...]
    variables: tuple[str, ...] = ()

    def is_variable(self, task: str) -> bool:
        """Tell whether a task's target is a variable of the patient, not drawn in the image."""
        return task.partition("->")[2] in self.variables


@dataclass(frozen=True)
class CaseRow:
    """One metric of one test case."""

    seed: int
    site: str
    patient: str
    case: str
    task: str
    metric: str
    value: float
    round: int


@dataclass(frozen=True, eq=False)
class Panel:
    """One task's picture at a site, of one patient: images (H, W) in [0, 1]."""

    site: str
    task: str
    patient: str
    source: Image
    target: Image
    prediction: Image


@dataclass(frozen=True)
class ArmEntry:
    """How a comparison calls one of its runs."""

    name: str
    title: str
    description: str = ""


@dataclass(frozen=True)
class RunFolder:
    """Everything that a report reads of one run."""

    entry: ArmEntry
    study: StudyFile
    events: tuple[Stamped, ...]
    cases: tuple[CaseRow, ...]
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Runs:
    """The runs of a folder in order, and the arms of a comparison that have not started."""

    runs: tuple[RunFolder, ...]
    waiting: tuple[ArmEntry, ...] = ()
    first: str = ""


def read_runs(folder: Path) -> Runs:
    """Read a run folder, or each arm of a comparison folder. Raises `BadFolder`."""
    if not folder.is_dir():
        raise BadFolder(f"{folder}: no such folder; give the folder that a run was written to")
    if (folder / "arms.toml").exists():
        return _comparison(folder)
    run = _read_run(folder, None)
    return Runs((run,), first=run.entry.name)


def _comparison(folder: Path) -> Runs:
    entries = _arm_entries(folder / "arms.toml")
    begun = [
        entry for entry in entries if (folder / "arms" / entry.name / "journal.jsonl").exists()
    ]
    if not begun:
        raise BadFolder(
            f"{folder / 'arms'}: none of the {len(entries)} arms in arms.toml has started"
        )
    runs = tuple(_read_run(folder / "arms" / entry.name, entry) for entry in begun)
    waiting = tuple(entry for entry in entries if entry not in begun)
    return Runs(runs, waiting, first=entries[0].name)


def _arm_entries(path: Path) -> list[ArmEntry]:
    try:
        entries = [ArmEntry(**table) for table in tomllib.loads(path.read_text())["arm"]]
    except (tomllib.TOMLDecodeError, KeyError, TypeError) as error:
        raise BadFolder(
            f"{path}: cannot be read ({error}); it must hold [[arm]] tables with a name, a title "
            "and perhaps a description"
        ) from None
    if not entries:
        raise BadFolder(f"{path}: no [[arm]] table; a comparison has at least one")
    return entries


def _read_run(folder: Path, entry: ArmEntry | None) -> RunFolder:
    study = _study(folder / "study.toml")
    events = tuple(surviving(read_journal(folder / "journal.jsonl")))
    started = [event for _, event in events if isinstance(event, RunStarted)]
    if not started:
        raise BadFolder(f"{folder / 'journal.jsonl'}: no run has started here yet; start it first")
    arm, title = started[-1].arm, started[-1].title
    return RunFolder(
        entry=entry or ArmEntry(arm, title or arm),
        study=study,
        events=events,
        cases=tuple(_cases(folder / "scores.csv")),
        panels=tuple(panel for site in study.sites for panel in _panels(folder, site)),
    )


def _study(path: Path) -> StudyFile:
    try:
        text = path.read_text()
        table = tomllib.loads(text)
        names = tuple(str(site["name"]) for site in table["site"])
        method, task = str(table["method"]["kind"]), str(table["task"]["kind"])
        variables = tuple(table.get("elements", {}).get("variables", ()))
        return StudyFile(text, method, task, names, variables)
    except FileNotFoundError:
        raise BadFolder(
            f"{path.parent}: no study.toml and no arms.toml; this is neither a run nor a comparison"
        ) from None
    except tomllib.TOMLDecodeError as error:
        raise BadFolder(f"{path}: not valid TOML ({error}); restore it from a copy") from None
    except (KeyError, TypeError) as error:
        raise BadFolder(
            f"{path}: {error} is missing or wrong; a resolved study has [task] kind, [method] kind "
            "and [[site]] tables with a name"
        ) from None


def _cases(path: Path) -> list[CaseRow]:
    if not path.exists():  # the run has not come to its test yet
        return []
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
        if missing:
            raise BadFolder(f"{path}: no column {', '.join(missing)}; expected {','.join(COLUMNS)}")
        return [_case(row, f"{path}: line {reader.line_num}") for row in reader]


def _case(row: Mapping[str, str], place: str) -> CaseRow:
    try:
        seed, value, round = int(row["seed"]), float(row["value"]), int(row["round"])
    except (TypeError, ValueError):
        raise BadFolder(f"{place}: seed, value and round must be numbers; found {row}") from None
    if not math.isfinite(value):
        raise BadFolder(f"{place}: {row['metric']} is {value}; a score must be finite")
    words = (row[name] for name in ("site", "patient", "case", "task", "metric"))
    return CaseRow(seed, *words, value=value, round=round)


def _panels(folder: Path, site: str) -> list[Panel]:
    path = folder / "sites" / site / "panels.npz"
    if not path.exists():  # a site with real patients shows images only where it was allowed
        return []
    try:
        with np.load(path, allow_pickle=False) as arrays:
            numbers = sorted(
                int(name.partition("/")[0]) for name in arrays.files if name.endswith("/prediction")
            )
            return [_panel(site, arrays, number) for number in numbers]
    except (KeyError, ValueError, zipfile.BadZipFile) as error:
        raise BadFolder(
            f"{path}: not a file of panels ({error}); remove it or test again"
        ) from None


def _panel(site: str, arrays: Mapping[str, NDArray[np.generic]], number: int) -> Panel:
    source, target, prediction = (
        arrays[f"{number}/{name}"].astype(np.float32) for name in ("source", "target", "prediction")
    )
    task, patient = (str(arrays[f"{number}/{name}"]) for name in ("label", "patient"))
    return Panel(site, task, patient, source, target, prediction)
