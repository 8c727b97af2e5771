"""Which files make a volume together, and what is said of those that make none."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import UID

from grandrounds.core.errors import BadImage
from grandrounds.data.dicom.instance import Instance, RefusedFile
from grandrounds.data.dicom.parse import DicomReader
from grandrounds.data.dicom.parser import Limits
from grandrounds.data.dicom.series import FoundSeries, find_series
from tests.helpers.dicom_files import AXIAL, fill, ramp, slice_dataset, uid, write_series

SAGITTAL = np.array([[0, 0, 1, 0], [1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1.0]])


@pytest.fixture(scope="module")
def reader() -> Iterator[DicomReader]:
    with DicomReader(Limits(processes=1)) as opened:
        yield opened


def found_in(reader: DicomReader, folder: Path) -> FoundSeries:
    paths = sorted(each for each in folder.rglob("*") if each.is_file())
    return find_series(each for each in reader.headers(paths) if isinstance(each, Instance))


def refusals(found: FoundSeries) -> list[str]:
    return [str(each.reason) for each in found.refused]


def test_files_in_any_order_become_a_volume(tmp_path: Path, reader: DicomReader):
    voxels = ramp()
    write_series(tmp_path / "a" / "b", voxels, order=[2, 0, 3, 1])
    found = found_in(reader, tmp_path)
    [series] = found.series
    volume = reader.volume(series)
    np.testing.assert_array_equal(volume.voxels, voxels)
    np.testing.assert_allclose(volume.affine, AXIAL)
    assert (found.refused, found.duplicates, volume.remarks) == ((), (), ())


def test_two_series_and_two_patients_in_one_folder_are_kept_apart(
    tmp_path: Path, reader: DicomReader
):
    write_series(tmp_path / "one", ramp(), series=1)
    write_series(tmp_path / "two", ramp() + 1, series=2, PatientID="P2")
    found = found_in(reader, tmp_path)
    assert [each.first.patient.id for each in found.series] == ["P1", "P2"]


def test_two_patients_in_one_series_are_refused(tmp_path: Path, reader: DicomReader):
    write_series(tmp_path / "one", ramp())
    dataset = slice_dataset(ramp()[:, :, 0].T.copy(), AXIAL, 9, PatientID="P2")
    dataset.save_as(tmp_path / "other.dcm")
    assert refusals(found_in(reader, tmp_path)) == ["has pictures of 2 patients in one series"]


def test_copies_count_once_and_are_told(tmp_path: Path, reader: DicomReader):
    for name in ("a", "b"):
        write_series(tmp_path / name, ramp())
    found = found_in(reader, tmp_path)
    assert [each.grid.shape for each in found.series] == [(7, 5, 4)]
    assert sorted(each.parent.name for each in found.duplicates) == ["b"] * 4


def test_two_files_with_one_uid_that_differ_are_refused(tmp_path: Path, reader: DicomReader):
    write_series(tmp_path / "a", ramp())
    write_series(tmp_path / "b", ramp()[:, :, :1], SliceThickness="9")
    expected = ["has two different files with one SOP instance UID"]
    assert refusals(found_in(reader, tmp_path)) == expected


@pytest.mark.parametrize(
    ("change", "split"),
    [
        ({"EchoTime": 90}, "echo time"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "P", "ND"]}, "image type"),
        ({"DiffusionBValue": 1000.0}, "diffusion weighting"),
        ({"ComplexImageComponent": "PHASE"}, "component"),
        ({"PixelSpacing": [1, 2]}, "pixel spacing"),
    ],
)
def test_what_differs_in_one_series_splits_it(
    tmp_path: Path, reader: DicomReader, change: dict[str, Any], split: str
):
    write_series(tmp_path / "a", ramp())
    for k in range(4):
        own = {"SOPInstanceUID": uid(2, k), **change}
        slice_dataset(ramp()[:, :, k].T.copy(), AXIAL, k, **own).save_as(tmp_path / f"{k}.dcm")
    found = found_in(reader, tmp_path)
    assert [(each.part, each.parts, each.split) for each in found.series] == [
        (1, 2, (split,)),
        (2, 2, (split,)),
    ]


@pytest.mark.parametrize("told", ["AcquisitionNumber", "TemporalPositionIdentifier", None])
def test_repetitions_are_volumes_of_their_own(
    tmp_path: Path, reader: DicomReader, told: str | None
):
    voxels = ramp()
    for turn in range(3):
        for k in range(4):
            own = {"SOPInstanceUID": uid(2, turn, k), "InstanceNumber": turn * 4 + k + 1}
            more = {told: turn + 1} if told else {}
            pixels = voxels[:, :, k].T + 1000 * turn
            slice_dataset(pixels, AXIAL, k, **own, **more).save_as(tmp_path / f"{turn}{k}.dcm")
    found = found_in(reader, tmp_path)
    assert len(found.series) == 3
    for turn, series in enumerate(found.series):
        np.testing.assert_array_equal(reader.volume(series).voxels, voxels + 1000 * turn)
    assert len({each.identity for each in found.series}) == 3


def test_incomplete_repetitions_are_refused(tmp_path: Path, reader: DicomReader):
    write_series(tmp_path / "a", ramp())
    again = slice_dataset(ramp()[:, :, 0].T.copy(), AXIAL, 0, SOPInstanceUID=uid(3))
    again.save_as(tmp_path / "again.dcm")
    assert refusals(found_in(reader, tmp_path)) == [
        "of 4 positions some have 1 pictures and others 2: volumes are incomplete"
    ]


def test_planes_that_cross_are_a_localizer(tmp_path: Path, reader: DicomReader):
    write_series(tmp_path / "a", ramp())
    slice_dataset(ramp()[:, :, 0].T.copy(), SAGITTAL, 0, SOPInstanceUID=uid(3)).save_as(
        tmp_path / "s.dcm"
    )
    assert refusals(found_in(reader, tmp_path)) == ["is a localizer: its 2 planes cross each other"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "is a localizer"),
        (
            {"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]},
            "is a secondary capture, such as a screenshot",
        ),
        (
            {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"},
            "is a secondary capture, such as a screenshot",
        ),
        (
            {"ImageType": ["DERIVED", "SECONDARY", "PROJECTION IMAGE"]},
            "is a projection, and not a slice",
        ),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "is a picture in colours"),
        ({"ImagePositionPatient": None}, "has no position or orientation in space"),
        ({"ImageOrientationPatient": None}, "has no position or orientation in space"),
        ({"PixelSpacing": None}, "a picture's pixels have no size"),
        ({"PixelSpacing": ["0", "0"]}, "a picture's pixels have no size"),
        (
            {"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]},
            "a picture's rows and columns are not at right angles",
        ),
        (
            {"ImageOrientationPatient": [0, 0, 0, 0, 0, 0]},
            "a picture's orientation has directions that are none",
        ),
    ],
)
def test_what_is_no_slice_of_a_volume_is_refused(
    tmp_path: Path, reader: DicomReader, change: dict[str, Any], reason: str
):
    write_series(tmp_path, ramp((4, 4, 3)), **change)
    found = found_in(reader, tmp_path)
    assert (found.series, refusals(found)) == ((), [reason])


def test_a_missing_slice_is_named(tmp_path: Path, reader: DicomReader):
    write_series(tmp_path, ramp((4, 4, 8)), order=[0, 1, 2, 5, 6, 7])
    assert refusals(found_in(reader, tmp_path)) == [
        "2 of 8 slices are missing, the first after slice 3"
    ]


def test_an_empty_folder_holds_no_series(tmp_path: Path, reader: DicomReader):
    assert found_in(reader, tmp_path) == FoundSeries((), ())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"PixelData": None}, "has no pixel data"),
        ({"Rows": 0}, "has no rows, columns or frames"),
        ({"SeriesInstanceUID": None}, "lacks the UID of its series or its own"),
        ({"Rows": None, "Columns": None}, "is a DICOM file without a picture (a report or a plan)"),
    ],
)
def test_files_that_cannot_be_used_are_refused_by_their_header(
    tmp_path: Path, reader: DicomReader, change: dict[str, Any], reason: str
):
    [path] = write_series(tmp_path, ramp((4, 4, 1)), **change)
    [found] = reader.headers([path])
    assert isinstance(found, RefusedFile)
    assert str(found.reason) == reason


def test_an_unknown_transfer_syntax_is_refused(tmp_path: Path, reader: DicomReader):
    dataset = slice_dataset(ramp((4, 4, 1))[:, :, 0].T.copy(), AXIAL, 0)
    dataset.file_meta.TransferSyntaxUID = UID("1.2.3.4")
    dataset.save_as(tmp_path / "a.dcm", implicit_vr=False, little_endian=True)
    [found] = reader.headers([tmp_path / "a.dcm"])
    assert isinstance(found, RefusedFile)
    assert found.trouble == "unsupported"
    assert "unknown transfer syntax" in str(found.reason)


def test_an_enhanced_file_has_positions_and_slopes_of_its_frames(
    tmp_path: Path, reader: DicomReader
):
    voxels = ramp((4, 3, 5))
    enhanced(voxels, [2, 0, 1, 4, 3]).save_as(tmp_path / "e.dcm")
    [series] = found_in(reader, tmp_path).series
    volume = reader.volume(series)
    slopes = 1 + np.arange(5)
    np.testing.assert_allclose(volume.voxels, voxels * slopes - 3)
    np.testing.assert_allclose(volume.affine, AXIAL)
    assert volume.acquisition.family == "mprage"
    assert volume.acquisition.echo_time == 3.5


def enhanced(voxels: np.ndarray, order: list[int]) -> Dataset:
    """An enhanced MR file whose frames come in this order, slice k with a slope of k + 1."""
    dataset = slice_dataset(
        np.stack([voxels[:, :, k].T for k in order])[0],
        AXIAL,
        0,
        SOPClassUID="1.2.840.10008.5.1.4.1.1.4.1",
        NumberOfFrames=len(order),
        **dict.fromkeys(("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")),
        **dict.fromkeys(("SliceThickness", "EchoTime", "RepetitionTime", "ScanningSequence")),
        **dict.fromkeys(("SequenceVariant", "InversionTime")),
        EchoPulseSequence="GRADIENT",
    )
    dataset.PixelData = np.stack([voxels[:, :, k].T for k in order]).tobytes()
    shared = Dataset()
    shared.PlaneOrientationSequence = [
        fill(Dataset(), {"ImageOrientationPatient": [1, 0, 0, 0, 1, 0]})
    ]
    shared.PixelMeasuresSequence = [fill(Dataset(), {"PixelSpacing": [1, 1], "SliceThickness": 1})]
    shared.MREchoSequence = [fill(Dataset(), {"EffectiveEchoTime": 3.5})]
    shared.MRModifierSequence = [
        fill(Dataset(), {"InversionRecovery": "YES", "InversionTimes": [900.0], "Spoiling": "RF"})
    ]
    dataset.SharedFunctionalGroupsSequence = [shared]
    frames = []
    for k in order:
        frame = Dataset()
        frame.PlanePositionSequence = [fill(Dataset(), {"ImagePositionPatient": [0, 0, k]})]
        frame.PixelValueTransformationSequence = [
            fill(Dataset(), {"RescaleSlope": k + 1, "RescaleIntercept": -3})
        ]
        frames.append(frame)
    dataset.PerFrameFunctionalGroupsSequence = frames
    return dataset


def test_a_classic_file_with_frames_at_one_position_is_refused(tmp_path: Path, reader: DicomReader):
    dataset = slice_dataset(ramp((4, 4, 1))[:, :, 0], AXIAL, 0, NumberOfFrames=2)
    dataset.PixelData = bytes(64)
    dataset.save_as(tmp_path / "m.dcm")
    assert refusals(found_in(reader, tmp_path)) == ["has no position or orientation in space"]


def test_grey_values_are_rescaled_turned_and_freed_of_padding(tmp_path: Path, reader: DicomReader):
    voxels = ramp((4, 4, 2)).astype(np.uint16)
    voxels[0, 0, 0] = 4000
    write_series(
        tmp_path,
        voxels,
        RescaleSlope="2",
        RescaleIntercept="-10",
        PixelPaddingValue=3999,
        PixelPaddingRangeLimit=4001,
        BitsStored=12,
        HighBit=11,
        PhotometricInterpretation="MONOCHROME1",
    )
    [series] = found_in(reader, tmp_path).series
    volume = reader.volume(series)
    expected = (4095.0 - voxels) * 2 - 10
    expected[0, 0, 0] = 0
    np.testing.assert_array_equal(volume.voxels, expected)
    assert [str(each) for each in volume.remarks] == [
        "grey values are stored inverted (MONOCHROME1): turned",
        "3.1 % of the voxels are padding: they count as background",
    ]


def test_a_series_that_loses_a_file_is_refused_by_name(tmp_path: Path, reader: DicomReader):
    paths = write_series(tmp_path, ramp())
    [series] = found_in(reader, tmp_path).series
    paths[1].unlink()
    with pytest.raises(BadImage, match="No such file") as caught:
        reader.volume(series)
    assert str(paths[1]) in str(caught.value)
    assert caught.value.safe is not None
    assert str(paths[1]) not in str(caught.value.safe)
