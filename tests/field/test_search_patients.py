"""Further public reports on tables and patients, found by a search and rebuilt in a few lines."""

from pathlib import Path

import numpy as np
import pytest

from grandrounds.core.errors import BadSite
from grandrounds.data.availability import summarise_arrays
from grandrounds.data.cohort import Cohort
from grandrounds.data.elements import Elements, Fractions
from grandrounds.data.remarks import unmatched_notes
from grandrounds.data.session_files import find_sessions
from grandrounds.data.stack import stack_cohort
from grandrounds.data.table import read_participants, table_cohort
from grandrounds.runs.site_data import open_named, shared_patients
from grandrounds.study.file import parse_study
from tests.conftest import SaveVolume

HALVES = Fractions(train=0.5, validation=0.0, test=0.5)
STACK = Elements(contrasts=("CXR",), size=(4, 6), split=HALVES)
AGED = Elements(split=HALVES, variables=("age",))


def table(folder: Path, text: str) -> Path:
    path = folder / "participants.tsv"
    path.write_text(text, "utf-8")
    return path


# Tables


@pytest.mark.parametrize(
    ("text", "words"),
    [
        # bids-standard/bids-examples#43: blanks in place of a tab
        ("participant_id\tsex\tage\nsub-08  M\t26\n", "line 2 has 2 cells, the header has 3"),
        # mne-tools/mne-bids-pipeline#600: two columns of IDs
        (
            "participant_id\tparticipant_id\tage\nsub-001\tCQ2\t28\n",
            "2 columns are named 'participant_id'",
        ),
        # ivadomed/ivadomed#796: a dash for what is missing
        ("participant_id\tage\nsub-1\t30\nsub-2\t-\n", "line 3 has age = '-'"),
        # bids-standard/bids-examples#551: ages that are capped
        ("participant_id\tage\nsub-1\t84\nsub-2\t89+\n", "line 3 has age = '89+'"),
        # sccn/EEG-BIDS#150: NaN in place of n/a
        ("participant_id\tage\nsub-1\tNaN\n", "line 2 has age = 'NaN'"),
        # bids-standard/bids-specification#458: a range
        ("participant_id\tage\nsub-1\t80-90\n", "line 2 has age = '80-90'"),
    ],
)
def test_a_cell_or_a_column_too_many_is_named(tmp_path: Path, text: str, words: str):
    with pytest.raises(BadSite) as refused:
        read_participants(table(tmp_path, text), ("age",))
    assert words in str(refused.value)
    assert str(tmp_path / "participants.tsv") in str(refused.value)


def test_ids_that_look_like_numbers_stay_texts(tmp_path: Path):
    """cwatson/brainGraph#13, OuhscBbmc/REDCapR#241: 0506 became 506, and 001017 the other 1017."""
    path = table(tmp_path, "participant_id\tage\n0506\t1\n506\t2\n001017\t3\n1017\t4\n")
    assert list(read_participants(path, ("age",))) == ["0506", "506", "001017", "1017"]


def test_ids_that_lost_their_zeros_are_told_apart_from_patients_without_a_row():
    """incf-nidash/PyNIDM#84, molgenis-service-armadillo#1029: sub-01 became sub-1 in the table."""
    files, rows = (
        ("sub-01", "sub-02", "sub-a007b", "sub-11"),
        ("sub-1", "sub-2", "sub-a7b", "sub-12"),
    )
    notes = [str(note) for note in unmatched_notes(files, rows)]
    assert notes[-1].startswith("3 patients would have a row if the IDs had the same zeros")
    assert not [n for n in map(str, unmatched_notes(("sub-10",), ("sub-1",))) if "zeros" in n]


@pytest.mark.parametrize(
    ("ages", "told"),
    [
        (("40", "-999", "50", "60"), "1 of 4 values of age are -999"),
        (("40", "-9", "-9", "60"), "2 of 4 values of age are -9"),
        (("40", "999", "50", "60"), "1 of 4 values of age are 999"),
        (("-8", "-9", "50", "60"), ""),  # other values are below 0, too
        (("400", "999", "500", "600"), ""),  # 999 is one of many
        (("n/a", "50", "55", "60"), ""),
        (("-999", "-999", "-999", "-999"), ""),  # nothing to hold it against
    ],
)
def test_codes_for_missing_values_are_told(tmp_path: Path, ages: tuple[str, ...], told: str):
    """Big-Life-Lab/cchsflow#131: a code for a missing age, read as an age."""
    rows = "".join(f"sub-{n}\t{age}\n" for n, age in enumerate(ages))
    cohort = table_cohort("alder", table(tmp_path, f"participant_id\tage\n{rows}"), AGED)
    summary = summarise_arrays(cohort, elements=AGED, tasks=())
    found = [note for note in summary.notes if "write a missing one" in str(note)]
    assert [str(note).partition(",")[0] for note in found] == ([told] if told else [])
    assert all(note.told(frozenset({"age"})) for note in found)


