"""The table of states survives any stop, and nobody but its owner reads it."""

import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from grandrounds.core.errors import BadSite
from grandrounds.data.archive.states import (
    ArchiveCase,
    CaseQuality,
    CaseTable,
    KnownFile,
    counts_by_state,
    open_table,
)

CASE = ArchiveCase("aa", "sub-1", "1.2.3", "20200101", ("1.2.3", "4"), "mark")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "private" / "cases.sqlite"


def test_a_case_is_read_as_it_was_written(path: Path):
    whole = replace(
        CASE,
        state="checked",
        quality=CaseQuality(False, 3, 1.5, 20),
        notes=("odd",),
        findings={"name": 3},
        age=71.5,
    )
    with open_table(path) as table:
        table.put(whole, replace(whole, id="bb", quality=None, age=None))
    with open_table(path, make=False) as table:
        assert table.all() == (whole, replace(whole, id="bb", quality=None, age=None))
        assert table.get("cc") is None
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_the_volumes_of_a_series_take_the_place_of_those_that_it_had(path: Path):
    with open_table(path) as table:
        table.put(CASE, replace(CASE, id="aa.1"), replace(CASE, id="aa2"))
        table.replace("aa", [replace(CASE, state="refused")])
        assert [(c.id, c.state) for c in table.all()] == [("aa", "refused"), ("aa2", "found")]


def test_a_change_that_was_stopped_was_not_made(path: Path):
    with open_table(path) as table:
        table.put(CASE)
        with pytest.raises(BadSite, match="damaged"), table._changing():  # pyright: ignore
            raise delete_and_fail(table)
        assert table.all() == (CASE,)


def delete_and_fail(table: CaseTable) -> sqlite3.DatabaseError:
    table._connection.execute("DELETE FROM cases")  # pyright: ignore
    return sqlite3.DatabaseError("stopped")


def visit(table: CaseTable, study: str, day: str) -> None:
    table.put(replace(CASE, id=study, study=study, day=day))


def test_sessions_are_numbered_by_date_and_a_number_once_given_stays(path: Path):
    with open_table(path) as table:
        visit(table, "later", "2021")
        visit(table, "sooner", "2020")
        table.put(replace(CASE, id="x", patient="", study=""))  # a damaged file is nobody's
        table.number_sessions()
        assert table.late_sessions() == 0
        assert table.session("sub-1", "sooner") == "ses-1"
        assert table.session("sub-1", "later") == "ses-2"
        visit(table, "first of all", "2019")
        table.number_sessions()
        assert table.late_sessions() == 1
        assert table.session("sub-1", "first of all") == "ses-3"
        assert table.session("sub-1", "sooner") == "ses-1"
        assert table.studies() == (
            ("sub-1", "sooner"),
            ("sub-1", "later"),
            ("sub-1", "first of all"),
        )


def test_files_are_known_by_size_and_time(path: Path):
    with open_table(path) as table:
        table.put_files({"/a": KnownFile(1, 2, "aa"), "/b": KnownFile(3, 4)})
        table.put_files({"/c": KnownFile(5, 6, "aa")}, gone=["/b"])
        assert table.files() == {"/a": KnownFile(1, 2, "aa"), "/c": KnownFile(5, 6, "aa")}
        assert table.paths("aa") == (Path("/a"), Path("/c"))


def test_counts_name_every_state():
    assert counts_by_state([CASE]) == {
        "found": 1,
        "fetched": 0,
        "converted": 0,
        "checked": 0,
        "set aside": 0,
        "refused": 0,
    }


def test_a_damaged_table_is_a_sentence(path: Path):
    path.parent.mkdir()
    path.write_bytes(b"no table at all" * 500)
    with pytest.raises(BadSite, match="the table of states is damaged"), open_table(path):
        pass


def test_a_table_of_a_later_version_is_not_touched(path: Path):
    path.parent.mkdir()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 9")
    connection.close()
    with pytest.raises(BadSite, match="is a table of version 9"), open_table(path):
        pass


def test_without_a_table_there_is_nothing_to_tell(path: Path):
    with pytest.raises(BadSite, match="nothing was ingested yet"), open_table(path, make=False):
        pass
    assert not path.exists()
