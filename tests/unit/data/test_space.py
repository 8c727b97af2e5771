"""What headers say of space, as they stand in files; the reports are named at each."""

import gzip
import struct
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from grandrounds.core.errors import BadImage
from grandrounds.data.nifti import read_grid, read_voxels, to_nifti

Affine = np.ndarray
AXES = np.diag([2.0, 3.0, 4.0, 1.0])


def write(
    path: Path,
    sform: Affine | None = AXES,
    qform: Affine | None = None,
    unit: int = 2,
    **patched: tuple[int, str, float],
) -> Path:
    """A volume whose header has these transforms, and bytes changed behind the library's back."""
    image = nib.Nifti1Image(np.arange(120, dtype=np.int16).reshape(4, 5, 6), AXES)
    image.set_sform(sform, 0 if sform is None else 1)
    image.set_qform(qform, 0 if qform is None else 1)
    if sform is not None and qform is None:
        image.header.set_zooms(np.linalg.norm(sform[:3, :3], axis=0))
    raw = bytearray(image.to_bytes())
    raw[123] = unit
    for place, kind, value in patched.values():
        struct.pack_into(kind, raw, place, value)
    path.write_bytes(gzip.compress(bytes(raw)) if path.suffix == ".gz" else bytes(raw))
    return path


def refusal(path: Path) -> str:
    with pytest.raises(BadImage) as caught:
        read_grid(path)
    return str(caught.value)


@pytest.mark.parametrize(("unit", "factor"), [(1, 1e-3), (3, 1e3)])
@pytest.mark.parametrize("time", [0, 8, 16, 24])
def test_lengths_in_metres_and_microns_are_read_in_millimetres(
    tmp_path: Path, unit: int, factor: float, time: int
):
    affine = AXES * np.array([[factor]] * 3 + [[1.0]])
    grid = read_grid(write(tmp_path / "v.nii.gz", affine, unit=unit + time))
    assert grid.spacing == pytest.approx((4, 3, 2))
    assert grid.remarks == ("unit",)


def test_a_unit_of_time_alone_leaves_lengths_in_millimetres(tmp_path: Path):
    grid = read_grid(write(tmp_path / "v.nii", unit=8))
    assert grid.spacing == (4, 3, 2)
    assert grid.remarks == ()


def test_a_code_that_is_no_unit_is_refused(tmp_path: Path):
    assert "its unit of length has the code 5" in refusal(write(tmp_path / "v.nii", unit=5))


@pytest.mark.parametrize("factor", [1e-3, 1e3])
def test_voxels_of_a_size_that_no_scanner_has_are_refused(tmp_path: Path, factor: float):
    affine = AXES * np.array([[factor]] * 3 + [[1.0]])
    assert "which no scanner's are" in refusal(write(tmp_path / "v.nii", affine, unit=0))


def test_an_sform_that_says_1_mm_beside_other_voxel_sizes_is_refused(tmp_path: Path):
    """Deep-MI/FastSurfer#36, NIFTI-Imaging/nifti_clib#127."""
    right, unit = np.diag([-0.5078, -0.5078, 4.0, 1.0]), np.diag([-1.0, -1.0, 4.0, 1.0])
    sentence = refusal(write(tmp_path / "v.nii", unit, right))
    assert "its voxel sizes (pixdim) are 0.5078 x 0.5078 x 4" in sentence
    assert "those of its sform 1 x 1 x 4" in sentence


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_transforms_that_differ_in_the_direction_of_an_axis_are_refused(tmp_path: Path, axis: int):
    """MRtrix3/mrtrix3#94."""
    other = AXES.copy()
    other[axis] *= -1
    assert "contradict each other" in refusal(write(tmp_path / "v.nii", AXES, other))


def test_transforms_that_lie_apart_are_remarked_and_the_sform_counts(tmp_path: Path):
    """An sform after a registration (MRtrix3/mrtrix3#1540)."""
    moved = AXES.copy()
    moved[:3, 3] = 7, 0, 0
    grid = read_grid(write(tmp_path / "v.nii", moved, AXES))
    assert grid.remarks == ("transforms differ",)
    assert grid.affine[0, 3] == pytest.approx(7 + 3 * 2)


