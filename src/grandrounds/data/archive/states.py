"""The table of states: each case of an archive, and how far it has come; it survives any stop.

It is an SQLite file: each change is one transaction, which a stop leaves done or undone, and a
reader sees no half of it. A journal of lines would have to be read whole to find one case.
"""

import json
import sqlite3
from collections import Counter
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from grandrounds.core.errors import BadSite, DiskFailed
from grandrounds.core.files import make_private_folder

CaseState: TypeAlias = Literal["found", "fetched", "converted", "checked", "set aside", "refused"]
CASE_STATES: tuple[CaseState, ...] = get_args(CaseState)
TABLE_VERSION = 1


@dataclass(frozen=True)
class CaseQuality:
    """What tells which of two volumes of one contrast is the better one.

    `voxel` is in mm3, `derived` whether it was computed from others.
    """

    derived: bool
    dimensions: int
    voxel: float
    slices: int


@dataclass(frozen=True)
class ArchiveCase:
    """A series or volume of an archive; what identifies it never leaves the private folder.

    Private are `study`, `day` and `place` (UIDs, a date, a path). `mark` tells whether the case
    changed in the archive, `settings` under which settings the state was reached, `source` which
    of the archives that share a table has it.
    """

    id: str
    patient: str
    study: str
    day: str
    place: tuple[str, ...]
    mark: str
    state: CaseState = "found"
    reason: str = ""
    session: str = ""
    contrast: str = ""
    why: str = ""
    output: str = ""
    settings: str = ""
    quality: CaseQuality | None = None
    notes: tuple[str, ...] = ()
    findings: Mapping[str, int] = field(default_factory=dict[str, int])
    files: int = 0
    age: float | None = None
    sex: str = ""
    source: str = ""

    @property
    def base(self) -> str:
        """Return by what the series is called of which this is one of several volumes."""
        return self.id.partition(".")[0]


@dataclass(frozen=True)
class KnownFile:
    """A file as it was when it was looked at, and the series that it belongs to ("" for none)."""

    size: int
    modified: int
    base: str = ""


_COLUMNS = tuple(each.name for each in fields(ArchiveCase))
_PLAIN = ("place", "quality", "notes", "findings", "age")  # kept as JSON
_PUT = (
    f"INSERT OR REPLACE INTO cases ({', '.join(_COLUMNS)}) "
    f"VALUES ({', '.join('?' for _ in _COLUMNS)})"
)
_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS cases ({
    ", ".join(
        f"{name} {'INTEGER' if name == 'files' else 'TEXT'} NOT NULL"
        + (" PRIMARY KEY" if name == "id" else "")
        for name in _COLUMNS
    )
});
CREATE INDEX IF NOT EXISTS by_study ON cases (patient, study);
CREATE TABLE IF NOT EXISTS sessions (
  patient TEXT NOT NULL, study TEXT NOT NULL, day TEXT NOT NULL, number INTEGER NOT NULL,
  PRIMARY KEY (patient, study), UNIQUE (patient, number));
