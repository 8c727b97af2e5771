"""What a folder is, is found out by looking; what is left out of it is counted."""

import json
from pathlib import Path

import pytest

from grandrounds.core.errors import BadImage, BadSite
from grandrounds.data.acquisition import from_sidecar
from grandrounds.data.archive.trees import (
    bids_volumes,
    by_number,
    files_below,
    inherited_sidecar,
    kind_of,
    plain_volumes,
)


def make(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


def dicom_in(path: Path) -> None:
    path.write_bytes(bytes(128) + b"DICM")


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["IMG0001", "more/IMG0002"], "DICOM files"),
        (["sub-1/anat/sub-1_T1w.nii.gz"], "a BIDS tree"),
        (["sub-1/ses-2/anat/sub-1_ses-2_T1w.nii.gz"], "a BIDS tree"),
        (["dataset_description.json", "sub-1/x.nii"], "a BIDS tree"),
        (["sub-1_T1w.nii.gz", "notes.txt"], "NIfTI volumes"),
        (["patient 4/t1.nii"], "NIfTI volumes"),
    ],
)
def test_a_folder_is_what_lies_in_it(names: list[str], kind: str, tmp_path: Path):
    assert kind_of(make(tmp_path, *names)) == kind


def test_dicom_beside_nifti_is_refused_and_so_is_nothing(tmp_path: Path):
    make(tmp_path, "sub-1_T1w.nii.gz")
    dicom_in(tmp_path / "IMG1")
    with pytest.raises(BadSite, match="holds DICOM files and NIfTI volumes"):
        kind_of(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadSite, match="holds no file that could be an image"):
        kind_of(make(tmp_path / "empty", "notes.txt"))


def test_hidden_files_and_links_to_folders_are_not_followed(tmp_path: Path):
    make(tmp_path, "a/b", ".git/c", "a/._b")
    (tmp_path / "a" / "round").symlink_to(tmp_path)
    assert [path.name for path in files_below(tmp_path)] == ["b"]


def test_anatomical_volumes_of_a_bids_tree_are_taken_and_the_rest_is_counted(tmp_path: Path):
    make(
        tmp_path,
        "dataset_description.json",
        "sub-A/ses-10/anat/sub-A_ses-10_T1w.nii.gz",
        "sub-A/ses-10/anat/sub-A_ses-10_ce-gd_T1w.nii.gz",
        "sub-A/ses-10/anat/sub-A_ses-10_part-phase_T2w.nii.gz",
        "sub-A/ses-10/anat/sub-A_ses-10_T1map.nii.gz",
        "sub-A/ses-10/anat/sub-A_ses-10_label-L_mask.nii.gz",
        "sub-A/ses-10/func/sub-A_ses-10_task-rest_bold.nii.gz",
        "derivatives/fs/sub-A/anat/sub-A_T1w.nii.gz",
    )
    tree = bids_volumes(tmp_path)
    assert {(v.patient, v.session) for v in tree.volumes} == {("A", "10")}
    assert {(v.contrast, v.refusal) for v in tree.volumes} == {
        ("T1w", ""),
        ("T1wGd", ""),
        ("", "is no magnitude image (part)"),
    }
    assert tree.left_out == {
        "masks and maps": 2,
        "volumes of func": 1,
        "volumes of derivatives": 1,
    }


@pytest.mark.parametrize(
    ("name", "patient", "session", "contrast", "refusal"),
    [
        ("sub-7_ses-2_T1w.nii.gz", "7", "2", "T1w", ""),
        ("sub-7_lesionmask.nii", "7", "", "lesionmask", ""),
        ("Miller/2020/AX_T2_FLAIR.nii.gz", "Miller", "2020", "FLAIR", ""),
        ("Miller/t1ce.nii", "Miller", "", "T1wGd", ""),
        ("Miller/scan.nii", "Miller", "", "", "has a name that tells no contrast"),
        ("Miller/t1_and_pd.nii", "Miller", "", "", "has a name that tells two contrasts"),
        ("scan t1.nii", "", "", "", "is not named sub-ID"),
    ],
)
def test_other_volumes_are_named_by_the_rule_or_by_their_folders(
    name: str, patient: str, session: str, contrast: str, refusal: str, tmp_path: Path
):
    [found] = plain_volumes(make(tmp_path, name)).volumes
    assert (found.patient, found.session, found.contrast) == (patient, session, contrast)
    assert found.refusal.startswith(refusal)
    assert bool(found.refusal) == bool(refusal)


def test_a_mask_that_is_not_named_by_the_rule_is_counted(tmp_path: Path):
    tree = plain_volumes(make(tmp_path, "Miller/t1.nii", "Miller/t1_mask.nii"))
    assert len(tree.volumes) == 1
    assert tree.left_out == {"masks that are not named by the rule": 1}


def test_a_sidecar_is_inherited_and_the_nearer_one_wins(tmp_path: Path):
    volume = tmp_path / "sub-1" / "ses-2" / "anat" / "sub-1_ses-2_T1w.nii.gz"
    make(tmp_path, str(volume.relative_to(tmp_path)))
    told = {
        "T1w.json": {"MagneticFieldStrength": 3, "EchoTime": 0.1, "FlipAngle": 8},
        "T2w.json": {"FlipAngle": 1},
        "sub-1/sub-1_T1w.json": {"EchoTime": 0.2},
        "sub-1/sub-1_acq-other_T1w.json": {"EchoTime": 0.9},
        "sub-1/ses-2/anat/sub-1_ses-2_T1w.json": {"RepetitionTime": 2},
    }
    for name, values in told.items():
        (tmp_path / name).write_text(json.dumps(values))
    found = from_sidecar(inherited_sidecar(volume, tmp_path))
    assert (found.field_strength, found.flip_angle) == (3, 8)
    assert (found.echo_time, found.repetition_time) == (200, 2000)
    (tmp_path / "T1w.json").write_text("[]")
    with pytest.raises(BadImage, match="is no sidecar"):
        inherited_sidecar(volume, tmp_path)


def test_names_are_in_the_order_in_which_people_count():
    names = ["ses-10", "ses-2", "baseline"]
    assert sorted(names, key=by_number) == ["baseline", "ses-2", "ses-10"]