def test_rounding_is_no_difference(tmp_path: Path):
    """freesurfer/freesurfer#1060: 1.000005 mm beside 1 mm."""
    assert read_grid(write(tmp_path / "v.nii", AXES * 1.000005, AXES)).remarks == ()


@pytest.mark.parametrize("value", [0.0, -2.0, float("nan"), float("inf")])
def test_a_voxel_size_that_is_none_beside_a_valid_sform_is_remarked(tmp_path: Path, value: float):
    path = write(tmp_path / "v.nii", size=(80, "<f", value))
    assert read_grid(path).spacing == (4, 3, 2)
    assert read_grid(path).remarks == ("sizes differ",)


@pytest.mark.parametrize("value", [0.0, -2.0, float("nan"), float("inf")])
@pytest.mark.parametrize("place", [80, 84, 88])
def test_a_voxel_size_that_is_none_without_an_sform_is_refused(
    tmp_path: Path, value: float, place: int, capfd: pytest.CaptureFixture[str]
):
    path = write(tmp_path / "v.nii", None, AXES, size=(place, "<f", value))
    assert "its voxel sizes are" in refusal(path)
    assert tuple(capfd.readouterr()) == ("", "")


def test_a_quaternion_that_is_no_rotation_gives_way_to_the_sform(tmp_path: Path):
    path = write(tmp_path / "v.nii", AXES, AXES, quaternion=(256, "<f", 9.0))
    assert read_grid(path).remarks == ("a transform is void",)


@pytest.mark.parametrize(("degrees", "refused"), [(0.5, False), (3, True), (-10, True)])
def test_only_a_shear_within_the_slice_is_refused(tmp_path: Path, degrees: float, refused: bool):
    shear = np.tan(np.radians(degrees))
    within, between = np.diag([2.0, 2.0, 4.0, 1.0]), np.diag([2.0, 2.0, 4.0, 1.0])
    within[0, 1], between[1, 2] = 2 * shear, 4 * shear
    path = write(tmp_path / "v.nii", within)
    if refused:
        assert "not at 90" in refusal(path)
    else:
        read_grid(path)
    read_grid(write(tmp_path / "w.nii", between))


def test_an_infinite_slope_is_refused(tmp_path: Path):
    assert "infinite" in refusal(write(tmp_path / "v.nii", slope=(112, "<f", float("inf"))))


def test_an_axis_without_voxels_is_refused(tmp_path: Path):
    path = tmp_path / "v.nii"
    nib.save(nib.Nifti1Image(np.zeros((4, 0, 3), np.int16), AXES), path)
    assert refusal(path) == f"{path}: has an axis of length 0; a volume must have voxels."


@pytest.mark.parametrize("unit", [1, 2, 3])
def test_a_volume_like_another_has_its_space_and_nothing_else(tmp_path: Path, unit: int):
    affine = AXES * np.array([[{1: 1e-3, 2: 1, 3: 1e3}[unit]]] * 3 + [[1.0]])
    path = write(tmp_path / "v.nii", affine, affine, unit=unit + 8, texts=(148, "<f", 5.0))
    made = nib.Nifti1Image.from_bytes(to_nifti(read_voxels(path), path))
    assert made.affine is not None
    assert np.allclose(made.affine, affine, rtol=1e-6)
    assert np.array_equal(np.asarray(made.dataobj), np.asarray(nib.load(path).dataobj))  # pyright: ignore
    assert int(made.header["sform_code"]) == int(made.header["qform_code"]) == 1
    assert int(made.header["xyzt_units"]) == unit
    assert not bytes(made.header["descrip"]).strip(b"\0")


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("v.nii.gz", b"../.git/annex/objects/x/y\n", "it is a pointer of git-annex or Git LFS"),
        (
            "v.nii.gz",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
            "it is a pointer of git-annex or Git LFS",
        ),
        ("v.nii.gz", struct.pack("<i", 348) + b"\0" * 400, "it is not compressed; name it .nii"),
        ("v.nii", gzip.compress(b"\0" * 400, mtime=0), "it is compressed; name it .nii.gz"),
    ],
)
def test_a_file_that_is_another_thing_than_its_name_says_is_told_apart(
    tmp_path: Path, name: str, content: bytes, reason: str
):
    (tmp_path / name).write_bytes(content)
    assert f"{name}: cannot be read ({reason}" in refusal(tmp_path / name)
