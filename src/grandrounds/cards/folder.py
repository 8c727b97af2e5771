"""Finding the run that a card is about, and reading its study, its events and its test scores."""

import csv
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from grandrounds.errors import BadFolder, BadInput
from grandrounds.events import Event
from grandrounds.journal import read_journal, surviving

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
    if (folder / "arms.toml").exists():
        return _of_comparison(folder, arm, seed)
    if arm is not None or seed is not None:
        raise BadInput(f"{folder}: is a single run; --arm and --seed choose from a comparison")
    return Chosen(read_run(folder))


def _of_comparison(folder: Path, arm: str | None, seed: int | None) -> Chosen:
    plan = _table(folder / "arms.toml")
    entries = {str(entry["name"]): entry for entry in plan["arm"]}
    if arm not in entries:
        found = f"has no arm '{arm}'" if arm else "is a comparison, and a card is about one arm"
        raise BadInput(f"{folder}: {found}; give --arm, one of {', '.join(entries)}")
    seeds = tuple(int(known) for known in plan["seeds"])
    picked = seeds[0] if seed is None else seed
    if picked not in seeds:
        raise BadInput(f"{folder}: has no seed {picked}; its seeds: {', '.join(map(str, seeds))}")
    paths = {name: folder / "arms" / name / f"seed-{picked}" for name in entries}
    others = [read_run(path) for name, path in paths.items() if name != arm and _is_alone(path)]
    entry = entries[arm]
    description = str(entry.get("description", ""))
    return Chosen(read_run(paths[arm]), entry["title"], description, seeds, tuple(others))


def _is_alone(folder: Path) -> bool:
    done = (folder / "scores.csv").exists()
    return done and _table(folder / "study.toml")["method"]["kind"] == "local"


def read_run(folder: Path) -> RunFiles:
    """Read the folder of a finished run. Raises `BadFolder`."""
    if not (folder / "scores.csv").exists():
        raise BadFolder(
            f"{folder}: holds no finished run (no scores.csv), so there is nothing to put on a "
            "card; give a run's folder, or go on with the run (--resume) first"
        )
    study = _table(folder / "study.toml")
    stamped = surviving(read_journal(folder / "journal.jsonl"))
    unseen = folder / "unseen.csv"
    names = [str(site["name"]) for site in study["site"]]
    return RunFiles(
        study=study,
        events=tuple(event for _, event in stamped),
        began=stamped[0][0],
        ended=stamped[-1][0],
        scores=_rows(folder / "scores.csv"),
        unseen=_rows(unseen) if unseen.exists() else (),
        pictured=tuple(n for n in names if (folder / "sites" / n / "panels.npz").exists()),
    )


def _table(path: Path) -> Table:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise BadFolder(f"{path}: cannot be read ({error}); restore it from a copy") from None


def _rows(path: Path) -> tuple[Row, ...]:
    with path.open(newline="") as file:
        return tuple(csv.DictReader(file))
