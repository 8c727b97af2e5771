"""The folder of a run or comparison is read here: studies, events, test scores, pictures."""

import csv
import math
import tomllib
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from grandrounds.core.errors import BadFolder
from grandrounds.core.events import RunStarted
from grandrounds.core.extensions import is_address
from grandrounds.core.journal import Stamped, read_journal, without_superseded
from grandrounds.core.names import check_name
from grandrounds.core.quoting import original
from grandrounds.core.run_folder import SCORE_COLUMNS, ComparisonFolder, RunFolder, SiteFolder

Image = NDArray[np.float32]
_IMAGES = ("source", "target", "prediction")


@dataclass(frozen=True, eq=False)
class StoredPanel:
    """One task's picture at a site, of one patient: images (H, W) in [0, 1]."""

    site: str
    task: str
    patient: str
    source: Image
    target: Image
    prediction: Image


@dataclass(frozen=True)
class KeptPanel:
    """A saved picture of one task and patient, and its path."""

    site: str
    task: str
    patient: str
    path: Path
    number: int

    def load(self) -> StoredPanel:
        """Read the images. Raises `BadFolder`."""
        try:
            with np.load(self.path, allow_pickle=False) as arrays:
                images = [arrays[f"{self.number}/{name}"].astype(np.float32) for name in _IMAGES]
        except (KeyError, ValueError, zipfile.BadZipFile) as error:
            raise _not_panels(self.path, error) from None
        return StoredPanel(self.site, self.task, self.patient, *images)


def kept_panels(folder: SiteFolder) -> list[KeptPanel]:
    """Return the pictures that a site saved in a run folder. Raises `BadFolder`."""
    site, path = folder.path.name, folder.panels
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


@dataclass(frozen=True)
class PrivacyFacts:
    """What a study says of its differential privacy: whose it is, and how it is reached."""

    kind: str  # "client" or "record"
    clip: float
    noise: float
    delta: float

    @staticmethod
    def of(table: Mapping[str, Any]) -> "PrivacyFacts | None":
        """Read a study's table; None where it has no differential privacy."""
        if table.get("kind", "none") == "none":
            return None
        numbers = (float(table.get(key, default)) for key, default in _NUMBERS.items())
        return PrivacyFacts(str(table["kind"]), *numbers)


_NUMBERS = {"clip": 0.0, "noise": 0.0, "delta": 1e-5}


@dataclass(frozen=True)
class StudyFile:
    """The resolved study: its text, and the choices that a report uses.

    `sites` are those that train, `held_out` those that are tested only; of both, `simulated` are
    those without real patients. `privacy` is there where a study has differential privacy.
    """

    text: str
    method: str
    task: str
    sites: tuple[str, ...]
    variables: tuple[str, ...] = ()
    held_out: tuple[str, ...] = ()
    simulated: tuple[str, ...] = ()
    privacy: PrivacyFacts | None = None

    @property
    def own_task(self) -> bool:
        """Tell whether the task is none of the house's, so that its scores have any name."""
        return is_address(self.task)

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
class SiteChoice:
    """The arm whose model a site took, and its validation score there, by which it was chosen."""

    site: str
    arm: str
    validation: float | None


@dataclass(frozen=True)
class Derivation:
    """How scores come from models of other arms; `chosen` is empty where no site had a choice."""

    rule: str
    chosen: tuple[SiteChoice, ...] = ()


@dataclass(frozen=True)
class ArmEntry:
    """An arm's name and title in a comparison."""

    name: str
    title: str
    description: str = ""


@dataclass(frozen=True)
class RunRecord:
    """Everything that a report reads from one run's folder.

    `unseen` are scores at sites without which its model, or one trained for this purpose, was
    trained; `crossed` maps a model's site to the model's scores at every site. `derived` says where
    the scores are from if nothing was trained for them.
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
    derived: Derivation | None = None


@dataclass(frozen=True)
class ArmRecord:
    """The runs of an arm that have started, and the seeds that have not."""

    entry: ArmEntry
    runs: tuple[RunRecord, ...]
    waiting: tuple[int, ...] = ()


@dataclass(frozen=True)
class Runs:
    """The arms of a folder in order, and the `terms` of their comparison.

    Of a `search`, whose arms are not tested, these sentences say what was chosen, and by what.
    """

    arms: tuple[ArmRecord, ...]
    terms: tuple[str, ...] = ()
    search: tuple[str, ...] = ()

    @property
    def first(self) -> str:
        """Return the name of the arm that a report is about."""
        return self.arms[0].entry.name


@dataclass(frozen=True)
class Plan:
    """The content of `arms.toml`: the arms, their seeds, the terms, and what a search says."""

    entries: tuple[ArmEntry, ...]
    seeds: tuple[int, ...]
    terms: tuple[str, ...]
    search: tuple[str, ...] = ()


def read_runs(folder: Path) -> Runs:
    """Read a run folder, or each arm and seed of a comparison folder. Raises `BadFolder`."""
    if not folder.is_dir():
        raise BadFolder(f"{folder}: no such folder; give the folder that a run was written to")
    if ComparisonFolder(folder).exists:
        return _comparison(ComparisonFolder(folder))
    run = read_run(RunFolder(folder))
    return Runs((ArmRecord(entry_of(run), (run,)),))


def entry_of(run: RunRecord) -> ArmEntry:
    """Return the arm's name and title of a run that is not part of a comparison."""
    return ArmEntry(run.started.arm, run.started.title or run.started.arm)


