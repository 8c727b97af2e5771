"""A table holds patients' variables, in BIDS `participants.tsv` or as a site's only data."""

import csv
import re
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite, nan
from pathlib import Path
from typing import TypeAlias

import numpy as np

from grandrounds.core.errors import BadSite
from grandrounds.core.sentence import Name, Reason, Sentence, phrase
from grandrounds.data.cohort import SPLITS, Cohort, Session, SplitName, split_patients
from grandrounds.data.elements import Elements
from grandrounds.data.session_files import NoSession, check_cases, listed

_Values: TypeAlias = Mapping[str, float]
PARTICIPANTS = "participants.tsv"
PATIENT = "participant_id"
MISSING = ("n/a", "")
DELIMITERS = {".tsv": "\t", ".csv": ","}
_CALLED = {"\t": "tabs", ",": "commas", ";": "semicolons", "|": "bars"}
_LINE_END = re.compile(r"\r\n|\r|\n")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_UTF16 = (BOM_UTF16_LE, BOM_UTF16_BE)


@dataclass(frozen=True)
class Unmatched:
    """The patients without a row in the table, and the IDs of rows without a volume."""

    without_row: tuple[str, ...]
    without_files: tuple[str, ...]


def read_participants(path: Path, variables: Sequence[str]) -> dict[str, _Values]:
    """Read each patient's variables from a .tsv or .csv file; n/a and empty cells become nan.

    Other columns are not read. Raises `BadSite` where a column, a name or a number is missing, and
    where a patient occurs twice.
    """
    (_, header), *rows = _read_rows(path)
    _check_delimiter(path, header)
    if not rows:
        raise NoSession(
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
    for number, row in rows:
        patient = _patient(path, number, row, header, known=table)
        cells = {name: row[column] for name, column in columns.items()}
        table[patient] = {n: _number(path, number, n, cell) for n, cell in cells.items()}
    check_cases(str(path), list(table))
    return table


def _miscounted(name: str, number: int) -> Sentence:
    if name == PATIENT:
        return phrase("the table of patients has {number} columns of IDs, not 1", number=number)
    return phrase(
        "the table of patients has {number} columns named {name}, not 1",
        number=number,
        name=Name(name),
    )


def numeric_columns(path: Path) -> dict[str, _Values]:
    """Return each column whose cells are numbers or missing, and not all missing, by patient.

    Raises `BadSite` as `read_participants` does.
    """
    (_, header), *rows = _read_rows(path)
    read_participants(path, ())
    cells = {
        name: [row[column] for _, row in rows if column < len(row)]
        for column, name in enumerate(header)
        if name != PATIENT and header.count(name) == 1
    }
    return {
        name: {patient: of[name] for patient, of in read_participants(path, (name,)).items()}
        for name, found in cells.items()
        if any(cell not in MISSING for cell in found)
        and all(cell in MISSING or _NUMBER.fullmatch(cell) for cell in found)
    }


def with_values(cohort: Cohort, table: Mapping[str, _Values], variables: Sequence[str]) -> Cohort:
    """Return the cohort with its patients' variables, nan for a patient without a row."""
    unknown = dict.fromkeys(variables, nan)
    splits = {
        split: tuple(replace(s, values=table.get(s.patient, unknown)) for s in sessions)
        for split, sessions in cohort.splits.items()
    }
    return replace(cohort, splits=splits)


def check_matched(path: Path, table: Mapping[str, _Values], cohort: Cohort) -> Unmatched:
    """Return whom the table and the volumes do not share. Raises `BadSite` where it is everyone."""
    patients = {session.patient for session in cohort}
    if not patients & set(table):
        raise BadSite(
            f"{path}: no row names a patient of the folder: the table has "
            f"{listed(sorted(table))}, the files {listed(sorted(patients))}; the IDs in "
            f"{PATIENT} must be those that the files' names begin with.",
            safe=phrase("no row of the table of patients names a patient of the folder"),
        )
    return Unmatched(tuple(sorted(patients - set(table))), tuple(sorted(set(table) - patients)))


def participants_of(folder: Path) -> Path | None:
    """Return the table beside a folder's volumes, if there is one.

    Raises `BadSite` where its name differs in case alone, and so would not be read.
    """
    path = folder / PARTICIPANTS
    if path.exists():
        return path
    for other in sorted(folder.iterdir()):
        if other.name.lower() == PARTICIPANTS:
            raise BadSite(
                f"{other}: must be named {PARTICIPANTS}, in small letters, to be read.",
                safe=phrase("the table of patients is not named participants.tsv"),
            )
    return None


def is_table(data: Path, elements: Elements) -> bool:
    """Tell whether a site's data is a table alone: such a file, or its folder without contrasts."""
    alone = not elements.contrasts and (data / PARTICIPANTS).is_file()
    return alone or data.suffix.lower() in DELIMITERS


def table_cohort(site: str, data: Path, elements: Elements) -> Cohort:
    """Make a cohort from a table: a session without images for each patient, split by patient.

    `data` is the table, or a folder that holds it as participants.tsv. Raises `BadSite`.
    """
    path = data / PARTICIPANTS if data.is_dir() else data
    if not elements.variables:
        raise BadSite(
            f"{path}: is a table; the study's elements.variables must name its columns.",
            safe=phrase("its data are a table, and the study has no elements.variables"),
        )
    table = read_participants(path, elements.variables)
    split_of = split_patients(table, elements.split, site=site)
    splits: dict[SplitName, list[Session]] = {split: [] for split in SPLITS}
    for patient, values in table.items():
        splits[split_of[patient]].append(Session(patient, "", (), _no_image(), values=values))
    return Cohort(site, {split: tuple(sessions) for split, sessions in splits.items()})


def _no_image() -> np.ndarray:
    """Return one slice of no contrast: a row of a table counts as one case."""
    return np.zeros((1, 0, 1, 1), np.float32)


def _read_rows(path: Path) -> list[tuple[int, list[str]]]:
    """Return the rows that are not blank, each with the number of its line in the file.

    A line ends as text files end lines (LF, CR LF, CR), and nowhere else: other characters that end
    lines on paper are part of a cell. Every line is a row, so that no quotation mark swallows rows.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise BadSite(
            f"{path}: cannot be read as a table ({_problem(error)}).",
            safe=phrase("the table of patients cannot be read ({why})", why=Reason.of(error))
            if isinstance(error, OSError)
            else phrase("the table of patients is not in UTF-8"),
        ) from None
    lines = enumerate(_LINE_END.split(text), start=1)
    rows = [(number, _cells(path, number, line)) for number, line in lines if line.strip()]
    filled = [(number, row) for number, row in rows if any(row)]
    if not filled:
        raise BadSite(
            f"{path}: the table is empty; its first row must name the columns.",
            safe=phrase("the table of patients is empty"),
        )
    return filled


def _problem(error: OSError | UnicodeDecodeError) -> str:
    if isinstance(error, OSError):
        return str(error)
    if error.object[:2] in _UTF16:
        return "it is in UTF-16; save it as UTF-8"
    line = len(_LINE_END.findall(error.object[: error.start].decode("latin-1"))) + 1
    return f"line {line} is not in UTF-8; save it as UTF-8"


def _cells(path: Path, number: int, line: str) -> list[str]:
    try:
        [row] = csv.reader([line], delimiter=DELIMITERS[path.suffix.lower()], strict=True)
    except csv.Error:
        raise BadSite(
            f"{path}: line {number} has a quotation mark that opens a cell and does not close it; "
            "each patient must have one line.",
            safe=phrase("a line of the table of patients has a quotation mark that is not closed"),
        ) from None
    return [cell.strip() for cell in row]


def _check_delimiter(path: Path, header: Sequence[str]) -> None:
    """Refuse a table whose cells are kept apart by another character than its ending says."""
    wanted = DELIMITERS[path.suffix.lower()]
    [only, *others] = header
    for other in (*DELIMITERS.values(), ";", "|"):
        if not others and other != wanted and only.split(other)[0] == PATIENT and other in only:
            raise BadSite(
                f"{path}: its cells are kept apart by {_CALLED[other]}, not by {_CALLED[wanted]} "
                f"as in a {path.suffix} file; save it again so.",
                safe=phrase("the cells of the table of patients are kept apart by another sign"),
            )


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
            f"{path}: line {number} has {len(row)} cells, the header has {len(header)}; "
            "they must agree.",
            safe=phrase("a row of the table of patients has not as many cells as its header"),
        )
    patient = row[header.index(PATIENT)]
    if patient in MISSING:
        raise BadSite(
            f"{path}: line {number} has no {PATIENT}; each row must name its patient.",
            safe=phrase("a row of the table of patients names none"),
        )
    if patient in known:
        raise BadSite(
            f"{path}: line {number} names a patient of an earlier row; each must have one row.",
            safe=phrase("two rows of the table of patients name the same one"),
        )
    return patient


def _number(path: Path, row: int, name: str, cell: str) -> float:
    if cell in MISSING:
        return nan
    value = float(cell) if _NUMBER.fullmatch(cell) else nan
    if not isfinite(value):
        raise BadSite(
            f"{path}: line {row} has {name} = '{cell}'; it must be a number, or n/a where missing.",
            safe=phrase("a cell of {name} in the table of patients is no number", name=Name(name)),
        )
    return value
