"""What identifies a person in a header is counted, and a file that names one is not taken."""

from dataclasses import replace
from pathlib import Path

import pytest
from pydicom.datadict import keyword_dict
from pydicom.dataset import Dataset
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from grandrounds.data.archive.deidentification import (
    ATTRIBUTES,
    count_findings,
    findings_of,
    is_identified,
    refusal_of,
)
from grandrounds.data.dicom.instance import Instance, PatientIdentity
from grandrounds.data.dicom.parse import read_headers
from tests.helpers.dicom_hospital import Visit, dicom_files

REPEATING = {"OverlayComments", "OverlayData", "CurveData"}  # (60xx,..) and (50xx,..)
CLEAN = Instance(
    Path("x"), "1", "2", "3", PatientIdentity(), present=("SOPInstanceUID", "PatientSex", "Rows")
)


def test_every_attribute_is_one_of_dicom_and_stands_once():
    names = [name for group in ATTRIBUTES.values() for name in group]
    assert {name for name in names if name not in keyword_dict} == REPEATING
    assert len(names) == len(set(names))


def with_(*present: str, **other: object) -> Instance:
    return replace(CLEAN, present=(*CLEAN.present, *present), **other)  # pyright: ignore


NAMED = PatientIdentity(id="17", name="A^B", birth_date="19500101")


@pytest.mark.parametrize(
    ("file", "identified"),
    [
        (CLEAN, False),
        (with_("StudyDate", "SeriesDescription", "DeviceSerialNumber"), False),
        (with_("PatientName", patient=NAMED), True),
        (with_("PatientID", patient=NAMED), True),
        (with_("PatientBirthDate"), True),
        (with_("OtherPatientIDs"), True),
        (with_("PatientTelephoneNumbers"), True),
        (with_("PatientName", patient=PatientIdentity(name="*** ***")), False),
        (
            with_("PatientName", "PatientID", "PatientBirthDate", patient=NAMED, deidentified=True),
            False,
        ),
        (with_("PatientName", "OtherPatientIDs", patient=NAMED, deidentified=True), True),
        (with_("PatientName", patient=NAMED, deidentified=False), True),
    ],
)
def test_a_file_is_identified_by_what_names_its_patient(file: Instance, identified: bool):
    assert is_identified(file) is identified


def test_findings_are_counted_by_files():
    files = [
        with_("PatientName", "StudyDate", "StudyTime", patient=NAMED, private=3),
        with_("StudyDate", burned_in=True),
        CLEAN,
    ]
    assert findings_of(CLEAN) == {"UIDs", "person"}
    assert count_findings(files) == {
        "UIDs": 3,
        "person": 3,
        "dates": 2,
        "name": 1,
        "private tags": 1,
        "burned-in annotation": 1,
        "identified": 1,
    }


def test_identified_files_are_refused_unless_the_site_allows_them():
    refusal = refusal_of({"identified": 4, "name": 4}, identified=False)
    assert str(refusal).startswith("4 of its files name the patient")
    assert refusal_of({"identified": 4, "name": 4}, identified=True) is None
    assert refusal_of({"dates": 4}, identified=False) is None


def test_text_in_the_picture_is_refused_always():
    refusal = refusal_of({"burned-in annotation": 1}, identified=True)
    assert "text is drawn into the picture" in str(refusal)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian])
def test_what_identifies_within_a_sequence_is_found_in_every_syntax(syntax: UID, tmp_path: Path):
    [(_, made), *_] = dicom_files(Visit())
    within = Dataset()
    within.OtherPatientIDs = "PID-4711"
    made.RequestAttributesSequence = [within]
    made.file_meta.TransferSyntaxUID = syntax
    made.save_as(tmp_path / "file.dcm", enforce_file_format=True)
    [found] = read_headers([tmp_path / "file.dcm"])
    assert isinstance(found, Instance)
    assert "OtherPatientIDs" in found.present
