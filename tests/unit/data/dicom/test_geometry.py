"""Any orientation, order, spacing and gap comes back as it was written, or is refused."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from grandrounds.data.dicom.instance import Instance
from grandrounds.data.dicom.parse import DicomReader
from grandrounds.data.dicom.parser import Limits
from grandrounds.data.dicom.series import FoundSeries, find_series
from grandrounds.data.dicom.volume import Volume
from tests.helpers.dicom_files import AXIAL, ramp, slice_dataset, uid, write_series

Affine = NDArray[np.float64]
ROUNDING = 1e-4  # mm, of positions with 16 characters
few = settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],  # a failing example is small enough as it is
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.fixture(scope="module")
def reader() -> Iterator[DicomReader]:
    with DicomReader(Limits(processes=1)) as opened:
        yield opened


@st.composite
def affines(draw: st.DrawFn) -> Affine:
    """A rotated, perhaps mirrored grid of any spacing, anywhere."""
    quaternion = draw(
        st.tuples(*[st.floats(-1, 1)] * 4).filter(lambda q: sum(x * x for x in q) > 0.01)
    )
    sizes = [draw(st.floats(0.2, 5)), draw(st.floats(0.2, 5)), draw(st.floats(0.3, 9))]
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_quat(quaternion).as_matrix() * sizes
    affine[:3, 2] *= draw(st.sampled_from([1, -1]))
    affine[:3, 3] = [draw(st.floats(-300, 300)) for _ in range(3)]
    return affine


def found_in(reader: DicomReader, paths: list[Path]) -> FoundSeries:
    return find_series(each for each in reader.headers(paths) if isinstance(each, Instance))


def assert_same(volume: Volume, voxels: NDArray[np.int16], affine: Affine) -> None:
    """Each voxel has the value that was written where it lies."""
    inside = np.indices(volume.voxels.shape).reshape(3, -1)
    places = (volume.affine @ np.vstack([inside, np.ones(inside.shape[1])]))[:3]
    written = np.linalg.inv(affine) @ np.vstack([places, np.ones(inside.shape[1])])
    index = np.rint(written[:3]).astype(int)
    assert np.linalg.norm(affine[:3, :3] @ (written[:3] - index), axis=0).max() < ROUNDING
    np.testing.assert_array_equal(volume.voxels.ravel(), voxels[tuple(index)])


@few
@given(affines(), st.permutations(range(4)), st.tuples(st.integers(1, 5), st.integers(1, 5)))
def test_any_orientation_order_and_spacing_comes_back(
    reader: DicomReader, affine: Affine, order: list[int], size: tuple[int, int]
):
    voxels = ramp((*size, 4))
    with tempfile.TemporaryDirectory() as folder:
        found = found_in(reader, write_series(Path(folder), voxels, affine, order=order))
        assert not found.refused
        volume = reader.volume(found.series[0])
    assert_same(volume, voxels, affine)
    assert np.dot(np.cross(*volume.affine[:3, :2].T), volume.affine[:3, 2]) > 0


@few
@given(affines(), st.sets(st.integers(1, 6), min_size=1, max_size=3))
def test_any_gap_is_refused_and_counted(reader: DicomReader, affine: Affine, lost: set[int]):
    kept = [k for k in range(8) if k not in lost]
    with tempfile.TemporaryDirectory() as folder:
        found = found_in(reader, write_series(Path(folder), ramp((2, 3, 8)), affine, order=kept))
    [refused] = found.refused
    assert str(refused.reason).startswith(f"{len(lost)} of 8 slices are missing, the first after")


@few
@given(affines(), st.floats(0.15, 0.85), st.integers(1, 3))
def test_slices_at_unequal_distances_are_refused(
    reader: DicomReader, affine: Affine, shift: float, moved: int
):
    with tempfile.TemporaryDirectory() as folder:
        paths = write_series(Path(folder), ramp((2, 3, 5)), affine)
        other = affine.copy()
        other[:3, 3] += shift * affine[:3, 2]
        own = {"SOPInstanceUID": uid(1, 1, moved + 1)}
        slice_dataset(ramp((2, 3, 5))[:, :, moved].T.copy(), other, moved, **own).save_as(
            paths[moved]
        )
        found = found_in(reader, paths)
    if shift * np.linalg.norm(affine[:3, 2]) > 0.15:
        assert not found.series
        assert any(word in str(found.refused[0].reason) for word in ("equally far", "missing"))


@few
@given(affines(), st.floats(-0.4, 0.4), st.floats(-0.4, 0.4))
def test_a_tilted_gantry_is_shifted_back(
    reader: DicomReader, affine: Affine, along: float, down: float
):
    """Values that grow evenly through space still do, each where it lies."""
    step = np.linalg.norm(affine[:3, 2])
    sheared = affine.copy()
    for axis, share in ((0, along), (1, down)):
        sheared[:3, 2] += affine[:3, axis] / np.linalg.norm(affine[:3, axis]) * share * step
    i, j, k = np.indices((9, 8, 5))
    places = np.stack([i, j, k, np.ones_like(i)], axis=-1) @ sheared.T
    values = np.rint(20 * (places[..., :3] @ [1.0, 2.0, 3.0])).astype(np.int16)
    with tempfile.TemporaryDirectory() as folder:
        found = found_in(reader, write_series(Path(folder), values, sheared))
        volume = reader.volume(found.series[0])
    unit = volume.affine[:3, :3] / np.linalg.norm(volume.affine[:3, :3], axis=0)
    np.testing.assert_allclose(unit.T @ unit, np.eye(3), atol=1e-3)
    drift = 4 * step * np.hypot(along, down)
    if drift <= 0.2:
        return
    assert "tilted gantry" in str(volume.remarks[0])
    inside = volume.voxels > values.min()
    got = np.argwhere(inside)
    expected = 20 * (
        (np.c_[got, np.ones(len(got))] @ volume.affine.T)[:, :3] @ np.array([1.0, 2.0, 3.0])
    )
    right = np.abs(volume.voxels[inside] - expected) < 1.5  # of rounding to whole numbers
    assert right.mean() > 0.5  # at the rim, what is outside is mixed in
    centre = np.all((got > 2) & (got < np.array(volume.voxels.shape) - 3), axis=1)
    assert right.sum() >= centre.sum() / 2


def test_a_steep_shear_is_no_tilt(tmp_path: Path, reader: DicomReader):
    sheared = AXIAL.copy()
    sheared[0, 2] = 1.5
    found = found_in(reader, write_series(tmp_path, ramp(), sheared))
    assert str(found.refused[0].reason) == "slices are sheared by 56 degrees, which is no tilt"


def test_slices_beside_the_others_are_refused(tmp_path: Path, reader: DicomReader):
    paths = write_series(tmp_path, ramp((4, 4, 5)))
    beside = AXIAL.copy()
    beside[0, 3] = 3
    own = {"SOPInstanceUID": uid(1, 1, 3)}
    slice_dataset(ramp((4, 4, 5))[:, :, 2].T.copy(), beside, 2, **own).save_as(paths[2])
    found = found_in(reader, paths)
    assert str(found.refused[0].reason) == (
        "slices do not lie in a row: one is 3.0 mm beside the others"
    )


@pytest.mark.parametrize(
    ("thickness", "remark"),
    [
        ("1", ()),
        ("0.3", ("slices lie 1.0 mm apart and are 0.3 mm thick: some may be missing",)),
        (None, ()),
    ],
)
def test_a_stated_thickness_changes_no_position(
    tmp_path: Path, reader: DicomReader, thickness: str | None, remark: tuple[str, ...]
):
    paths = write_series(tmp_path, ramp(), SliceThickness=thickness, SpacingBetweenSlices="7")
    volume = reader.volume(found_in(reader, paths).series[0])
    np.testing.assert_allclose(volume.affine, AXIAL)
    assert tuple(map(str, volume.remarks)) == remark


def test_a_single_slice_is_as_thick_as_it_says(tmp_path: Path, reader: DicomReader):
    paths = write_series(tmp_path, ramp((4, 4, 1)), SliceThickness="5")
    volume = reader.volume(found_in(reader, paths).series[0])
    assert volume.affine[2, 2] == 5
    assert str(volume.remarks[0]) == "a single slice: it counts as 5.0 mm thick"
