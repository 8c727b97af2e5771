import json
from dataclasses import replace
from pathlib import Path

import pytest

from grandrounds.core.errors import BadImage
from grandrounds.data.acquisition import (
    LARGEST_SIDECAR,
    Acquisition,
    family_of,
    from_sidecar,
    read_acquisition,
    sidecar_of,
)

MPRAGE = Acquisition("mprage", 2300.0, 2.98, 900.0, 9.0, 3.0, 3, contrast_agent=False)


@pytest.mark.parametrize("name", ["sub-1_T1w.nii.gz", "sub-1_T1w.nii"])
def test_a_sidecar_lies_beside_its_volume(name: str):
    assert sidecar_of(Path("a.b") / name) == Path("a.b/sub-1_T1w.json")


def test_what_is_written_is_read_again(tmp_path: Path):
    volume = tmp_path / "sub-1_T1w.nii.gz"
    sidecar_of(volume).write_text(json.dumps(MPRAGE.to_sidecar()), "utf-8")
    read, doubts = read_acquisition(volume)
    assert replace(read, repetition_time=2300.0, echo_time=2.98) == MPRAGE
    assert read.repetition_time == pytest.approx(2300)
    assert read.echo_time == pytest.approx(2.98)
    assert doubts == ()


def test_without_a_sidecar_all_is_unknown(tmp_path: Path):
    assert read_acquisition(tmp_path / "sub-1_T1w.nii") == (Acquisition(), ())


def test_a_field_in_gauss_is_caught():
    known, [doubt] = from_sidecar({"MagneticFieldStrength": 15000, "EchoTime": 0.12}).checked()
    assert known == Acquisition(echo_time=120.0)
    assert "15000" in str(doubt)
    assert "1.5 T" in str(doubt)
    assert doubt.told(frozenset()) == str(doubt)  # no name is in it: it may leave


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("RepetitionTime", 2300, "repetition time of 2300000.0 ms"),  # milliseconds for seconds
        ("EchoTime", 0, "echo time of 0.0 ms"),
        ("InversionTime", -1, "inversion time of -1000.0 ms"),
        ("FlipAngle", float("nan"), "flip angle of nan degrees"),
        ("MagneticFieldStrength", float("inf"), "field strength of inf T"),
    ],
)
def test_what_cannot_be_is_unknown_and_said(name: str, value: float, said: str):
    known, [doubt] = from_sidecar({name: value}).checked()
    assert known == Acquisition()
    assert said in str(doubt)


@pytest.mark.parametrize("value", ["2.3", True, None, [2.3], {"a": 1}])
def test_a_value_of_a_wrong_type_is_unknown(value: object):
    assert from_sidecar({"RepetitionTime": value, "MRAcquisitionType": value}) == Acquisition()


def test_a_number_of_hundreds_of_digits_is_unknown(tmp_path: Path):
    volume = tmp_path / "sub-1_T1w.nii"
    sidecar_of(volume).write_text('{"EchoTime": 1' + "0" * 400 + ', "RepetitionTime": NaN}')
    read, doubts = read_acquisition(volume)
    assert (read, len(doubts)) == (Acquisition(), 2)


@pytest.mark.parametrize(
    ("scanning", "variant", "inversion", "family"),
    [
        ("SE", "SK", False, "spin-echo"),
        ("SE", "SK\\SP", True, "inversion-recovery"),
        ("SE\\IR", "SK", True, "inversion-recovery"),
        ("GR", "SP", False, "gradient-echo"),
        ("GR\\IR", "SP\\MP", True, "mprage"),
        ("GR", "MP", True, "mprage"),
        ("EP\\SE", "NONE", False, "echo-planar"),
        ("gr_ir", "sp", True, "mprage"),
        ("RM", "NONE", False, None),
        ("", "", False, None),
    ],
)
def test_a_family_is_told_from_dicom_s_words(
    scanning: str, variant: str, inversion: bool, family: str | None
):
    assert family_of(scanning, variant, inversion) == family


def test_bids_words_may_be_a_list():
    read = from_sidecar({"ScanningSequence": ["GR", "IR"], "InversionTime": 0.9})
    assert read.family == "mprage"


@pytest.mark.parametrize(
    "text", ["[]", "{", "\x80", "[" * 100_000, " " * (LARGEST_SIDECAR + 1) + "{}"]
)
def test_what_is_no_sidecar_is_refused(tmp_path: Path, text: str):
    volume = tmp_path / "sub-1_T1w.nii"
    sidecar_of(volume).write_text(text, "latin-1")
    with pytest.raises(BadImage, match="one JSON object"):
        read_acquisition(volume)


def test_a_sidecar_that_is_a_folder_is_refused(tmp_path: Path):
    volume = tmp_path / "sub-1_T1w.nii"
    sidecar_of(volume).mkdir()
    with pytest.raises(BadImage, match="must be readable"):
        read_acquisition(volume)
