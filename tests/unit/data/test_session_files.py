"""No volume in a folder is taken for another thing, or left out without a word."""

from pathlib import Path

import pytest

from grandrounds.core.errors import BadSite
from grandrounds.data.session_files import find_sessions


def refusal(folder: Path) -> str:
    with pytest.raises(BadSite) as caught:
        find_sessions(folder)
    return str(caught.value)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "sub-01_T1w.nii.gz").touch()
    return tmp_path


@pytest.mark.parametrize(
    "kind",
    [
        *("T1wmask", "T2wMask", "Brainmask", "BRAINMASK", "lesionMask", "mask", "maskT1w"),
        *(
            "dseg",
            "probseg",
            "T1wseg",
            "lesion",
            "Lesions",
            "label",
            "labels",
            "roi",
            "wmhROI",
            "wmh",
            "brain",
            "tumor",
        ),
    ],
)
def test_a_name_of_an_outline_is_no_contrast(folder: Path, kind: str):
    (folder / f"sub-01_{kind}.nii.gz").touch()
    assert f"sub-01_{kind}.nii.gz must be named" in refusal(folder)


@pytest.mark.parametrize("kind", ["T1w", "FLAIR", "PDw", "SWI", "MESEGRE", "angio", "CT"])
def test_a_contrast_is_none_of_them(folder: Path, kind: str):
    (folder / f"sub-02_{kind}.nii.gz").touch()
    assert len(find_sessions(folder)) == 2


@pytest.mark.parametrize(
    "name", ["sub-02_T1w.mgz", "sub-02_T1w.img", "sub-02_T1w.NRRD", "IM0001.dcm", "x.nii.bz2"]
)
def test_a_volume_of_another_format_is_named(folder: Path, name: str):
    (folder / name).touch()
    assert f"{name}: no NIfTI volume by its ending" in refusal(folder)


@pytest.mark.parametrize("ending", [".NII.GZ", ".nii.GZ", ".Nii"])
def test_an_ending_in_other_letters_is_named(folder: Path, ending: str):
    (folder / f"sub-02_T1w{ending}").touch()
    assert f"sub-02_T1w{ending} must be named" in refusal(folder)


def test_volumes_in_subfolders_are_named_and_hidden_folders_play_no_part(folder: Path):
    for deep in (".git/annex", "notes"):
        (folder / deep).mkdir(parents=True)
    (folder / ".git/annex/sub-03_T1w.nii.gz").touch()
    (folder / "notes/readme.txt").touch()
    assert len(find_sessions(folder)) == 1
    (folder / "sub-02/ses-1/anat").mkdir(parents=True)
    (folder / "sub-02/ses-1/anat/sub-02_ses-1_T1w.nii.gz").touch()
    assert "sub-02/ses-1/anat/sub-02_ses-1_T1w.nii.gz: the folder must be flat" in refusal(folder)


def test_patients_who_differ_in_case_alone_are_one(folder: Path):
    for patient in ("sub-A1", "sub-a1"):
        (folder / f"{patient}_T1w.nii.gz").touch()
    assert "the patients sub-A1 and sub-a1 differ in case alone" in refusal(folder)
