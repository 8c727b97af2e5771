"""Every image that cannot be used is refused with one sentence, held here word for word."""

import gzip
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from grandrounds.core.errors import BadImage, BadInput, BadSite
from grandrounds.data.elements import Elements
from grandrounds.data.prepare import prepare_cohort
from grandrounds.data.session_files import find_sessions

SaveVolume = Callable[..., Path]
ELEMENTS = Elements(("T1w", "T2w"), size=(16, 16), spacing=(1.0, 1.0))
RULE = (
    "sub-ID[_ses-ID]_CONTRAST.nii.gz (or .nii), a mask's with brainmask or lesionmask as CONTRAST"
)


@pytest.fixture
def site(tmp_path: Path, save_volume: SaveVolume, head: np.ndarray) -> Path:
    """A good site of two patients, which each test spoils in one way."""
    for patient in ("sub-01", "sub-02"):
        save_volume(tmp_path / "site" / f"{patient}_T1w.nii.gz", head)
        save_volume(tmp_path / "site" / f"{patient}_T2w.nii.gz", np.sqrt(head))
    return tmp_path / "site"


def refusal(folder: Path, kind: type[BadInput]) -> str:
    with pytest.raises(kind) as caught:
        prepare_cohort("alder", folder, ELEMENTS, cache=folder.parent / "cache")
    return str(caught.value)


def test_a_good_site_is_not_refused(site: Path):
    assert len(list(prepare_cohort("alder", site, ELEMENTS, cache=site.parent / "cache"))) == 2


def test_contrasts_of_different_shape(site: Path, save_volume: SaveVolume, head: np.ndarray):
    path = save_volume(site / "sub-01_T2w.nii.gz", head[:-2])
    assert refusal(site, BadImage) == (
        f"{path}: is not on the grid of sub-01_T1w.nii.gz (6 x 14 x 10 voxels instead of "
        "6 x 14 x 12); the contrasts and masks of a session must share one grid, "
        "so resample them onto one."
    )


def test_contrasts_at_different_places(site: Path, save_volume: SaveVolume, head: np.ndarray):
    affine = np.eye(4)
    affine[2, 3] = 3
    path = save_volume(site / "sub-01_T2w.nii.gz", head, affine)
    assert refusal(site, BadImage) == (
        f"{path}: is not on the grid of sub-01_T1w.nii.gz (3.0 mm apart); the contrasts and "
        "masks of a session must share one grid, so resample them onto one."
    )


def test_headers_that_differ_by_rounding_share_one_grid(
    site: Path, save_volume: SaveVolume, head: np.ndarray
):
    save_volume(site / "sub-01_T2w.nii.gz", head, np.diag([1.001, 1.0, 1.0, 1.0]))
    prepare_cohort("alder", site, ELEMENTS, cache=site.parent / "cache")


def test_a_mask_on_another_grid(site: Path, save_volume: SaveVolume, head: np.ndarray):
    path = save_volume(site / "sub-02_lesionmask.nii", (head > 90)[:, :-1].astype(np.uint8))
    assert refusal(site, BadImage).startswith(f"{path}: is not on the grid of sub-02_T1w.nii.gz (")


def test_a_truncated_compressed_volume(site: Path):
    path = site / "sub-01_T1w.nii.gz"
    path.write_bytes(path.read_bytes()[:-60])
    assert refusal(site, BadImage) == (
        f"{path}: cannot be read (Compressed file ended before the end-of-stream marker was "
        "reached); copy it again from its source."
    )


def test_a_truncated_volume(site: Path, save_volume: SaveVolume, head: np.ndarray):
    (site / "sub-01_T1w.nii.gz").unlink()
    path = save_volume(site / "sub-01_T1w.nii", head)
    path.write_bytes(path.read_bytes()[:1000])
    assert refusal(site, BadImage) == (
        f"{path}: cannot be read (Expected 4032 bytes, got 648 bytes from {path}); "
        "copy it again from its source."
    )


