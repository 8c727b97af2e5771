"""Tables of patients: alone as a site's data, or beside its images."""

from math import isnan
from pathlib import Path

import numpy as np
import pytest

from grandrounds.core.errors import BadSite
from grandrounds.data.availability import check_elements, summarise_arrays
from grandrounds.data.cohort import Cohort, Session
from grandrounds.data.elements import Elements, Fractions
from grandrounds.data.table import (
    is_table,
    participants_of,
    read_participants,
    table_cohort,
    with_values,
)
from grandrounds.runs.site_data import open_sites
from grandrounds.study.file import example, read_study
from grandrounds.study.site_file import SiteFile
from tests.conftest import SaveVolume

ELEMENTS = Elements(split=Fractions(0.5, 0.25, 0.25), variables=("age", "num"))
TABLE = "participant_id\tnum\tsite_notes\tage\n" + "".join(
    f"sub-{name}\t{number % 2}\tsecret\t{40 + number}\n" for number, name in enumerate("abcdefgh")
)


def written(folder: Path, text: str, name: str = "participants.tsv") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_columns_are_found_by_name_and_others_are_not_read(tmp_path: Path):
    table = read_participants(written(tmp_path, TABLE), ("age", "num"))
    assert table["sub-b"] == {"age": 41, "num": 1}
    assert list(table) == [f"sub-{name}" for name in "abcdefgh"]


def test_commas_quotes_and_a_mark_of_the_byte_order_are_read(tmp_path: Path):
    text = '\ufeffparticipant_id,age\n"a", 5.5\n\nb,-1e2\n'
    found = read_participants(written(tmp_path, text, "patients.csv"), ("age",))
    assert found == {"a": {"age": 5.5}, "b": {"age": -100.0}}


@pytest.mark.parametrize("cell", ["n/a", ""])
def test_what_is_missing_becomes_nan(tmp_path: Path, cell: str):
    found = read_participants(
        written(tmp_path, f"participant_id\tage\tnum\na\t{cell}\t1\n"), ("age",)
    )
    assert isnan(found["a"]["age"])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "the table is empty; its first row must name the columns"),
        ("participant_id\tage\n", "has no row below its header"),
        ("participant_id\tsex\na\t1\n", "0 columns are named 'age'; there must be one"),
        ("participant_id\tage\tage\na\t1\t1\n", "2 columns are named 'age'"),
        ("patient\tage\na\t1\n", "0 columns are named 'participant_id'"),
        ("participant_id\tage\na\t1\t2\n", "line 2 has 3 cells, the header has 2"),
        ("participant_id\tage\na\t1\nn/a\t2\n", "line 3 has no participant_id"),
        ("participant_id\tage\na\t1\na\t2\n", "line 3 names a patient of an earlier row"),
        ("participant_id\tage\na\told\n", "line 2 has age = 'old'; it must be a number, or n/a"),
        ("participant_id\tage\na\tinf\n", "line 2 has age = 'inf'"),
        ("participant_id\tage\na\tnan\n", "line 2 has age = 'nan'"),
    ],
)
def test_what_is_no_table_is_refused_in_a_sentence(tmp_path: Path, text: str, says: str):
    path = written(tmp_path, text)
    with pytest.raises(BadSite) as refused:
        read_participants(path, ("age",))
    assert says in str(refused.value)
    assert str(path) in str(refused.value)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path):
    path = tmp_path / "participants.tsv"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadSite, match="cannot be read as a table"):
        read_participants(path, ("age",))


def test_a_table_or_the_folder_that_holds_only_one_is_known_by_its_name(tmp_path: Path):
    path = written(tmp_path, TABLE)
    images = Elements(contrasts=("T1w",), variables=("age",))
    assert is_table(path, ELEMENTS)
    assert is_table(path, images)
    assert is_table(tmp_path, ELEMENTS)
    assert not is_table(tmp_path, images)


@pytest.mark.parametrize("whole", [True, False])
def test_a_table_is_split_by_patient_and_is_the_same_as_its_folder(tmp_path: Path, whole: bool):
    path = written(tmp_path, TABLE)
    cohort = table_cohort("alder", tmp_path if whole else path, ELEMENTS)
    assert {split: len(sessions) for split, sessions in cohort.splits.items()} == {
        "train": 4,
        "validation": 2,
        "test": 2,
    }
    assert {s.patient: s.values["num"] for s in cohort} == {
        f"sub-{name}": number % 2 for number, name in enumerate("abcdefgh")
    }