CREATE TABLE IF NOT EXISTS files (
  path TEXT PRIMARY KEY, size INTEGER NOT NULL, modified INTEGER NOT NULL, base TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS by_case ON files (base);
CREATE TABLE IF NOT EXISTS outputs (name TEXT PRIMARY KEY);
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""


class CaseTable:
    """The cases of one archive, on the disk; every method is one transaction."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path, self._connection = path, connection

    def put(self, *cases: ArchiveCase) -> None:
        """Write cases as they are now: all of these or none."""
        with self._changing():
            self._connection.executemany(_PUT, [_row(case) for case in cases])

    def replace(self, base: str, cases: Sequence[ArchiveCase]) -> None:
        """Put the volumes that a series came to in the place of those that it had."""
        with self._changing():
            self._connection.execute(
                "DELETE FROM cases WHERE id = ? OR id GLOB ?", (base, f"{base}.*")
            )
            self._connection.executemany(_PUT, [_row(case) for case in cases])

    def get(self, id: str) -> ArchiveCase | None:
        return next(self._select("WHERE id = ?", id), None)

    def all(self) -> tuple[ArchiveCase, ...]:
        return tuple(self._select("ORDER BY patient, session, contrast, id"))

    def of_study(self, patient: str, study: str) -> tuple[ArchiveCase, ...]:
        return tuple(self._select("WHERE patient = ? AND study = ? ORDER BY id", patient, study))

    def studies(self) -> tuple[tuple[str, str], ...]:
        """Return patients and their studies in the order of their sessions."""
        rows = self._read("SELECT patient, study FROM sessions ORDER BY patient, number")
        return tuple((row[0], row[1]) for row in rows)

    def number_sessions(self) -> None:
        """Give each new study of a patient the next numbers, in the order of their dates.

        A number once given stays, also where an earlier study comes later.
        """
        rows = self._read(
            "SELECT patient, study, MIN(day) AS first FROM cases WHERE patient != '' AND NOT "
            "EXISTS (SELECT 1 FROM sessions s WHERE s.patient = cases.patient "
            "AND s.study = cases.study) "
            "GROUP BY patient, study ORDER BY patient, first, study"
        )
        last = "SELECT COALESCE(MAX(number), 0) FROM sessions WHERE patient = ?"
        with self._changing():
            for patient, study, day in rows:
                [(number,)] = self._connection.execute(last, (patient,))
                values = (patient, study, day, number + 1)
                self._connection.execute("INSERT OR IGNORE INTO sessions VALUES (?,?,?,?)", values)

    def late_sessions(self) -> int:
        """Count sessions that are earlier than one of a lower number: they came later."""
        [(count,)] = self._read(
            "SELECT COUNT(*) FROM sessions s WHERE EXISTS (SELECT 1 FROM sessions t "
            "WHERE t.patient = s.patient AND t.number < s.number AND t.day > s.day)"
        )
        return count

    def session(self, patient: str, study: str) -> str:
        """Return the name of a session, `ses-1` for a patient's first."""
        query = "SELECT number FROM sessions WHERE patient = ? AND study = ?"
        [(number,)] = self._read(query, patient, study)
        return f"ses-{number}"

    def files(self) -> Mapping[str, "KnownFile"]:
        """Return the files of a folder that were looked at, by their path."""
        rows = self._read("SELECT path, size, modified, base FROM files")
        return {path: KnownFile(*rest) for path, *rest in rows}

    def put_files(self, files: Mapping[str, "KnownFile"], gone: Iterable[str] = ()) -> None:
        rows = [(path, f.size, f.modified, f.base) for path, f in files.items()]
        with self._changing():
            self._connection.executemany("INSERT OR REPLACE INTO files VALUES (?,?,?,?)", rows)
            self._connection.executemany("DELETE FROM files WHERE path = ?", [(p,) for p in gone])

    def paths(self, base: str) -> tuple[Path, ...]:
        """Return the files of a series."""
        rows = self._read("SELECT path FROM files WHERE base = ? ORDER BY path", base)
        return tuple(Path(row[0]) for row in rows)

    def outputs(self, beginning: str) -> frozenset[str]:
        """Return the names with this beginning that were ever written among the volumes."""
        rows = self._read("SELECT name FROM outputs WHERE name GLOB ?", f"{beginning}*")
        return frozenset(row[0] for row in rows)

    def note_output(self, name: str) -> None:
        with self._changing():
            self._connection.execute("INSERT OR IGNORE INTO outputs VALUES (?)", (name,))

    def note_left_out(self, counts: Mapping[str, int]) -> None:
        self.note("left out", json.dumps(counts))

    def left_out(self) -> Mapping[str, int]:
        """Return what the archive holds beside cases, in counts."""
        return json.loads(self.fact("left out") or "{}")

    def fact(self, name: str) -> str | None:
        """Return a note of the table about itself."""
        rows = self._read("SELECT value FROM facts WHERE name = ?", name)
        return rows[0][0] if rows else None

    def note(self, name: str, value: str) -> None:
        with self._changing():
            self._connection.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, value))

    def _select(self, rest: str, *values: str) -> Generator[ArchiveCase]:
        for row in self._read(f"SELECT {', '.join(_COLUMNS)} FROM cases {rest}", *values):
            yield _case(row)

    def _read(self, statement: str, *values: str) -> list[tuple[Any, ...]]:
        with _refusing(self.path):
            return self._connection.execute(statement, values).fetchall()

    @contextmanager
    def _changing(self) -> Generator[None]:
        with _refusing(self.path), self._connection:
            yield


@contextmanager
def open_table(path: Path, *, make: bool = True) -> Generator[CaseTable]:
    """Open the table of an archive, and make it (mode 600). Raises `BadSite` and `DiskFailed`."""
    if make:
        make_private_folder(path.parent)
        path.touch(0o600)
    elif not path.exists():
        raise BadSite(f"{path}: nothing was ingested yet; run `grandrounds site ingest` first")
    with _refusing(path):
        connection = sqlite3.connect(path, timeout=30)
    try:
        with _refusing(path):
            connection.execute("PRAGMA synchronous = FULL")
            [(version,)] = connection.execute("PRAGMA user_version")
            if version not in (0, TABLE_VERSION):
                raise BadSite(
                    f"{path}: is a table of version {version}; this program reads {TABLE_VERSION}"
                )
            if make:
                connection.executescript(_SCHEMA)
                connection.execute(f"PRAGMA user_version = {TABLE_VERSION}")
        yield CaseTable(path, connection)
    finally:
        connection.close()


@contextmanager
def _refusing(path: Path) -> Generator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        raise DiskFailed(
            f"{path}: the table of states cannot be read or written ({error}); what was done is "
            "kept, run the command again"
        ) from None
    except sqlite3.DatabaseError as error:
        raise BadSite(
            f"{path}: the table of states is damaged ({error}); bring it back from a backup, or "
            "move it away to ingest anew (the key of the pseudonyms must stay)"
        ) from None


def counts_by_state(cases: Iterable[ArchiveCase]) -> Mapping[CaseState, int]:
    """Return how many cases have come how far, in the order in which they come."""
    found = Counter(case.state for case in cases)
    return {state: found[state] for state in CASE_STATES}


def _row(case: ArchiveCase) -> tuple[object, ...]:
    values: dict[str, object] = asdict(case)
    plain = {name: json.dumps(values[name]) for name in _PLAIN}
    return tuple((values | plain)[name] for name in _COLUMNS)


def _case(row: tuple[Any, ...]) -> ArchiveCase:
    values = dict(zip(_COLUMNS, row, strict=True))
    values |= {name: json.loads(values[name]) for name in _PLAIN}
    quality = values["quality"]
    values["quality"] = CaseQuality(**quality) if quality else None
    values["place"], values["notes"] = tuple(values["place"]), tuple(values["notes"])
    return ArchiveCase(**values)