def test_a_compressed_volume_with_a_flipped_bit(site: Path, head: np.ndarray):
    path = site / "sub-01_T1w.nii.gz"
    content = bytearray(path.read_bytes())
    content[-8] ^= 1  # in the checksum, which follows the last voxel
    path.write_bytes(content)
    assert refusal(site, BadImage).startswith(f"{path}: cannot be read (CRC check failed ")


def test_a_file_that_is_no_volume(site: Path):
    path = site / "sub-01_T1w.nii.gz"
    path.write_bytes(gzip.compress(b"not a volume" * 100))
    assert refusal(site, BadImage) == (
        f'{path}: cannot be read (Cannot work out file type of "{path}"); '
        "copy it again from its source."
    )


def test_voxels_that_are_no_numbers(site: Path, save_volume: SaveVolume, head: np.ndarray):
    head = head.copy()
    head[0, 0, 0], head[1, 0, 0] = np.nan, np.inf
    path = save_volume(site / "sub-01_T1w.nii.gz", head)
    assert refusal(site, BadImage) == (
        f"{path}: 2 of 1008 voxels are NaN or infinite; each must be a number."
    )


def test_a_volume_of_four_axes(site: Path, save_volume: SaveVolume, head: np.ndarray):
    path = save_volume(site / "sub-01_T1w.nii.gz", np.stack([head, head], axis=-1))
    assert refusal(site, BadImage) == (f"{path}: has 4 axes (12 x 14 x 6 x 2); a volume has 3.")


def test_a_volume_of_two_axes(site: Path, save_volume: SaveVolume, head: np.ndarray):
    path = save_volume(site / "sub-01_T1w.nii.gz", head[:, :, 3])
    assert refusal(site, BadImage) == f"{path}: has 2 axes (12 x 14); a volume has 3."


