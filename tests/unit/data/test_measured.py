"""An image that a network made is never trained on, by whatever of its signs is left."""

from pathlib import Path

import numpy as np
import pytest

from grandrounds.core.errors import BadImage
from grandrounds.data.elements import Elements
from grandrounds.data.measured import SYNTHETIC_TEXT, check_measured, synthetic_name, synthetic_sign
from grandrounds.data.nifti import MOST_VOXELS, read_voxels, to_nifti
from grandrounds.data.prepare import prepare_cohort, prepare_session
from grandrounds.data.session_files import SessionFiles, find_sessions
from tests.conftest import SaveVolume

ELEMENTS = Elements(("T1w",), (8, 8), (2.0, 2.0))


def test_a_synthetic_volume_s_name_follows_bids_and_not_the_rule_of_measured_ones():
    assert synthetic_name("sub-1", "ses-2", "T2w") == "sub-1_ses-2_desc-synthetic_T2w.nii.gz"
    assert synthetic_name("sub-1", "", "T2w") == "sub-1_desc-synthetic_T2w.nii.gz"


@pytest.mark.parametrize("sign", ["its name", "its header", "its sidecar"])
def test_each_sign_is_enough(sign: str, save_volume: SaveVolume, head: np.ndarray, tmp_path: Path):
    name = "sub-1_desc-synthetic_T1w.nii" if sign == "its name" else "sub-1_T1w.nii"
    path = save_volume(tmp_path / name, head)
    assert sign == "its name" or synthetic_sign(path) == ""
    if sign == "its header":
        path.write_bytes(to_nifti(read_voxels(path), path, text=SYNTHETIC_TEXT))
    if sign == "its sidecar":
        path.with_suffix(".json").write_text('{"Synthetic": "yes"}')
    assert synthetic_sign(path) == sign
    with pytest.raises(BadImage, match=r"is synthetic, as its .* says; only images that were meas"):
        check_measured([path])
    with pytest.raises(BadImage, match="is synthetic"):
        prepare_session(SessionFiles("sub-1", "", {"T1w": path}), ELEMENTS)


def test_a_sidecar_that_comes_later_counts_for_what_is_cached(
    save_volume: SaveVolume, head: np.ndarray, tmp_path: Path
):
    for patient in ("sub-1", "sub-2"):
        save_volume(tmp_path / "data" / f"{patient}_T1w.nii.gz", head)
    prepare_cohort("oak", tmp_path / "data", ELEMENTS, cache=tmp_path / "cache")
    (tmp_path / "data" / "sub-2_T1w.json").write_text('{"Synthetic": true}')
    with pytest.raises(BadImage, match=r"sub-2_T1w\.nii\.gz: is synthetic, as its sidecar says"):
        prepare_cohort("oak", tmp_path / "data", ELEMENTS, cache=tmp_path / "cache")


def test_a_measured_volume_with_a_sidecar_is_one(
    save_volume: SaveVolume, head: np.ndarray, tmp_path: Path
):
    path = save_volume(tmp_path / "sub-1_T1w.nii.gz", head)
    (tmp_path / "sub-1_T1w.json").write_text('{"EchoTime": 0.012, "Synthetic": false}')
    assert synthetic_sign(path) == ""
    assert [each.patient for each in find_sessions(tmp_path)] == ["sub-1"]


def test_a_header_that_promises_more_than_any_scanner_gives_is_refused_unread(
    save_volume: SaveVolume, head: np.ndarray, tmp_path: Path
):
    path = save_volume(tmp_path / "sub-1_T1w.nii", head)
    content = bytearray(path.read_bytes())
    content[42:48] = np.array([32767, 32767, 32767], "<i2").tobytes()
    path.write_bytes(content)
    with pytest.raises(BadImage, match=f"32767 x 32767 x 32767 voxels; at most {MOST_VOXELS} are"):
        read_voxels(path)