def test_the_order_of_rows_moves_nobody_to_another_split(tmp_path: Path):
    header, *lines = TABLE.splitlines()
    turned = written(tmp_path, "\n".join([header, *reversed(lines)]), "turned.tsv")
    one = table_cohort("alder", written(tmp_path, TABLE), ELEMENTS)
    other = table_cohort("alder", turned, ELEMENTS)
    for split in ("train", "validation", "test"):
        assert set(one.patients(split)) == set(other.patients(split))


def test_one_patient_cannot_be_split(tmp_path: Path):
    path = written(tmp_path, "participant_id\tage\tnum\na\t1\t0\n")
    with pytest.raises(BadSite, match="needs at least 2 patients"):
        table_cohort("alder", path, ELEMENTS)


def test_a_summary_counts_variables_and_names_nobody(tmp_path: Path):
    path = written(tmp_path, TABLE.replace("secret\t40", "secret\tn/a"))
    cohort = table_cohort("alder", path, ELEMENTS)
    summary = summarise_arrays(cohort, elements=ELEMENTS, tasks=["variables->num"])
    assert (summary.contents["age"].patients, summary.contents["num"].patients) == (7, 8)
    assert summary.geometry is None
    assert not summary.simulated
    [note] = summary.notes
    assert str(note) == "1 of 8 sessions lacks age: variables->num reads it as missing"
    check_elements(summary, ELEMENTS, ["variables->num"])


def test_a_target_that_nobody_has_is_refused(tmp_path: Path):
    text = "participant_id\tage\tnum\n" + "".join(f"{name}\t1\tn/a\n" for name in "abcd")
    cohort = table_cohort("alder", written(tmp_path, text), ELEMENTS)
    summary = summarise_arrays(cohort, elements=ELEMENTS, tasks=["variables->num"])
    with pytest.raises(BadSite, match="no session has num, which variables->num needs"):
        check_elements(summary, ELEMENTS, ["variables->num"])


def test_patients_of_images_get_their_row_and_one_without_a_row_gets_nan():
    images = np.zeros((1, 1, 2, 2), np.float32)
    known, unknown = (Session(name, "", ("T1w",), images) for name in ("sub-a", "sub-b"))
    cohort = Cohort("alder", {"train": (known, unknown), "validation": (), "test": ()})
    found = with_values(cohort, {"sub-a": {"age": 3.0}}, ("age",))
    values = [session.values["age"] for session in found]
    assert values[0] == 3
    assert isnan(values[1])


def test_a_folder_of_volumes_may_hold_a_table_beside_them(
    tmp_path: Path, save_volume: SaveVolume, head: np.ndarray
):
    for name in "abcd":
        save_volume(tmp_path / f"sub-{name}_T1w.nii.gz", head)
    written(tmp_path, "participant_id\tms\nsub-a\t1\nsub-b\tn/a\nsub-c\t0\nsub-d\t1\n")
    site = 'site=[{name="alder",tasks=["T1w->ms"]},{name="birch",tasks=["T1w->ms"]}]'
    study = read_study(
        example("tiny"),
        [
            'elements={contrasts=["T1w"],variables=["ms"],size=[32,32],spacing=[3,3],'
            "split={train=0.5,validation=0,test=0.5}}",
            'task={kind="classification",width=4,blocks=1}',
            'method={kind="fedavg"}',
            site,
        ],
    )
    files = [SiteFile(name, tmp_path) for name in ("alder", "birch")]
    [cohort] = open_sites(study, files)["alder"].cohorts
    values = {session.patient: session.values["ms"] for session in cohort}
    assert {name: value for name, value in values.items() if name != "sub-b"} == {
        "sub-a": 1,
        "sub-c": 0,
        "sub-d": 1,
    }
    assert isnan(values["sub-b"])


@pytest.mark.parametrize(
    "cell", ["left\u2028right", "left\vright", "left\x85right", "left\x1cright"]
)
def test_only_line_ends_of_files_end_a_row(tmp_path: Path, cell: str):
    path = tmp_path / "participants.tsv"
    path.write_text(f"participant_id\tage\tnote\na\t1\t{cell}\nb\t2\tok\n", "utf-8")
    assert read_participants(path, ("age",)) == {"a": {"age": 1}, "b": {"age": 2}}


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_messages_count_the_lines_of_the_file(tmp_path: Path, end: str):
    path = tmp_path / "participants.tsv"
    lines = ("participant_id\tage", "", "a\t1", "\t", "b\told", "")
    path.write_bytes(end.join(lines).encode())
    with pytest.raises(BadSite, match="line 5 has age = 'old'"):
        read_participants(path, ("age",))


