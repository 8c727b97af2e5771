"""A volume is written as NIfTI with a sidecar that identifies nobody."""

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from grandrounds.data.acquisition import read_acquisition, sidecar_of
from grandrounds.data.dicom.instance import Instance, RefusedFile
from grandrounds.data.dicom.parse import DicomReader, read_headers, read_series
from grandrounds.data.dicom.parser import Limits
from grandrounds.data.dicom.series import find_series
from grandrounds.data.dicom.volume import Volume, write_volume
from grandrounds.data.nifti import read_grid, read_voxels
from tests.helpers.dicom_files import AXIAL, ramp, write_series

IDENTIFYING: dict[str, Any] = {
    "PatientID": "SECRET-1",
    "PatientName": "SECRET-2^X",
    "PatientBirthDate": "19510203",
    "StudyDate": "20190405",
    "SeriesTime": "061718",
    "AccessionNumber": "SECRET-3",
    "InstitutionName": "SECRET-4",
    "StationName": "SECRET-5",
    "DeviceSerialNumber": "SECRET-6",
    "SeriesDescription": "SECRET-7",
    "ManufacturerModelName": "SECRET-8",
    "Manufacturer": "GE MEDICAL SYSTEMS SECRET-9",
    "ImageComments": "SECRET-10",
}


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Volume:
    paths = write_series(tmp_path_factory.mktemp("s"), ramp(), **IDENTIFYING)
    limits = Limits(processes=1)
    [series] = find_series(
        each for each in read_headers(paths, limits) if isinstance(each, Instance)
    ).series
    assert series.first.patient.name == "SECRET-2^X"
    assert {"PatientName", "AccessionNumber", "ImageComments"} <= set(series.first.present)
    return read_series(series, limits)


@pytest.mark.parametrize("name", ["v.nii", "v.nii.gz"])
def test_a_volume_comes_back_from_its_file(tmp_path: Path, volume: Volume, name: str):
    path = tmp_path / name
    write_volume(volume, path)
    image = nib.load(path)
    assert isinstance(image, nib.Nifti1Image)
    assert image.get_data_dtype() == np.int16
    np.testing.assert_array_equal(image.get_fdata(), volume.voxels)
    np.testing.assert_allclose(np.asarray(image.affine), AXIAL)
    assert read_grid(path).remarks == ()
    assert read_voxels(path).shape == (4, 5, 7)
    acquisition, doubts = read_acquisition(path)
    assert acquisition == volume.acquisition
    assert doubts == ()


def test_neither_file_identifies(tmp_path: Path, volume: Volume):
    write_volume(volume, tmp_path / "v.nii")
    sidecar = json.loads(sidecar_of(tmp_path / "v.nii").read_text())
    assert set(sidecar) == {
        *("Modality", "Manufacturer", "RepetitionTime", "EchoTime", "InversionTime", "FlipAngle"),
        *("MagneticFieldStrength", "SequenceFamily", "MRAcquisitionType"),
    }
    assert sidecar["Manufacturer"] == "GE"
    for path in tmp_path.iterdir():
        content = path.read_bytes()
        assert b"SECRET" not in content
        assert b"2019" not in content
    assert "SECRET" not in " ".join(map(str, volume.remarks))


def test_fractions_are_stored_as_float(tmp_path: Path, volume: Volume):
    half = Volume(volume.voxels / np.float32(2), volume.affine, volume.acquisition)
    write_volume(half, tmp_path / "v.nii")
    image = nib.load(tmp_path / "v.nii")
    assert isinstance(image, nib.Nifti1Image)
    np.testing.assert_array_equal(image.get_fdata(), volume.voxels / 2)


def test_equal_volumes_have_equal_bytes(tmp_path: Path, volume: Volume):
    for name in ("a.nii.gz", "b.nii.gz"):
        write_volume(volume, tmp_path / name)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def test_lossless_jpeg_without_its_decoder_is_told_by_the_extra(
    tmp_path: Path, real_data: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "sitecustomize.py").write_text("""
import importlib.metadata as metadata, sys
class Absent:
    def find_spec(name, path=None, target=None):
        if name == "libjpeg":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent)
real = metadata.entry_points
metadata.entry_points = lambda **which: [
    each for each in real(**which) if not each.value.startswith("libjpeg")
]
""")
    monkeypatch.syspath_prepend(str(tmp_path))
    path = real_data / "dicom" / "misc" / "jpeg_lossless_sel1.dcm"
    with DicomReader(Limits(processes=1)) as reader:
        [found] = reader.headers([path])
        assert isinstance(found, RefusedFile)
        assert "an extra of its own: dicom-jpeg" in str(found.reason)
