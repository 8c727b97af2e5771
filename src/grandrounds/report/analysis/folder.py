"""Finding the run that a card is about, and reading its study, its events and its test scores."""

import csv
import math
import tomllib
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from grandrounds.core.errors import BadFolder, BadInput
from grandrounds.core.events import Event, RunStarted
from grandrounds.core.journal import Stamped, read_journal, surviving
from grandrounds.core.run_folder import ComparisonFolder, RunFolder

Image = NDArray[np.float32]
IMAGES = ("source", "target", "prediction")


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
class KeptPanel:
    """Where a picture of one task and patient lies."""

    site: str
    task: str
    patient: str
    path: Path
    number: int

    def load(self) -> Panel:
        """Read the images. Raises `BadFolder`."""
        try:
            with np.load(self.path, allow_pickle=False) as arrays:
                images = [arrays[f"{self.number}/{name}"].astype(np.float32) for name in IMAGES]
        except (KeyError, ValueError, zipfile.BadZipFile) as error:
            raise _not_panels(self.path, error) from None
        return Panel(self.site, self.task, self.patient, *images)


def kept_panels(folder: Path, site: str) -> list[KeptPanel]:
    """List the pictures that a site kept in a run folder. Raises `BadFolder`."""
    path = RunFolder(folder).site(site).panels
    if not path.exists():  # a site with real patients shows images only where it was allowed
        return []
    try:
        with np.load(path, allow_pickle=False) as arrays:
            numbers = sorted(
                int(name.partition("/")[0]) for name in arrays.files if name.endswith("/prediction")
            )
            return [_kept(site, arrays, path=path, number=number) for number in numbers]
    except (KeyError, ValueError, zipfile.BadZipFile) as error:
        raise _not_panels(path, error) from None


def _kept(
    site: str, arrays: Mapping[str, NDArray[np.generic]], *, path: Path, number: int
) -> KeptPanel:
    task, patient = (str(arrays[f"{number}/{name}"]) for name in ("label", "patient"))
    return KeptPanel(site, task, patient, path, number)


def _not_panels(path: Path, error: Exception) -> BadFolder:
    return BadFolder(f"{path}: not a file of panels ({error}); remove it or test again")


Table: TypeAlias = Mapping[str, Any]
Row: TypeAlias = Mapping[str, str]


@dataclass(frozen=True)
class RunFiles:
    """What lies in the folder of a finished run; `began` and `ended` are in unix seconds."""

    study: Table
    events: tuple[Event, ...]
    began: float
    ended: float
    scores: tuple[Row, ...]
    unseen: tuple[Row, ...]
    pictured: tuple[str, ...]  # sites that allow pictures of test cases


@dataclass(frozen=True)
class Chosen:
    """The run that a card is about; `alone` are the runs of a comparison that trained alone."""

    run: RunFiles
    title: str = ""
    description: str = ""
    seeds: tuple[int, ...] = ()
    alone: tuple[RunFiles, ...] = ()


def read_chosen(folder: Path, *, arm: str | None, seed: int | None) -> Chosen:
    """Read the run of a folder, or one of a comparison.

    Raises `BadInput` where an arm or seed is missing or unknown, `BadFolder` for no finished run.
    """
    if ComparisonFolder(folder).exists:
        return _of_comparison(folder, arm, seed)
    if arm is not None or seed is not None:
        raise BadInput(f"{folder}: is a single run; --arm and --seed choose from a comparison")
    return Chosen(read_run(folder))


def _of_comparison(folder: Path, arm: str | None, seed: int | None) -> Chosen:
    comparison = ComparisonFolder(folder)
    plan = _toml(comparison.arms)
    entries = {str(entry["name"]): entry for entry in plan["arm"]}
    if arm not in entries:
        found = f"has no arm '{arm}'" if arm else "is a comparison, and a card is about one arm"
        raise BadInput(f"{folder}: {found}; give --arm, one of {', '.join(entries)}")
    seeds = tuple(int(known) for known in plan["seeds"])
    picked = seeds[0] if seed is None else seed
    if picked not in seeds:
        raise BadInput(f"{folder}: has no seed {picked}; its seeds: {', '.join(map(str, seeds))}")
    paths = {name: comparison.run(name, picked).path for name in entries}
    others = [read_run(path) for name, path in paths.items() if name != arm and _is_alone(path)]
    entry = entries[arm]
    description = str(entry.get("description", ""))
    return Chosen(read_run(paths[arm]), entry["title"], description, seeds, tuple(others))