def _comparison(folder: ComparisonFolder) -> Runs:
    plan = read_plan(folder)
    arms = tuple(_arm(folder, entry, plan.seeds) for entry in plan.entries)
    if not any(arm.runs for arm in arms):
        raise BadFolder(
            f"{folder.path / 'arms'}: none of the {len(plan.entries)} arms in arms.toml has started"
        )
    return Runs(arms, plan.terms, plan.search)


def _arm(folder: ComparisonFolder, entry: ArmEntry, seeds: Iterable[int]) -> ArmRecord:
    begun = [seed for seed in seeds if folder.run(entry.name, seed).journal.exists()]
    waiting = tuple(seed for seed in seeds if seed not in begun)
    runs = tuple(_with_left_out(folder, entry.name, seed) for seed in begun)
    return ArmRecord(entry, runs, waiting)


def _with_left_out(folder: ComparisonFolder, arm: str, seed: int) -> RunRecord:
    """Read an arm's run, with scores of its models at sites that they were trained without."""
    run = read_run(folder.run(arm, seed))
    found = [
        row
        for site in run.study.sites
        for row in _cases(folder.run(arm, seed, without=site).unseen)
        if row.site == site  # other sites of that table never train: the run has their scores
    ]
    return replace(run, unseen=(*run.unseen, *found))


def read_plan(folder: ComparisonFolder) -> Plan:
    """Read the arms, seeds and terms of a comparison. Raises `BadFolder`."""
    path = folder.arms
    try:
        table = tomllib.loads(path.read_text())
        entries = tuple(ArmEntry(**arm) for arm in table["arm"])
        seeds = tuple(int(seed) for seed in table["seeds"])
    except (tomllib.TOMLDecodeError, KeyError, TypeError, ValueError) as error:
        raise BadFolder(
            f"{path}: cannot be read ({error}); it must hold seeds = [...] and [[arm]] tables with "
            "a name, a title and perhaps a description"
        ) from None
    for entry in entries:
        check_name(entry.name, f"{path}: arm", BadFolder)
    if not entries or not seeds:
        raise BadFolder(f"{path}: a comparison has at least one [[arm]] table and one seed")
    return Plan(entries, seeds, tuple(table.get("terms", ())), tuple(table.get("search", ())))


def read_run(folder: RunFolder) -> RunRecord:
    """Read one run that has started. Raises `BadFolder`."""
    study = read_study_file(folder)
    events = tuple(without_superseded(read_journal(folder.journal)))
    started = [event for _, event in events if isinstance(event, RunStarted)]
    if not started:
        raise BadFolder(f"{folder.journal}: no run has started here yet; start it first")
    return RunRecord(
        study=study,
        started=started[-1],
        events=events,
        cases=tuple(_cases(folder.scores)),
        panels=tuple(panel for site in study.sites for panel in kept_panels(folder.site(site))),
        unseen=tuple(_cases(folder.unseen)),
        crossed=_crossed(folder.matrix),
        derived=_derivation(folder.derived),
    )


def _derivation(path: Path) -> Derivation | None:
    """Read where a derived arm's scores are from; None for an arm that was trained."""
    if not path.exists():
        return None
    try:
        table = tomllib.loads(path.read_text())
        chosen = tuple(
            SiteChoice(str(site["name"]), str(site["title"]), site.get("validation"))
            for site in table["site"]
        )
        return Derivation(str(table["rule"]), chosen)
    except (tomllib.TOMLDecodeError, KeyError, TypeError) as error:
        raise BadFolder(
            f"{path}: cannot be read ({error}); remove it and give the comparison again"
        ) from None


def read_study_file(folder: RunFolder) -> StudyFile:
    """Read the study of a run. Raises `BadFolder`."""
    path = folder.study
    try:
        text = path.read_text()
        table = tomllib.loads(text)
        held = tuple(str(name) for name in table.get("holdout_sites", ()))
        data = {str(site["name"]): site.get("data") for site in table["site"]}
        for name in data:
            check_name(name, f"{path}: site", BadFolder)
        names = tuple(name for name in data if name not in held)
        simulated = tuple(name for name, kind in data.items() if kind == "simulated")
        method, task = str(table["method"]["kind"]), str(table["task"]["kind"])
        variables = tuple(table.get("elements", {}).get("variables", ()))
        privacy = PrivacyFacts.of(table.get("privacy", {}))
        return StudyFile(text, method, task, names, variables, held, simulated, privacy)
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
    return [case for _, case in _table(path, SCORE_COLUMNS)]


def _crossed(path: Path) -> dict[str, tuple[CaseRow, ...]]:
    """Read the scores of each site's model."""
    found: dict[str, list[CaseRow]] = {}
    for row, case in _table(path, ("model", *SCORE_COLUMNS)):
        found.setdefault(original(row["model"]), []).append(case)
    return {model: tuple(cases) for model, cases in found.items()}


def _table(path: Path, columns: Sequence[str]) -> list[tuple[Mapping[str, str], CaseRow]]:
    if not path.exists():  # the run is not tested yet, or writes no such table
        return []
    with path.open(encoding="utf-8", newline="") as file:
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
    words = (original(row[name]) for name in ("site", "patient", "case", "task", "metric"))
    return CaseRow(*words, value=value, round=round)
