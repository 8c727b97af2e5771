"""What is said when a site's data is opened, of one site and of several together."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from grandrounds.core.errors import BadSite
from grandrounds.data.cohort import Cohort
from grandrounds.runs.site_data import find_site, open_named, open_sites
from grandrounds.study.file import parse_study
from grandrounds.study.site_file import read_site
from grandrounds.study.study import Study
from tests.conftest import SaveVolume

SITES = ("alder", "birch")


def study(*names: str, **elements: object) -> Study:
    return parse_study(
        {
            "name": "two",
            "elements": {
                "contrasts": ["T1w", "T2w"],
                "size": [32, 32],
                "spacing": [1.0, 1.0],
                "split": {"train": 0.5, "validation": 0.0, "test": 0.5},
                **elements,
            },
            "task": {"model": "small"},
            "method": {"kind": "fedavg"},
            "site": [{"name": name, "tasks": ["T1w->T2w"]} for name in names or SITES],
        }
    )


@pytest.fixture
def put(tmp_path: Path, save_volume: SaveVolume, head: np.ndarray) -> Callable[..., Path]:
    """Write a site of patients, each with images of its own, and its file."""

    def write(site: str, *patients: str) -> Path:
        for patient in patients:
            for factor, contrast in enumerate(("T1w", "T2w"), start=1):
                own = head * factor + sum(map(ord, site + patient))
                save_volume(tmp_path / site / f"{patient}_{contrast}.nii", own)
        file = tmp_path / f"{site}.toml"
        file.write_text(f'name = "{site}"\ndata = "{site}"\ncache = "cache"\n')
        return file

    return write


def notes_of(*paths: Path) -> list[str]:
    opened = open_named(study(), paths)
    return [str(note) for _, summary in opened for note in summary.notes]


def test_ids_that_two_sites_share_are_counted(put: Callable[..., Path]):
    """OHDSI/PatientLevelPrediction#648: is there a way to confirm that nothing leaked?"""
    patients = [f"sub-{n}" for n in range(8)]
    paths = put("alder", *patients), put("birch", *patients)
    told = [note for note in notes_of(*paths) if "have the ID of a patient at" in note]
    assert [note.partition(" here ")[0] for note in told] == ["8 patients", "8 patients"]
    opened = open_sites(study(), [read_site(path) for path in paths])
    splits = [dict(_splits(data.cohorts[0])) for data in opened.values()]
    crossing = sum(splits[0][p] != splits[1][p] for p in patients)
    assert crossing
    assert f"; {crossing} of them train at one site" in told[0]
    assert [note for data in opened.values() for note in data.ready.notes if "the ID of" in note]


def _splits(cohort: Cohort) -> list[tuple[str, str]]:
    return [(session.patient, split) for split, all in cohort.splits.items() for session in all]


def test_one_patient_of_two_sites_who_trains_at_both_is_told_so(put: Callable[..., Path]):
    paths = put("alder", "sub-1", "sub-2"), put("birch", "sub-1", "sub-3")
    told = [note for note in notes_of(*paths) if "the ID of" in note]
    assert len(told) == 2
    assert told[0].startswith("1 patient here has the ID of a patient at birch; ")
    cohorts = [cohort for cohort, _ in open_named(study(), paths)]
    splits = {dict(_splits(cohort))["sub-1"] for cohort in cohorts}
    assert ("none of them trains" in told[0]) == (len(splits) == 1)


def test_sites_with_patients_of_their_own_hear_nothing(put: Callable[..., Path]):
    paths = put("alder", "sub-1", "sub-2"), put("birch", "sub-3", "sub-4")
    assert not [note for note in notes_of(*paths) if "ID" in note]


@pytest.mark.parametrize("other", SITES)
def test_the_same_images_under_another_id_are_told(
    put: Callable[..., Path], tmp_path: Path, other: str
):
    """ljwztc/CLIP-Driven-Universal-Model#63: cases in the training set and the test set."""
    paths = put("alder", "sub-1", "sub-2"), put("birch", "sub-3", "sub-4")
    for contrast in ("T1w", "T2w"):
        twin = tmp_path / other / f"sub-9_{contrast}.nii"
        shutil.copy(tmp_path / f"alder/sub-1_{contrast}.nii", twin)
    told = [note for note in notes_of(*paths) if "under another ID" in note]
    expected = ["2 sessions"] if other == "alder" else ["1 session", "1 session"]
    assert [note.partition(" here ")[0] for note in told] == expected


def test_a_guest_with_one_patient_has_one_test_patient(put: Callable[..., Path]):
    guest = put("newcomer", "sub-1")
    cohort = find_site(study(), str(guest)).all_tested(study())
    assert [session.patient for session in cohort.splits["test"]] == ["sub-1"]
    assert not cohort.splits["train"]


def test_a_site_that_trains_needs_two(put: Callable[..., Path]):
    with pytest.raises(BadSite, match="1 patient cannot be split"):
        open_named(study(), [put("alder", "sub-1")])


@pytest.mark.parametrize("name", ["patients.txt", "patients.xlsx", "scan.nii.gz"])
def test_a_file_that_is_no_sites_data_is_named(tmp_path: Path, name: str):
    (tmp_path / name).touch()
    file = tmp_path / "alder.toml"
    file.write_text(f'name = "alder"\ndata = "{name}"\n')
    with pytest.raises(BadSite, match=f"{name}: is a file of an unknown kind"):
        open_named(study(), [file])


def test_ids_that_do_not_meet_the_table_are_named_here_and_told_nobody(
    put: Callable[..., Path], tmp_path: Path
):
    path = put("alder", "sub-1", "sub-2", "sub-3")
    rows = "sub-1\t40\nsub-2\t50\nsub-77\t60\n"
    (tmp_path / "alder/participants.tsv").write_text(f"participant_id\tage\n{rows}")
    aged = study("alder", variables=["age"])
    [(_, summary)] = open_named(aged, [path])
    here = [str(note) for note in summary.notes]
    assert "without a row: sub-3" in here
    assert "without a volume: sub-77" in here
    told = open_sites(aged, [read_site(path)])["alder"].ready.notes
    assert "1 patient without a row in participants.tsv" in told
    assert "1 row of participants.tsv without a volume" in told
    assert not [note for note in told if "sub-" in note]


def test_a_table_of_other_people_is_refused(put: Callable[..., Path], tmp_path: Path):
    path = put("alder", "sub-1", "sub-2")
    (tmp_path / "alder/participants.tsv").write_text("participant_id\tage\n1\t40\n2\t50\n")
    with pytest.raises(BadSite, match="the table has 1, 2, the files sub-1, sub-2") as caught:
        open_named(study("alder", variables=["age"]), [path])
    assert "sub-" not in str(caught.value.safe)


def test_a_folder_without_its_table_is_told(put: Callable[..., Path]):
    [(_, summary)] = open_named(study("alder", variables=["age"]), [put("alder", "sub-1", "sub-2")])
    assert "there is no participants.tsv" in "\n".join(map(str, summary.notes))