def test_a_volume_of_colours(site: Path, save_volume: SaveVolume):
    colours = np.zeros((12, 14, 6), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    path = save_volume(site / "sub-01_T1w.nii.gz", colours)
    assert refusal(site, BadImage) == (
        f"{path}: holds no grey values; it must be a NIfTI volume of numbers."
    )


def test_a_volume_without_orientation(site: Path, head: np.ndarray):
    path = site / "sub-01_T1w.nii.gz"
    nib.save(nib.Nifti1Image(head, None), path)
    assert refusal(site, BadImage) == (
        f"{path}: has no orientation (sform and qform are unset or degenerate), so left and "
        "right are unknown; convert it again from its DICOM series."
    )


@pytest.mark.parametrize("value", [0, 7])
def test_a_constant_volume(site: Path, save_volume: SaveVolume, head: np.ndarray, value: int):
    path = save_volume(site / "sub-01_T1w.nii.gz", np.full_like(head, value))
    assert refusal(site, BadImage) == (
        f"{path}: every voxel is {value}; an image must show something."
    )


def test_a_brain_mask_beside_the_brain(site: Path, save_volume: SaveVolume, head: np.ndarray):
    save_volume(site / "sub-01_brainmask.nii", np.eye(12, 14)[..., None] * (head == 0))
    assert refusal(site, BadImage) == (
        f"{site / 'sub-01_T1w.nii.gz'}: no grey value above 0 lies in the brain at the middle of "
        "the volume; a volume, and its brain mask, must be centred on the brain."
    )


def test_a_brain_mask_that_marks_nothing(site: Path, save_volume: SaveVolume, head: np.ndarray):
    path = save_volume(site / "sub-01_brainmask.nii", np.zeros_like(head))
    assert refusal(site, BadImage) == (
        f"{path}: marks no voxel; the mask of a brain must show one."
    )


def test_contrasts_that_show_different_slices(
    site: Path, save_volume: SaveVolume, head: np.ndarray
):
    lower, upper = head.copy(), head.copy()
    lower[:, :, 3:], upper[:, :, :3] = 0, 0
    save_volume(site / "sub-01_T1w.nii.gz", lower)
    save_volume(site / "sub-01_T2w.nii.gz", upper)
    assert refusal(site, BadImage) == (
        f"{site}: no slice shows the brain in all of sub-01_T1w.nii.gz, sub-01_T2w.nii.gz; "
        "the contrasts of a session must show the same part of the body."
    )


def test_one_patient_only(site: Path):
    for path in site.glob("sub-02*"):
        path.unlink()
    assert refusal(site, BadSite) == (
        "site 'alder': 1 patient cannot be split into train and test; "
        "a site needs at least 2 patients."
    )


def test_no_session_with_a_contrast_of_the_study(site: Path):
    for path in site.iterdir():
        path.rename(site / path.name.replace("T1w", "PDw").replace("T2w", "FLAIR"))
    assert refusal(site, BadSite) == (
        f"{site}: no session has any of the study's contrasts (T1w, T2w); "
        "the names must spell them exactly so."
    )


def test_a_folder_that_is_missing(tmp_path: Path):
    folder = tmp_path / "nowhere"
    assert refusal(folder, BadSite) == (
        f"{folder}: No such file or directory; "
        "a site's data must be a readable folder of NIfTI volumes."
    )


def test_a_file_instead_of_a_folder(tmp_path: Path):
    folder = tmp_path / "file"
    folder.touch()
    assert refusal(folder, BadSite) == (
        f"{folder}: Not a directory; a site's data must be a readable folder of NIfTI volumes."
    )


@pytest.fixture
def locked(site: Path) -> Iterator[Path]:
    """Nobody may read the site; root, whom no permission stops, becomes somebody else meanwhile."""
    root = os.geteuid() == 0
    site.chmod(0)
    if root:
        os.seteuid(65534)
    yield site
    if root:
        os.seteuid(0)
    site.chmod(0o755)


def test_a_folder_that_may_not_be_read(locked: Path):
    assert refusal(locked, BadSite) == (
        f"{locked}: Permission denied; a site's data must be a readable folder of NIfTI volumes."
    )


def test_an_empty_folder(tmp_path: Path):
    (tmp_path / "README").touch()
    assert refusal(tmp_path, BadSite) == (
        f"{tmp_path}: no NIfTI volume lies in this folder; it must hold {RULE}."
    )


def test_a_name_that_does_not_follow_the_rule(site: Path):
    (site / "brain.nii").touch()
    assert refusal(site, BadSite) == f"{site}: brain.nii must be named {RULE}."


def test_many_names_that_do_not_follow_the_rule(site: Path):
    for number in range(7):
        (site / f"{number}_T1w.nii.gz").touch()
    listed = ", ".join(f"{number}_T1w.nii.gz" for number in range(5))
    assert refusal(site, BadSite) == f"{site}: {listed} and 2 more must be named {RULE}."


@pytest.mark.parametrize(
    "name", ["sub-01_tumourmask.nii", "sub-01_run-1_T1w.nii", "01_T1w.nii", "sub-01_T1w.NII"]
)
def test_names_close_to_the_rule_do_not_follow_it(tmp_path: Path, name: str):
    (tmp_path / name).touch()
    with pytest.raises(BadSite) as caught:
        find_sessions(tmp_path)
    assert str(caught.value) == f"{tmp_path}: {name} must be named {RULE}."


def test_a_volume_that_is_there_twice(site: Path):
    (site / "sub-01_T1w.nii").touch()
    assert refusal(site, BadSite) == (
        f"{site}: sub-01_T1w.nii and sub-01_T1w.nii.gz are one volume; keep only one."
    )


def test_a_volume_that_cannot_be_opened(site: Path):
    path = site / "sub-01_T1w.nii.gz"
    path.unlink()
    path.mkdir()
    assert refusal(site, BadImage) == f"{path}: Is a directory; the file must be readable."


def test_a_contrast_that_differs_from_the_studys_in_case(site: Path):
    (site / "sub-02_T2w.nii.gz").rename(site / "sub-02_t2W.nii.gz")
    assert refusal(site, BadSite) == (
        f"{site}: sub-02_t2W.nii.gz: the study spells this contrast T2w; a name must be spelled "
        "exactly so."
    )