def _is_alone(folder: Path) -> bool:
    files = RunFolder(folder)
    return files.scores.exists() and _toml(files.study)["method"]["kind"] == "local"


def read_run(folder: Path) -> RunFiles:
    """Read the folder of a finished run. Raises `BadFolder`."""
    files = RunFolder(folder)
    if not files.scores.exists():
        raise BadFolder(
            f"{folder}: holds no finished run (no scores.csv), so there is nothing to put on a "
            "card; give a run's folder, or go on with the run (--resume) first"
        )
    study = _toml(files.study)
    stamped = surviving(read_journal(files.journal))
    names = [str(site["name"]) for site in study["site"]]
    return RunFiles(
        study=study,
        events=tuple(event for _, event in stamped),
        began=stamped[0][0],
        ended=stamped[-1][0],
        scores=_rows(files.scores),
        unseen=_rows(files.unseen) if files.unseen.exists() else (),
        pictured=tuple(n for n in names if files.site(n).panels.exists()),
    )


def _toml(path: Path) -> Table:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise BadFolder(f"{path}: cannot be read ({error}); restore it from a copy") from None


def _rows(path: Path) -> tuple[Row, ...]:
    with path.open(newline="") as file:
        return tuple(csv.DictReader(file))


COLUMNS = ("arm", "seed", "site", "patient", "case", "task", "metric", "value", "round")


@dataclass(frozen=True)
class StudyFile:
    """The resolved study: its text, and the few choices that a report speaks of.

    `sites` are those that train, `held_out` those that are tested only; of both, `simulated` are
    those without real patients.
    """

    text: str
    method: str
    task: str
    sites: tuple[str, ...]
    variables: tuple[str, ...] = ()
    held_out: tuple[str, ...] = ()
    simulated: tuple[str, ...] = ()

    def is_variable(self, task: str) -> bool:
        """Tell whether a task's target is a variable of the patient, not drawn in the image."""
        return task.partition("->")[2] in self.variables


@dataclass(frozen=True)
class CaseRow:
    """One metric of one test case."""

    site: str
    patient: str
    case: str
    task: str
    metric: str
    value: float
    round: int


@dataclass(frozen=True)
class ArmEntry:
    """How a comparison calls one of its arms."""

    name: str
    title: str
    description: str = ""


@dataclass(frozen=True)
class RunRecord:
    """Everything that a report reads of one run.

    `unseen` are scores at sites that its model, or one trained for this purpose, was trained
    without; `crossed` maps whose model it is to its scores at every site.
    """

    study: StudyFile
    started: RunStarted
    events: tuple[Stamped, ...]
    cases: tuple[CaseRow, ...]
    panels: tuple[KeptPanel, ...]
    unseen: tuple[CaseRow, ...] = ()
    crossed: Mapping[str, tuple[CaseRow, ...]] = field(
        default_factory=dict[str, tuple[CaseRow, ...]]
    )


@dataclass(frozen=True)
class ArmRecord:
    """The runs of an arm that have started, and the seeds that have not."""

    entry: ArmEntry
    runs: tuple[RunRecord, ...]
    waiting: tuple[int, ...] = ()


@dataclass(frozen=True)
class Runs:
    """The arms of a folder in order; `terms` says on what terms they are compared."""

    arms: tuple[ArmRecord, ...]
    terms: tuple[str, ...] = ()

    @property
    def first(self) -> str:
        """Name the arm that a report is about."""
        return self.arms[0].entry.name


@dataclass(frozen=True)
class Plan:
    """What `arms.toml` says: the arms, the seeds of each, and the terms."""

    entries: tuple[ArmEntry, ...]
    seeds: tuple[int, ...]
    terms: tuple[str, ...]


def read_runs(folder: Path) -> Runs:
    """Read a run folder, or each arm and seed of a comparison folder. Raises `BadFolder`."""
    if not folder.is_dir():
        raise BadFolder(f"{folder}: no such folder; give the folder that a run was written to")
    if ComparisonFolder(folder).exists:
        return _comparison(ComparisonFolder(folder))
    run = _read_run(RunFolder(folder))
    entry = ArmEntry(run.started.arm, run.started.title or run.started.arm)
    return Runs((ArmRecord(entry, (run,)),))