@pytest.mark.parametrize(
    "number", ["4_0", "\u0664\u0660", "\uff14\uff10", "0x28", "1e999", "infinity", "4 0", "--4"]
)
def test_what_only_python_reads_as_a_number_is_none(tmp_path: Path, number: str):
    path = tmp_path / "participants.tsv"
    path.write_text(f"participant_id\tage\na\t{number}\n", "utf-8")
    with pytest.raises(BadSite, match="line 2 has age"):
        read_participants(path, ("age",))


def test_numbers_are_read_as_people_write_them(tmp_path: Path):
    path = tmp_path / "participants.tsv"
    written = {"a": "40", "b": "+4.5", "c": "-.5", "d": "4.", "e": "1e3", "f": " 7 "}
    rows = "".join(f"{who}\t{number}\n" for who, number in written.items())
    path.write_text(f"participant_id\tage\n{rows}", "utf-8")
    ages = [values["age"] for values in read_participants(path, ("age",)).values()]
    assert ages == [40, 4.5, -0.5, 4, 1000, 7]


@pytest.mark.parametrize("suffix", ["tsv", "csv"])
def test_an_open_quotation_mark_swallows_no_row(tmp_path: Path, suffix: str):
    """clarin-eric/ParlaMint#899, pytorch/text#612."""
    path, between = tmp_path / f"patients.{suffix}", "\t" if suffix == "tsv" else ","
    lines = (["participant_id", "note", "age"], ["a", '"left', "1"], ["b", 'right"', "2"])
    path.write_text("\n".join(between.join(line) for line in lines), "utf-8")
    with pytest.raises(BadSite, match="line 2 has a quotation mark"):
        read_participants(path, ("age",))


def test_a_quotation_mark_inside_a_cell_is_a_part_of_it(tmp_path: Path):
    path = tmp_path / "participants.tsv"
    path.write_text('participant_id\tnote\tage\na\tlobby"s\t1\nb\t"a, b"\t2\n', "utf-8")
    assert set(read_participants(path, ("age",))) == {"a", "b"}


def test_a_tab_at_the_end_of_each_line_is_an_empty_column(tmp_path: Path):
    """bids-standard/bids-matlab#96."""
    path = tmp_path / "participants.tsv"
    path.write_bytes(b"participant_id\tsex\t\r\nsub-01\t1\t\r\nsub-02\t0\t\r\n")
    assert read_participants(path, ("sex",)) == {"sub-01": {"sex": 1}, "sub-02": {"sex": 0}}


def test_a_patient_with_a_row_for_each_session_is_refused(tmp_path: Path):
    """bids-standard/pybids#474: a variable is the patient's, so there is one row."""
    path = tmp_path / "participants.tsv"
    path.write_text("participant_id\tsession\tage\nc1\t1\t3\nc1\t2\t6\n", "utf-8")
    with pytest.raises(BadSite, match="line 3 names a patient of an earlier row"):
        read_participants(path, ("age",))


@pytest.mark.parametrize(
    ("name", "between", "called"),
    [("p.csv", ";", "semicolons"), ("p.csv", "\t", "tabs"), ("p.tsv", ",", "commas")],
)
def test_cells_kept_apart_by_another_sign_are_told(
    tmp_path: Path, name: str, between: str, called: str
):
    path = tmp_path / name
    path.write_text(f"participant_id{between}age\na{between}1\n", "utf-8")
    with pytest.raises(BadSite, match=f"its cells are kept apart by {called}, not by "):
        read_participants(path, ("age",))


def test_a_table_whose_name_differs_in_case_is_not_passed_over(tmp_path: Path):
    (tmp_path / "Participants.TSV").touch()
    with pytest.raises(BadSite, match=r"must be named participants\.tsv"):
        participants_of(tmp_path)
    assert participants_of(tmp_path.parent) is None


def test_patients_of_a_table_who_differ_in_case_alone_are_one(tmp_path: Path):
    path = tmp_path / "participants.tsv"
    path.write_text("participant_id\tage\nsub-1a\t1\nsub-1A\t2\n")
    with pytest.raises(BadSite, match="sub-1a and sub-1A differ in case alone"):
        read_participants(path, ("age",))


def test_a_line_in_another_encoding_is_named(tmp_path: Path):
    path = tmp_path / "participants.tsv"
    path.write_bytes("participant_id\tage\nsub-1\t1\nJörg\t2\n".encode("latin-1"))
    with pytest.raises(BadSite, match=r"line 3 is not in UTF-8"):
        read_participants(path, ("age",))
