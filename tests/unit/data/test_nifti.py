from collections.abc import Callable
from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

from grandrounds.data.nifti import read_grid, read_voxels
from grandrounds.data.session_files import find_sessions

SaveVolume = Callable[..., Path]


def test_sessions_are_found_by_name_and_sorted(tmp_path: Path):
    for name in (
        "sub-02_T1w.nii",
        "sub-01_ses-b_T2w.nii.gz",
        "sub-01_ses-a_T1w.nii.gz",
        "sub-01_ses-a_brainmask.nii.gz",
        "sub-01_ses-a_lesionmask.nii",
        "sub-01_ses-a_T1w.json",
        "README",
    ):
        (tmp_path / name).touch()
    first, second, third = find_sessions(tmp_path)
    assert (first.patient, first.session) == ("sub-01", "ses-a")
    assert first.contrasts == {"T1w": tmp_path / "sub-01_ses-a_T1w.nii.gz"}
    assert first.masks == {
        "brain": tmp_path / "sub-01_ses-a_brainmask.nii.gz",
        "lesion": tmp_path / "sub-01_ses-a_lesionmask.nii",
    }
    assert (second.patient, second.session, list(second.contrasts)) == ("sub-01", "ses-b", ["T2w"])
    assert (third.patient, third.session, list(third.contrasts)) == ("sub-02", "", ["T1w"])


def test_a_slice_shows_anterior_up_and_the_patients_left_on_the_right(
    tmp_path: Path, save_volume: SaveVolume
):
    voxels = np.zeros((4, 5, 3), dtype=np.int16)  # towards right, anterior, superior
    voxels[:, 4, 0] = 1  # the front of the lowest slice
    voxels[0, 0, 2] = 2  # left, back, top
    slices = read_voxels(save_volume(tmp_path / "v.nii", voxels))
    assert slices.shape == (3, 5, 4)
    assert slices[0, 0].tolist() == [1, 1, 1, 1]
    assert slices[2, -1].tolist() == [0, 0, 0, 2]


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_the_way_a_volume_is_stored_changes_neither_voxels_nor_grid(
    tmp_path: Path, save_volume: SaveVolume, order: tuple[int, int, int]
):
    voxels = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    affine = np.diag([0.5, 0.75, 3.0, 1.0])
    affine[:3, 3] = -7, 11, 13
    reference = save_volume(tmp_path / "reference.nii", voxels, affine)
    for signs in product((1, -1), repeat=3):
        turn = list(zip(order, signs, strict=True))
        stored = nib.Nifti1Image(voxels, affine).as_reoriented(turn)
        nib.save(stored, tmp_path / "turned.nii.gz")
        assert np.array_equal(read_voxels(tmp_path / "turned.nii.gz"), read_voxels(reference))
        grid = read_grid(tmp_path / "turned.nii.gz")
        assert grid.shape == (4, 3, 2)
        assert grid.distance(read_grid(reference)) == pytest.approx(0, abs=1e-5)
        assert grid.spacing == pytest.approx((3.0, 0.75, 0.5))


def test_a_grid_turned_in_place_is_apart_by_its_corners(tmp_path: Path, save_volume: SaveVolume):
    voxels = np.zeros((11, 11, 11), dtype=np.int16)
    shifted, stretched = np.eye(4), np.diag([1.0, 1.0, 1.5, 1.0])
    shifted[0, 3] = 0.25
    grid = read_grid(save_volume(tmp_path / "a.nii", voxels))
    assert grid.distance(read_grid(save_volume(tmp_path / "b.nii", voxels, shifted))) == 0.25
    assert grid.distance(read_grid(save_volume(tmp_path / "c.nii", voxels, stretched))) == 5.0


def test_a_fourth_axis_of_one_is_no_axis(tmp_path: Path, save_volume: SaveVolume):
    path = save_volume(tmp_path / "v.nii", np.ones((2, 3, 4, 1), dtype=np.int16))
    assert read_voxels(path).shape == read_grid(path).shape == (4, 3, 2)


def test_scaled_integers_are_read_as_what_they_mean(tmp_path: Path):
    image = nib.Nifti1Image(np.full((2, 2, 2), 10.0), np.eye(4), dtype=np.int16)
    image.header.set_slope_inter(0.5, -1)
    nib.save(image, tmp_path / "v.nii")
    assert read_voxels(tmp_path / "v.nii")[0, 0, 0] == 10 * 0.5 - 1


def test_real_oblique_volumes_are_turned_as_nibabel_turns_them(real_data: Path):
    for site in ("site-lju15t", "site-lju3t"):
        path = next(iter(find_sessions(real_data / "mri" / site)[0].contrasts.values()))
        image = nib.load(path)
        assert isinstance(image, nib.Nifti1Image)
        turn = ornt_transform(io_orientation(image.affine), axcodes2ornt(("S", "P", "L")))
        turned = image.as_reoriented(turn.tolist())
        assert turned.affine is not None
        assert np.array_equal(read_voxels(path), turned.get_fdata(dtype=np.float32))
        assert np.allclose(read_grid(path).affine, turned.affine)


def test_real_sites_hold_the_sessions_that_their_source_states(real_data: Path):
    sessions = find_sessions(real_data / "mri" / "site-lju15t")
    assert len(sessions) == 7
    assert len({found.patient for found in sessions}) == 5
    assert sum({"T1w", "T2w", "FLAIR"} == set(found.contrasts) for found in sessions) == 4
    assert all(set(found.masks) == {"brain"} for found in sessions)
