"""Reading a run folder, or a comparison of several arms and seeds, as it lies on disk."""

import csv
import math
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from grandrounds.errors import BadFolder
from grandrounds.events import RunStarted
from grandrounds.journal import Stamped, read_journal, surviving
from grandrounds.report.panels import KeptPanel, kept_panels

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
class RunFolder:
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
class ArmFolder:
    """The runs of an arm that have started, and the seeds that have not."""

    entry: ArmEntry
    runs: tuple[RunFolder, ...]
    waiting: tuple[int, ...] = ()


@dataclass(frozen=True)
class Runs:
    """The arms of a folder in order; `terms` says on what terms they are compared."""

    arms: tuple[ArmFolder, ...]
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
    if (folder / "arms.toml").exists():
        return _comparison(folder)
    run = _read_run(folder)
    entry = ArmEntry(run.started.arm, run.started.title or run.started.arm)
    return Runs((ArmFolder(entry, (run,)),))


def _comparison(folder: Path) -> Runs:
    plan = _plan(folder / "arms.toml")
    arms = tuple(_arm(folder / "arms" / entry.name, entry, plan.seeds) for entry in plan.entries)
    if not any(arm.runs for arm in arms):
        raise BadFolder(
            f"{folder / 'arms'}: none of the {len(plan.entries)} arms in arms.toml has started"
        )
    return Runs(arms, plan.terms)


def _arm(folder: Path, entry: ArmEntry, seeds: Iterable[int]) -> ArmFolder:
    folders = {seed: folder / f"seed-{seed}" for seed in seeds}
    begun = [path for path in folders.values() if (path / "journal.jsonl").exists()]
    waiting = tuple(seed for seed, path in folders.items() if path not in begun)
    return ArmFolder(entry, tuple(_with_left_out(path) for path in begun), waiting)


def _with_left_out(folder: Path) -> RunFolder:
    """Add what the arm's models score with this seed at the sites that they were trained without.

    These are DIR/without/SITE/arms/ARM/seed-S of the comparison DIR.
    """
    run, comparison = _read_run(folder), folder.parents[2]
    found = [
        row
        for site in run.study.sites
        for row in _cases(
            comparison / "without" / site / folder.relative_to(comparison) / "unseen.csv"
        )
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


def _read_run(folder: Path) -> RunFolder:
    study = _study(folder / "study.toml")
    events = tuple(surviving(read_journal(folder / "journal.jsonl")))
    started = [event for _, event in events if isinstance(event, RunStarted)]
    if not started:
        raise BadFolder(f"{folder / 'journal.jsonl'}: no run has started here yet; start it first")
    return RunFolder(
        study=study,
        started=started[-1],
        events=events,
        cases=tuple(_cases(folder / "scores.csv")),
        panels=tuple(panel for site in study.sites for panel in kept_panels(folder, site)),
        unseen=tuple(_cases(folder / "unseen.csv")),
        crossed=_crossed(folder / "matrix.csv"),
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