def _comparison(folder: ComparisonFolder) -> Runs:
    plan = _plan(folder.arms)
    arms = tuple(_arm(folder, entry, plan.seeds) for entry in plan.entries)
    if not any(arm.runs for arm in arms):
        raise BadFolder(
            f"{folder.path / 'arms'}: none of the {len(plan.entries)} arms in arms.toml has started"
        )
    return Runs(arms, plan.terms)


def _arm(folder: ComparisonFolder, entry: ArmEntry, seeds: Iterable[int]) -> ArmRecord:
    begun = [seed for seed in seeds if folder.run(entry.name, seed).journal.exists()]
    waiting = tuple(seed for seed in seeds if seed not in begun)
    runs = tuple(_with_left_out(folder, entry.name, seed) for seed in begun)
    return ArmRecord(entry, runs, waiting)


def _with_left_out(folder: ComparisonFolder, arm: str, seed: int) -> RunRecord:
    """Add what an arm's models score with a seed at the sites that they were trained without."""
    run = _read_run(folder.run(arm, seed))
    found = [
        row
        for site in run.study.sites
        for row in _cases(folder.run(arm, seed, without=site).unseen)
        if row.site == site  # other sites of that table never train: the run has them itself
    ]
    return replace(run, unseen=(*run.unseen, *found))


def _plan(path: Path) -> Plan:
    try:
        table = tomllib.loads(path.read_text())
        entries = tuple(ArmEntry(**arm) for arm in table["arm"])
        seeds = tuple(int(seed) for seed in table["seeds"])
    except (tomllib.TOMLDecodeError, KeyError, TypeError, ValueError) as error:
        raise BadFolder(
            f"{path}: cannot be read ({error}); it must hold seeds = [...] and [[arm]] tables with "
            "a name, a title and perhaps a description"
        ) from None
    if not entries or not seeds:
        raise BadFolder(f"{path}: a comparison has at least one [[arm]] table and one seed")
    return Plan(entries, seeds, tuple(table.get("terms", ())))


def _read_run(folder: RunFolder) -> RunRecord:
    study = _study(folder.study)
    events = tuple(surviving(read_journal(folder.journal)))
    started = [event for _, event in events if isinstance(event, RunStarted)]
    if not started:
        raise BadFolder(f"{folder.journal}: no run has started here yet; start it first")
    return RunRecord(
        study=study,
        started=started[-1],
        events=events,
        cases=tuple(_cases(folder.scores)),
        panels=tuple(panel for site in study.sites for panel in kept_panels(folder.path, site)),
        unseen=tuple(_cases(folder.unseen)),
        crossed=_crossed(folder.matrix),
    )


def _study(path: Path) -> StudyFile:
    try:
        text = path.read_text()
        table = tomllib.loads(text)
        held = tuple(str(name) for name in table.get("holdout_sites", ()))
        data = {str(site["name"]): site.get("data") for site in table["site"]}
        names = tuple(name for name in data if name not in held)
        simulated = tuple(name for name, kind in data.items() if kind == "simulated")
        method, task = str(table["method"]["kind"]), str(table["task"]["kind"])
        variables = tuple(table.get("elements", {}).get("variables", ()))
        return StudyFile(text, method, task, names, variables, held, simulated)
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
    return [case for _, case in _table(path, COLUMNS)]


def _crossed(path: Path) -> dict[str, tuple[CaseRow, ...]]:
    """Read whose model scored what."""
    found: dict[str, list[CaseRow]] = {}
    for row, case in _table(path, ("model", *COLUMNS)):
        found.setdefault(row["model"], []).append(case)
    return {model: tuple(cases) for model, cases in found.items()}


def _table(path: Path, columns: Sequence[str]) -> list[tuple[Mapping[str, str], CaseRow]]:
    if not path.exists():  # the run has not come to its test yet, or makes no such table
        return []
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        missing = [name for name in columns if name not in (reader.fieldnames or ())]
        if missing:
            raise BadFolder(f"{path}: no column {', '.join(missing)}; expected {','.join(columns)}")
        return [(row, _case(row, f"{path}: line {reader.line_num}")) for row in reader]


def _case(row: Mapping[str, str], place: str) -> CaseRow:
    try:
        value, round = float(row["value"]), int(row["round"])
    except (TypeError, ValueError):
        raise BadFolder(f"{place}: value and round must be numbers; found {row}") from None
    if not math.isfinite(value):
        raise BadFolder(f"{place}: {row['metric']} is {value}; a score must be finite")
    words = (row[name] for name in ("site", "patient", "case", "task", "metric"))
    return CaseRow(*words, value=value, round=round)
