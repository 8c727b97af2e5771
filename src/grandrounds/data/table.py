"""A table holds patients' variables, in BIDS `participants.tsv` or as a site's only data."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import isfinite, nan
from pathlib import Path
from typing import TypeAlias

import numpy as np

from grandrounds.core.errors import BadSite
from grandrounds.core.sentence import Name, Reason, Sentence, phrase
from grandrounds.data.cohort import SPLITS, Cohort, Session, SplitName, split_patients
from grandrounds.data.elements import Elements

_Values: TypeAlias = Mapping[str, float]
PARTICIPANTS = "participants.tsv"
PATIENT = "participant_id"
MISSING = ("n/a", "")
DELIMITERS = {".tsv": "\t", ".csv": ","}


def read_participants(path: Path, variables: Sequence[str]) -> dict[str, _Values]:
    """Read each patient's variables from a .tsv or .csv file; n/a and empty cells become nan.

    Other columns are not read. Raises `BadSite` where a column, a name or a number is missing, and
    where a patient occurs twice.
    """
    header, *rows = _read_rows(path)
    if not rows:
        raise BadSite(
            f"{path}: the table has no row below its header; it needs one a patient.",
            safe=phrase("the table of patients has no row below its header"),
        )
    for name in (PATIENT, *variables):
        if header.count(name) != 1:
            names = ", ".join(header)
            raise BadSite(
                f"{path}: {header.count(name)} columns are named '{name}'; there must be one "
                f"(n/a where a value is missing). Found: {names}.",
                safe=_miscounted(name, header.count(name)),
            )
    columns = {name: header.index(name) for name in variables}
    table: dict[str, _Values] = {}
    for number, row in enumerate(rows, start=2):
        patient = _patient(path, number, row, header, known=table)
        cells = {name: row[column] for name, column in columns.items()}
        table[patient] = {n: _number(path, number, n, cell) for n, cell in cells.items()}
    return table


def _miscounted(name: str, number: int) -> Sentence:
    if name == PATIENT:
        return phrase("the table of patients has {number} columns of IDs, not 1", number=number)
    return phrase(
        "the table of patients has {number} columns named {name}, not 1",
        number=number,
        name=Name(name),
    )


def with_values(cohort: Cohort, table: Mapping[str, _Values], variables: Sequence[str]) -> Cohort:
    """Return the cohort with its patients' variables, nan for a patient without a row."""
    unknown = dict.fromkeys(variables, nan)
    splits = {
        split: tuple(replace(s, values=table.get(s.patient, unknown)) for s in sessions)
        for split, sessions in cohort.splits.items()
    }
    return replace(cohort, splits=splits)


def is_table(data: Path, elements: Elements) -> bool:
    """Tell whether a site's data is a table alone: such a file, or its folder without contrasts."""
    alone = not elements.contrasts and (data / PARTICIPANTS).is_file()
    return alone or data.suffix in DELIMITERS


def table_cohort(site: str, data: Path, elements: Elements) -> Cohort:
    """Make a cohort from a table: a session without images for each patient, split by patient.

    `data` is the table, or a folder that holds it as participants.tsv. Raises `BadSite`.
    """
    path = data / PARTICIPANTS if data.is_dir() else data
    table = read_participants(path, elements.variables)
    split_of = split_patients(table, elements.split, site=site)
    splits: dict[SplitName, list[Session]] = {split: [] for split in SPLITS}
    for patient, values in table.items():
        splits[split_of[patient]].append(Session(patient, "", (), _no_image(), values=values))
    return Cohort(site, {split: tuple(sessions) for split, sessions in splits.items()})


def _no_image() -> np.ndarray:
    """Return one slice of no contrast: a row of a table counts as one case."""
    return np.zeros((1, 0, 1, 1), np.float32)


def _read_rows(path: Path) -> list[list[str]]:
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise BadSite(
            f"{path}: cannot be read as a table ({error}).",
            safe=phrase("the table of patients cannot be read ({why})", why=Reason.of(error))
            if isinstance(error, OSError)
            else phrase("the table of patients is not in UTF-8"),
        ) from None
    rows = list(csv.reader(text.splitlines(), delimiter=DELIMITERS[path.suffix]))
    filled = [[cell.strip() for cell in row] for row in rows if row]
    if not filled:
        raise BadSite(
            f"{path}: the table is empty; its first row must name the columns.",
            safe=phrase("the table of patients is empty"),
        )
    return filled


def _patient(
    path: Path,
    number: int,
    row: Sequence[str],
    header: Sequence[str],
    *,
    known: Mapping[str, _Values],
) -> str:
    if len(row) != len(header):
        raise BadSite(
            f"{path}: row {number} has {len(row)} cells, the header has {len(header)}; "
            "they must agree.",
            safe=phrase("a row of the table of patients has not as many cells as its header"),
        )
    patient = row[header.index(PATIENT)]
    if patient in MISSING:
        raise BadSite(
            f"{path}: row {number} has no {PATIENT}; each row must name its patient.",
            safe=phrase("a row of the table of patients names none"),
        )
    if patient in known:
        raise BadSite(
            f"{path}: row {number} names a patient of an earlier row; each must have one row.",
            safe=phrase("two rows of the table of patients name the same one"),
        )
    return patient


def _number(path: Path, row: int, name: str, cell: str) -> float:
    if cell in MISSING:
        return nan
    try:
        value = float(cell)
    except ValueError:
        value = nan
    if not isfinite(value):
        raise BadSite(
            f"{path}: row {row} has {name} = '{cell}'; it must be a number, or n/a where missing.",
            safe=phrase("a cell of {name} in the table of patients is no number", name=Name(name)),
        )
    return value