# Patients


def stack(path: Path, images: np.ndarray, patients: list[str] | None = None) -> Cohort:
    if patients:
        np.savez(path, images=images, patient=np.array(patients))
    else:
        np.savez(path, images=images)
    return stack_cohort("alder", path, STACK)


def images(number: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 255, (number, 4, 6)).astype(np.uint8)


def told(*cohorts: Cohort) -> list[str]:
    return [str(note) for notes in shared_patients(cohorts).values() for note in notes]


def test_an_image_that_two_patients_of_a_stack_share_is_told(tmp_path: Path):
    """stefyste/RIAWELC#2: all test images were images of the training, too."""
    doubled = images(8)
    doubled[7] = doubled[0]
    assert not told(stack(tmp_path / "a.npz", images(8), list("aabbccdd")))
    [note] = told(stack(tmp_path / "b.npz", doubled, list("aabbccdd")))
    assert note.startswith("2 sessions here have the same images as a session under another ID")
    assert not told(stack(tmp_path / "c.npz", doubled, list("abcdefga"))), "one patient's own"


def test_blank_images_are_nobody_s(tmp_path: Path):
    blank = images(8)
    blank[[0, 7]] = 0
    assert not told(stack(tmp_path / "a.npz", blank, list("aabbccdd")))


def test_a_stack_that_names_nobody_says_what_that_means(tmp_path: Path):
    """lightning-Covid19#11, UCSD-AI4H/COVID-CT#11: a patient has several images."""
    nameless, named = (
        stack(tmp_path / "a.npz", images(8)),
        stack(tmp_path / "b.npz", images(8), list("aabbccdd")),
    )
    notes = [
        [str(n) for n in summarise_arrays(each, elements=STACK, tasks=()).notes]
        for each in (nameless, named)
    ]
    assert any(n.startswith("no array says whose each image is") for n in notes[0])
    assert not any("whose each image" in n for n in notes[1])
    assert not set(named.patients("train")) & set(named.patients("test"))


def site(tmp_path: Path, save_volume: SaveVolume, head: np.ndarray, *names: str) -> Path:
    """Write these patients, each with a head of its own, and a site file."""
    for number, name in enumerate(names):
        for factor, contrast in enumerate(("T1w", "T2w"), start=1):
            save_volume(tmp_path / f"alder/{name}_{contrast}.nii", head * factor + number)
    file = tmp_path / "alder.toml"
    file.write_text('name = "alder"\ndata = "alder"\ncache = "cache"\n')
    return file


STUDY = parse_study(
    {
        "name": "one",
        "elements": {
            "contrasts": ["T1w", "T2w"],
            "size": [32, 32],
            "spacing": [1.0, 1.0],
            "split": {"train": 0.5, "validation": 0.0, "test": 0.5},
        },
        "task": {"model": "small"},
        "method": {"kind": "fedavg"},
        "site": [{"name": "alder", "tasks": ["T1w->T2w"]}],
    }
)


@pytest.mark.parametrize("compressed", [False, True])
def test_a_scan_with_another_outline_under_another_id_is_told(
    tmp_path: Path, save_volume: SaveVolume, head: np.ndarray, compressed: bool
):
    """anjany/verse#1, jamesdolezal/synthetic-histology#2: two data sets share scans, not names."""
    file = site(tmp_path, save_volume, head, "sub-1", "sub-2", "sub-3")
    for contrast, factor in (("T1w", 1), ("T2w", 2)):
        ending = "nii.gz" if compressed else "nii"
        save_volume(tmp_path / f"alder/sub-verse500_{contrast}.{ending}", head * factor)
    lesion = np.zeros(head.shape, np.uint8)
    lesion[5:7, 6:8, 2:4] = 1
    save_volume(tmp_path / "alder/sub-1_lesionmask.nii", lesion)
    save_volume(tmp_path / "alder/sub-verse500_lesionmask.nii", np.roll(lesion, 1, 0))
    [(_, summary)] = open_named(STUDY, [file])
    found = [str(n) for n in summary.notes if "under another ID" in str(n)]
    assert [note.partition(" here ")[0] for note in found] == ["2 sessions"]


@pytest.mark.slow
def test_all_sessions_of_a_patient_are_on_one_side(
    tmp_path: Path, save_volume: SaveVolume, head: np.ndarray
):
    """icon-lab/FDB#5, wasserth/TotalSegmentator#569: a patient has several files, or visits."""
    names = [f"sub-{patient}_ses-{visit}" for patient in "abcd" for visit in (1, 2, 3)]
    [(cohort, _)] = open_named(STUDY, [site(tmp_path, save_volume, head, *names)])
    assert len(find_sessions(tmp_path / "alder")) == 12
    assert [len(cohort.splits[split]) for split in ("train", "test")] == [6, 6]
    assert not set(cohort.patients("train")) & set(cohort.patients("test"))
